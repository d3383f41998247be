"""Reads files of prompts: one prompt per line, or lines with their own settings as in A1111's script for such files.

A line that contains `--` is read as options: `--prompt "a boat" --steps 30 --cfg_scale 5`. Words after `--prompt` and
`--negative_prompt` need no quotes. The options are A1111's; civman's own names for the same settings are accepted, too.
An option that civman does not support is an error; it is not ignored.

Source: AUTOMATIC1111's script "Prompts from file or textbox" (the rule, not its code).
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from civman.domain.recipes.recipe_limits import size_of
from civman.domain.recipes.render_request import RenderRequest
from civman.errors import Cause, UsageError

_TEXTS: Final = {"prompt": "prompt", "negative_prompt": "negative_prompt", "negative": "negative_prompt"}
_WORDS: Final = {
    "sd_model": "checkpoint", "checkpoint": "checkpoint", "sampler_name": "sampler", "sampler": "sampler",
    "schedule": "schedule", "scheduler": "schedule", "vae": "vae", "rng": "rng",
}  # fmt: skip
_WHOLE: Final = {
    "seed": "seed", "subseed": "variation_seed", "variation_seed": "variation_seed", "steps": "steps",
    "width": "width", "height": "height", "batch_size": "batch_size", "n_iter": "count", "count": "count",
    "clip_skip": "clip_skip",
}  # fmt: skip
_NUMBERS: Final = {
    "cfg_scale": "guidance_scale", "cfg": "guidance_scale", "subseed_strength": "variation_strength",
    "variation_strength": "variation_strength",
}  # fmt: skip
_OWN: Final = ("size", "styles", "seed_resize_from_h", "seed_resize_from_w")
_OPTIONS: Final = (*_TEXTS, *_WORDS, *_WHOLE, *_NUMBERS, *_OWN)


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of a prompt file: the request it describes, and the names of its styles."""

    request: RenderRequest
    styles: tuple[str, ...] = ()


def read_prompt_file(path: Path, request: RenderRequest) -> list[PromptLine]:
    """Read a file of prompts. Each line changes a copy of `request`; empty lines and comments (#) are skipped.

    Raises: UsageError (`unreadable-prompts`): the file cannot be read or has no prompt, or a line has an invalid
    option.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror or error}", code=Cause.UNREADABLE_PROMPTS) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot read `{path}`: it is not UTF-8 text", hint="save the file as UTF-8", code=Cause.UNREADABLE_PROMPTS
        ) from error
    found = [
        prompt_line(line, request, f"line {number} of `{path}`")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not found:
        raise UsageError(
            f"`{path}` contains no prompt",
            hint="write one prompt per line; empty lines and lines that start with # are ignored",
            code=Cause.UNREADABLE_PROMPTS,
        )
    return found


def prompt_line(line: str, request: RenderRequest, where: str = "the line") -> PromptLine:
    """Parse one line of a prompt file into a changed copy of `request`.

    >>> prompt_line("a boat at dawn", RenderRequest("m")).request.prompt
    'a boat at dawn'
    >>> prompt_line('--prompt a boat --steps 30 --width 640', RenderRequest("m")).request.steps
    30

    Raises: UsageError (`unreadable-prompts`): an option is unknown, or its value is invalid.
    """
    if "--" not in line:
        return PromptLine(replace(request, prompt=line))
    changes: dict[str, Any] = {}
    styles: tuple[str, ...] = ()
    frame: dict[str, int] = {}
    for name, values in _options(line, where):
        if name in _TEXTS:
            changes[_TEXTS[name]] = " ".join(values)
        elif name == "styles":
            styles = tuple(part.strip() for part in " ".join(values).split(",") if part.strip())
        elif name == "size":
            changes["width"], changes["height"] = _size(_single(name, values, where), where)
        elif name.startswith("seed_resize_from"):
            frame[name[-1]] = int(_number(name, values, where, int))
        elif name in _WORDS:
            changes[_WORDS[name]] = _single(name, values, where)
        else:
            kind: Callable[[str], float] = int if name in _WHOLE else float
            changes[{**_WHOLE, **_NUMBERS}[name]] = _number(name, values, where, kind)
    return PromptLine(replace(request, **_settled(changes, frame, where)), styles)


def _settled(changes: dict[str, Any], frame: dict[str, int], where: str) -> dict[str, Any]:
    """Convert a line's options where A1111 and civman differ. `frame`: the width and height to resize the seed from.

    Values that disable a setting in A1111 are removed, and A1111's number of batches and batch size become one number
    of images.
    """
    if "prompt" not in changes:
        raise _bad(where, "the line has no prompt", "write the prompt after --prompt")
    if changes.get("seed") == -1:
        del changes["seed"]
    if changes.get("variation_seed") == -1:
        del changes["variation_seed"]
    if not changes.get("variation_strength", 1):
        del changes["variation_strength"]
        changes.pop("variation_seed", None)
    if "batch_size" in changes and "count" in changes:
        changes["count"] *= changes["batch_size"]
    elif "batch_size" in changes:
        changes["count"] = changes["batch_size"]
    if frame.get("w", 0) > 0 and frame.get("h", 0) > 0:
        changes["seed_resize"] = f"{frame['w']}x{frame['h']}"
    return changes


def _options(line: str, where: str) -> list[tuple[str, list[str]]]:
    """Split a line into options, each with the words that follow it up to the next option."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise _bad(where, "a quotation mark is not closed", "write an apostrophe in a prompt as \\'") from error
    if not words or not words[0].startswith("--"):
        raise _bad(where, "there is text before the first option", "write the prompt after --prompt")
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            found.append((_name(word, where), []))
        else:
            found[-1][1].append(word)
    return found


def _name(word: str, where: str) -> str:
    name = word.removeprefix("--").replace("-", "_")
    if name in _OPTIONS:
        return name
    hints = {
        "outpath_samples": "choose the folder with `civman render --output`",
        "outpath_grids": "make a contact sheet with `civman render --grid`",
        "sampler_index": "specify the sampler with --sampler_name",
        "prompt_for_display": "leave it out, because civman always records the prompt as typed",
    }
    raise _bad(
        where,
        f"civman does not support the option `{word}` in a prompt file",
        hints.get(name, f"options: {', '.join(_OPTIONS)}"),
    )


def _single(name: str, values: Sequence[str], where: str) -> str:
    if not values:
        raise _bad(where, f"`--{name}` has no value", f"write the value after --{name}")
    return " ".join(values)


def _number(name: str, values: Sequence[str], where: str, kind: Callable[[str], float]) -> float:
    text = _single(name, values, where)
    try:
        return kind(text)
    except ValueError as error:
        expected = "an integer" if kind is int else "a number"
        raise _bad(where, f"the value of `--{name} {text}` is not {expected}", "write digits") from error


def _size(text: str, where: str) -> tuple[int, int]:
    try:
        return size_of(text.lower())
    except UsageError as error:
        raise _bad(where, f"the value of `--size {text}` is not a size", "write a size such as 832x1216") from error


def _bad(where: str, why: str, hint: str) -> UsageError:
    return UsageError(f"{where}: {why}", hint=hint, code=Cause.UNREADABLE_PROMPTS)
