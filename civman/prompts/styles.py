"""Styles: named texts that are combined with a prompt, read from A1111's `styles.csv`.

The columns are `name`, `prompt` and `negative_prompt`; in files from 2022, the prompt column is `text`. Source:
AUTOMATIC1111's styles (the rule, not its code).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from civman.errors import Cause, UsageError

_PLACE: Final = "{prompt}"
"""The placeholder for the prompt in a style's text. The text of a style without this placeholder is appended to the
prompt.
"""
_MOST_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Style:
    """A style: its name, its text for the prompt and its text for the negative prompt."""

    name: str
    prompt: str
    negative_prompt: str


def read_styles(path: Path) -> dict[str, Style]:
    """Read a file of styles and map their names to them. If a name occurs twice, the last one is used, as in A1111.

    Raises: UsageError (`unreadable-prompts`): the file cannot be read, or is not a table of styles.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _unreadable(path, f"the file is larger than {_MOST_BYTES // 2**20} MB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if "name" not in (rows.fieldnames or ()):
                raise _unreadable(path, "the first line must contain the column names name, prompt and negative_prompt")
            found = [_style(row) for row in rows if row.get("name")]
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, "the file is not UTF-8 text") from error
    except csv.Error as error:
        raise _unreadable(path, str(error)) from error
    return {style.name: style for style in found}


def chosen_styles(styles: dict[str, Style], names: Sequence[str], path: Path) -> list[Style]:
    """Look up styles by name. Raises: UsageError (`no-style`): the file does not contain a style of that name."""
    for name in names:
        if name not in styles:
            near = get_close_matches(name, styles, 1)
            some = ", ".join(list(styles)[:8])
            hint = (
                f"did you mean `{near[0]}`?"
                if near
                else f"the file has the styles {some}"
                if some
                else "the file contains no styles"
            )
            raise UsageError(f"`{path}` has no style `{name}`", hint=hint, code=Cause.NO_STYLE, name=name)
    return [styles[name] for name in names]


def with_styles(prompt: str, negative_prompt: str, styles: Sequence[Style]) -> tuple[str, str]:
    """Combine both prompts with the styles, in order.

    >>> with_styles("a boat", "", [Style("ink", "ink drawing of {prompt}, detailed", "photo")])
    ('ink drawing of a boat, detailed', 'photo')
    >>> with_styles("a boat", "blurry", [Style("night", "at night", "day")])
    ('a boat, at night', 'blurry, day')
    """
    for style in styles:
        prompt, negative_prompt = _combined(style.prompt, prompt), _combined(style.negative_prompt, negative_prompt)
    return prompt, negative_prompt


def _combined(style: str, text: str) -> str:
    if _PLACE in style:
        return style.replace(_PLACE, text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)


def _style(row: dict[str, str]) -> Style:
    prompt = row.get("prompt")
    return Style(row["name"], (row.get("text") if prompt is None else prompt) or "", row.get("negative_prompt") or "")


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot read the styles in `{path}`: {why}",
        hint="use a styles.csv from A1111, which has the columns name, prompt and negative_prompt",
        code=Cause.UNREADABLE_PROMPTS,
    )
