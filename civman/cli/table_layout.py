"""Tables that remain readable at any terminal width.

References and digests are never broken, words are never split, and less important columns are left out when the
terminal is too narrow for all of them. Without a terminal, nothing is shortened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from civman.cli.output import clean

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
"""The number of spaces between two columns."""
_LONGEST_WORD = 18
"""Words of up to this many characters are never shortened; longer ones, such as file names, end with "…" if necessary.
"""


_LEAST_TEXT = 18
"""The minimum width of a text column in characters. Other columns are left out before it becomes narrower."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `is_whole`: values are never broken or shortened (refs, digests, sizes). `is_one_line`: values are shortened instead
    of wrapped. `drop`: in a narrow terminal, the columns with the highest number are left out first; columns with 0 are
    always shown.
    """

    title: str
    style: str = ""
    is_whole: bool = False
    drop: int = 0
    is_right: bool = False
    is_one_line: bool = False


def print_table(
    console: "Console", columns: Sequence[Column], rows: Sequence[Sequence[str]], *, has_header: bool = True
) -> None:
    """Print `rows` under `columns`, fitted to the width of `console`. Columns without any value are left out."""
    GrowingTable(console, columns, has_header=has_header).print(rows)


class GrowingTable:
    """A table printed in several parts. Column widths stay the same, unless a later part needs wider columns."""

    def __init__(self, console: "Console", columns: Sequence[Column], *, has_header: bool = True) -> None:
        self._console = console
        self._columns = columns
        self._has_header = has_header
        self._widths = [0] * len(columns)

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Print further rows; the header is printed once, above the first ones."""
        self._widths = _print_rows(
            self._console, self._columns, rows, has_header=self._has_header, before=self._widths
        )  # fmt: skip
        self._has_header = False


def _print_rows(
    console: "Console",
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    has_header: bool,
    before: Sequence[int],
) -> list[int]:
    """Print rows and return the width of each column; `before`: the widths of the columns in the rows above."""
    from rich.table import Table  # the import takes 0.02 s, which --json and --quiet can skip
    from rich.text import Text

    cells = [[clean(cell) for cell in row] for row in rows]
    chosen = [index for index, wide in enumerate(before) if wide or any(row[index] for row in cells) or not cells]
    limit = console.width if console.is_terminal or console.width < UNLIMITED else None
    titled = [columns[index] if has_header else replace(columns[index], title="") for index in chosen]
    above = [["-" * before[index] for index in chosen]] if any(before) else []
    widths = fitted_widths(titled, [[row[index] for index in chosen] for row in cells] + above, limit)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_header=has_header)
    shown = [(index, width) for index, width in zip(chosen, widths, strict=True) if width]
    for index, width in shown:
        column = columns[index]
        table.add_column(
            column.title, style=column.style or None, justify="right" if column.is_right else "left", width=width,
            no_wrap=column.is_whole or column.is_one_line, overflow="ellipsis",
        )  # fmt: skip
    for row in cells:
        table.add_row(*(Text(row[index]) for index, _ in shown))
    if limit is None:
        console.width = max(console.width, _total(widths, range(len(widths))))
    console.print(table, crop=False)
    found = dict(shown)
    return [found.get(index, 0) for index in range(len(columns))]


UNLIMITED = 200
"""The console width used without a terminal (see `Output.console`), at which no column is shortened."""


def fitted_widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], limit: int | None) -> list[int]:
    """Compute the width of each column in cells; 0 means left out. Without a `limit`, columns are as wide as needed."""
    from rich.cells import cell_len

    def longest(texts: Sequence[str]) -> int:
        return max(map(cell_len, texts), default=0)

    natural = [longest([column.title, *(row[i] for row in rows)]) for i, column in enumerate(columns)]
    if limit is None:
        return natural
    least = [
        wide if column.is_whole else min(wide, max(cell_len(column.title), _longest_word(rows, i), _LEAST_TEXT))
        for i, (column, wide) in enumerate(zip(columns, natural, strict=True))
    ]
    kept = list(range(len(columns)))
    while _total(least, kept) > limit and any(columns[i].drop for i in kept):
        kept.remove(max(kept, key=lambda i: columns[i].drop))
    return _shared_out(columns, natural, least, kept, limit)


def _shared_out(
    columns: Sequence[Column], natural: Sequence[int], least: Sequence[int], kept: Sequence[int], limit: int
) -> list[int]:
    """Give each column its minimum width, then distribute the remaining cells among the columns that need more.

    `kept`: the indices of the columns to show.
    """
    widths = [least[i] if i in kept else 0 for i in range(len(columns))]
    room = limit - _total(widths, kept)
    while room > 0 and (hungry := [i for i in kept if widths[i] < natural[i]]):
        widths[min(hungry, key=lambda i: widths[i] / natural[i])] += 1
        room -= 1
    while room < 0 and (soft := [i for i in kept if not columns[i].is_whole and widths[i] > 1]):
        widths[max(soft, key=lambda i: widths[i])] -= 1
        room += 1
    return widths


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[i] for i in kept) + _GAP * max(len(kept) - 1, 0)


def _longest_word(rows: Sequence[Sequence[str]], column: int) -> int:
    from rich.cells import cell_len

    words = (cell_len(word) for row in rows for word in row[column].split())
    return min(max(words, default=0), _LONGEST_WORD)
