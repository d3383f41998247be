"""Parses the axes of a grid: which field of a recipe varies along each axis, and its values."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from civman.errors import Cause, UsageError
from civman.planning.vary import Change, field_of, is_number

MOST_CELLS: Final = 400
REPLACE: Final = "s/r"
"""The name of the axis that replaces text in the prompts. Its first value is the text to search for."""
WORDS: Final = ("prompt", "negative_prompt")
ONE_PICTURE: Final = ("count", "batch_size")
"""Fields that cannot be an axis, because each cell of a grid is exactly one picture."""
_RANK: Final = {"checkpoint": 0, "sampler": 1, "hires": 1}
"""Fields that are changed first, because changing them resets other fields: a new sampler resets the schedule."""
_RANGE: Final = re.compile(r"([+-]?\d+(?:\.\d+)?)\.\.([+-]?\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid: a field's name as for `--set`, or "s/r" to replace text, and at least two values as text."""

    name: str
    values: tuple[str, ...]

    @property
    def field(self) -> str:
        """The full name of the axis's field; short names such as "cfg" are resolved."""
        return REPLACE if self.name.lower() == REPLACE else field_of(self.name)

    @property
    def title(self) -> str:
        """The axis's name for users. For an axis that replaces text, it includes the text to search for."""
        return f"{REPLACE} {self.values[0]}" if self.field == REPLACE else self.name


def axes_of(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Parse axes such as `seed=1..4`, `lora:678=0,0.5,1`, `cfg=4..8/0.5`, `size=512x768|768x512` or `s/r=red,blue`.

    Raises: UsageError (`bad-grid`): an axis is invalid, or the axes cannot be combined.
    """
    axes = tuple(_axis(text) for text in texts)
    if not 1 <= len(axes) <= 2:
        raise bad_grid(f"a grid has one axis or two, not {len(axes)}")
    fields = [axis.field for axis in axes]
    replaced = {axis.values[0] for axis in axes if axis.field == REPLACE}
    is_twice = len(set(fields)) < len(fields) and len(replaced) < 2
    if is_twice or ("size" in fields and {"width", "height"} & set(fields)):
        raise bad_grid(f"both axes change the same field: {axes[0].name} and {axes[-1].name}")
    cells = len(axes[0].values) * (len(axes[1].values) if len(axes) > 1 else 1)
    if cells > MOST_CELLS:
        raise bad_grid(f"the grid has {cells} cells; the limit is {MOST_CELLS}", "render the grid in several parts")
    return axes


def changes_of(values: Sequence[tuple[Axis, str]], prompts: tuple[str, str]) -> Iterator[Change]:
    """Yield the recipe changes for a cell's values, in an order in which no change undoes an earlier one."""
    plain = [(axis, value) for axis, value in values if axis.field != REPLACE]
    now = dict(zip(WORDS, prompts, strict=True))
    for axis, value in sorted(plain, key=lambda each: _RANK.get(each[0].field, 2)):
        now |= {axis.field: value} if axis.field in WORDS else {}
        yield axis.name, value
    replacing = [(axis.values[0], value) for axis, value in values if axis.field == REPLACE]
    for wanted, value in replacing:
        if not any(wanted in text for text in now.values()):
            raise bad_grid(
                f"`{wanted}` does not occur in the prompt", "s/r searches for its first value exactly as written"
            )
        now = {field: text.replace(wanted, value) for field, text in now.items()}
    if replacing:
        yield from now.items()


def bad_grid(message: str, hint: str | None = None) -> UsageError:
    """Return the error (`bad-grid`) for an invalid grid."""
    return UsageError(message, hint=hint, code=Cause.BAD_GRID)


def _axis(text: str) -> Axis:
    # for a LoRA, split at the last "=": its ref may be a URL that contains "="
    is_lora = text.strip().lower().startswith("lora:")
    name, sign, listed = text.rpartition("=") if is_lora else text.partition("=")
    name = name.strip()
    if not sign or not name:
        raise bad_grid(f"--grid {text}: expected FIELD=VALUE,VALUE, such as seed=1..4")
    separator = "|" if re.search(r"(?<!\\)\|", listed) else ","
    parts = [
        part.replace(f"\\{separator}", separator).strip()
        for part in re.split(rf"(?<!\\){re.escape(separator)}", listed)
    ]
    axis = Axis(name, tuple(value for part in parts for value in _counted(name, part)))
    if axis.field in ONE_PICTURE:
        raise bad_grid(f"--grid {text}: each cell is exactly one picture", "to vary the seed, use --grid seed=1..4")
    if len(axis.values) < 2:
        raise bad_grid(
            f"--grid {text}: an axis needs at least two values",
            "separate the values with commas, or with | if a value contains a comma",
        )
    if axis.field == REPLACE and not axis.values[0]:
        raise bad_grid(f"--grid {text}: the first value is the text to search for in the prompt; it cannot be empty")
    twice = next((value for position, value in enumerate(axis.values) if value in axis.values[:position]), None)
    if twice is not None:
        raise bad_grid(f"--grid {text}: the value `{twice}` occurs twice")
    return axis


def _counted(name: str, part: str) -> Sequence[str]:
    """Return the numbers of a range such as `1..4` if the field is numeric; otherwise, return `part` unchanged."""
    found = _RANGE.fullmatch(part) if is_number(name) else None
    if found is None:
        return [part]
    first, last, step = Decimal(found[1]), Decimal(found[2]), Decimal(found[3] or "1")
    if found[3] is None and not (first == int(first) and last == int(last)):
        raise bad_grid(f"`{part}`: a range of non-integers needs a step", "for example 0..1/0.25")
    if step == 0:
        raise bad_grid(f"`{part}`: the step is 0")
    count = int(abs(last - first) / step) + 1
    if count > MOST_CELLS:
        raise bad_grid(f"`{part}` has {count} values; a grid can have at most {MOST_CELLS} cells")
    towards = step if last >= first else -step
    return [f"{(first + towards * number).normalize():f}" for number in range(count)]
