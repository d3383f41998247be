r"""Parse prompts in ComfyUI's syntax.

`(x)` multiplies the weight by 1.1; `(x:1.3)` sets it to 1.3, whatever the weights of the brackets around it. `\(` and
`\)` are literal brackets. `embedding:NAME`, at the start of a text or after a space, refers to an embedding and is left
out if there is no such embedding. Everything else is plain text: square brackets, `BREAK`, `AND` and tags.

Source: ComfyUI, `comfy/sd1_clip.py`.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from civman.prompts.emphasis import Fragment, ParsedPrompt

_ROUND: Final = 1.1
_ESCAPED: Final = {"\\)": "\0\1", "\\(": "\0\2"}
_EMBEDDING: Final = re.compile(r"[ \n]embedding:")
_NAME: Final = "embedding:"
_DEEPEST: Final = 200


def parse(prompt: str) -> ParsedPrompt:
    """Parse a prompt into weighted fragments.

    >>> parse("a (red (cat:1.3))").sections
    ((Fragment(text='a ', weight=1.0), Fragment(text='red ', weight=1.1), Fragment(text='cat', weight=1.3)),)
    """
    text = prompt
    for written, stands in _ESCAPED.items():
        text = text.replace(written, stands)
    return ParsedPrompt(prompt, (tuple(_weighted(text, 1.0, 0)),), syntax="comfyui")


def _weighted(text: str, weight: float, depth: int) -> Iterator[Fragment]:
    for part in _bracketed(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")" or depth > _DEEPEST:
            yield Fragment(_unescaped(part), weight)
            continue
        inner, factor = part[1:-1], weight * _ROUND
        colon = inner.rfind(":")
        if colon > 0:
            with suppress(ValueError):
                factor, inner = float(inner[colon + 1 :]), inner[:colon]
        yield from _weighted(inner, factor, depth + 1)


def _bracketed(text: str) -> Iterator[str]:
    """Split a text into its outermost pairs of round brackets and the text between these pairs."""
    begun, depth = 0, 0
    for place, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and place > begun:
                yield text[begun:place]
            begun = place if depth == 0 else begun
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[begun : place + 1]
                begun = place + 1
    if begun < len(text):
        yield text[begun:]


def _unescaped(text: str) -> str:
    for written, stands in _ESCAPED.items():
        text = text.replace(stands, written[1])
    return text


def embeddings_in(prompt: str) -> tuple[str, ...]:
    """The names of the embeddings in a prompt, without repetitions and without adjacent commas."""
    found = (named(piece) for fragment in parse(prompt).sections[0] for piece in pieces(fragment.text))
    return tuple(dict.fromkeys(name.strip(",") for name, _ in found if name.strip(",")))


def pieces(text: str) -> Iterator[str]:
    """Split a fragment before each embedding. A piece with an embedding starts with `embedding:`."""
    first, *others = _EMBEDDING.split(text)
    if first:
        yield first
    yield from (f"{_NAME}{other}" for other in others)


def named(piece: str) -> tuple[str, str]:
    """Split a piece into the name of the embedding at its start ("" if there is none) and the remaining text."""
    words = piece.removeprefix(_NAME).split()
    if not piece.startswith(_NAME) or not words:
        return "", piece
    return words[0], " ".join(words[1:])
