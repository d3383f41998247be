"""Notices about parts of a prompt that are syntax in another program but plain text in civman.

The prompt is not changed: if it was pasted from another program, it is rendered unchanged, and a notice
lists the syntax that has no effect. Standard library only.

Source: the documented prompt syntax of ComfyUI, Dynamic Prompts, InvokeAI (Compel), NovelAI and Midjourney.
"""

import re

_FOREIGN = (
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), "a random choice in other programs (Dynamic Prompts, ComfyUI)"),
    (re.compile(r"(?<!\w)__[\w/*-]+?__(?!\w)"), "a wildcard in other programs (Dynamic Prompts)"),
    (re.compile(r"(?<!\w)embedding:[\w.-]+"), "ComfyUI's way to name an embedding; write the name alone here"),
    (re.compile(r"\{[^{}|]+\}"), "emphasis in NovelAI; write `(word:1.05)` here"),
    (re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?::[^:]+::"), "emphasis in NovelAI; write `(word:1.2)` here"),
    (re.compile(r"\)(?:\d+(?:\.\d+)?|\++|-+)(?![\w.])"), "emphasis in InvokeAI; write `(word:1.2)` here"),
    (re.compile(r"(?<!\w)\w+(?:\+{2,}|-{2,})(?!\S)"), "emphasis in InvokeAI; write `(word:1.2)` here"),
    (re.compile(r"(?<!\S)--(?:ar|aspect|chaos|iw|niji|no|seed|stylize|style|tile|version|v)\b(?:[ \t]+[\w.:]+)?"),
     "an option of Midjourney; use the options of `civman render` instead"),
    (re.compile(r"(?m)^[ \t]*#.*$"), "a comment in A1111"),
)  # fmt: skip
_SHOWN = 40


def foreign_notices(prompt: str) -> tuple[str, ...]:
    r"""Return a notice for each kind of syntax that another program would read, and for unbalanced brackets.

    >>> foreign_notices("a {red|blue} ball")
    ('`{red|blue}` is plain text: a random choice in other programs (Dynamic Prompts, ComfyUI)',)
    >>> foreign_notices(r"a \(red\) ball")
    ()
    """
    # blank out escaped characters, which are literal
    text = re.sub(r"\\.", lambda pair: " " * len(pair[0]), prompt, flags=re.DOTALL)
    notices = []
    for pattern, what in _FOREIGN:
        if found := pattern.search(text):
            near = " ".join(prompt[found.start() : found.end()].split())
            notices.append(f"`{near[:_SHOWN]}{'…' if near[_SHOWN:] else ''}` is plain text: {what}")
    return (*notices, *_brackets(text))


def _brackets(text: str) -> list[str]:
    """Return notices about the first unclosed bracket and the first unmatched closing bracket of each kind."""
    notices = []
    for opening, closing in ("()", "[]"):
        opened: list[int] = []
        stray = None
        for place, letter in enumerate(text):
            if letter == opening:
                opened.append(place)
            elif letter == closing and opened:
                opened.pop()
            elif letter == closing and stray is None:
                stray = place
        if opened:
            place = opened[0] + 1
            notices.append(
                f"the bracket `{opening}` at character {place} is not closed, so it applies to the rest of the prompt"
            )
        if stray is not None:
            notices.append(
                f"the bracket `{closing}` at character {stray + 1} has no opening bracket, so it is plain text"
            )
    return notices
