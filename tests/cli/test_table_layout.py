"""Tables at any width: references whole, words whole, less important columns dropped first."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from civman.cli.table_layout import Column, fitted_widths, print_table

COLUMNS = (
    Column("ref", is_whole=True),
    Column("name"),
    Column("type", drop=1),
    Column("base model", drop=2),
    Column("size", is_whole=True, is_right=True),
    Column("sha256", is_whole=True, drop=3),
)
ROW = (
    "827184@2514310+98103", "Harbour Light in the rain v2.0", "Checkpoint", "SD 1.5", "8.49 MB",
    "ac83e9f73427",
)  # fmt: skip


def printed(width: int, *rows: tuple[str, ...]) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, emoji=False, markup=False)
    print_table(console, COLUMNS, rows)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 199])
def test_refs_and_digests_are_whole_and_lines_fit(width: int) -> None:
    lines = printed(width, ROW, ROW)

    assert all(cell_len(line) <= width for line in lines)
    assert sum("827184@2514310+98103" in line for line in lines) == 2
    assert ("ac83e9f73427" in "".join(lines)) == ("sha256" in lines[0])
    assert {"Harbour", "Light", "rain"} <= set(" ".join(lines).split())


def test_the_least_important_columns_go_first() -> None:
    assert printed(60, ROW)[0].split() == ["ref", "name", "size"]
    assert printed(70, ROW)[0].split() == ["ref", "name", "type", "size"]
    assert "sha256" in printed(100, ROW)[0]


def test_nothing_is_cut_without_a_terminal() -> None:
    row = (*ROW[:1], "x" * 300, *ROW[2:])

    lines = printed(200, row)

    assert len(lines) == 2
    assert "x" * 300 in lines[1]
    assert "ac83e9f73427" in lines[1]


def test_a_column_without_values_is_left_out() -> None:
    assert printed(100, (*ROW[:3], "", *ROW[4:]))[0].split() == ["ref", "name", "type", "size", "sha256"]


WORDS = st.text(st.sampled_from("abc 猫é"), max_size=40)


@settings(deadline=None)
@given(st.lists(st.tuples(*(WORDS for _ in COLUMNS)), max_size=4), st.integers(1, 250))
def test_widths_never_exceed_the_limit_while_something_can_give(rows: list[tuple[str, ...]], limit: int) -> None:
    widths = fitted_widths(COLUMNS, rows, limit)

    shown = [width for width in widths if width]
    whole = [width for width, column in zip(widths, COLUMNS, strict=True) if width and column.is_whole]
    soft = len(shown) - len(whole)
    assert sum(shown) + 2 * (len(shown) - 1) <= max(limit, sum(whole) + soft + 2 * (len(shown) - 1))
    for index, (width, column) in enumerate(zip(widths, COLUMNS, strict=True)):
        if width and column.is_whole:
            assert width == max(cell_len(column.title), *(cell_len(row[index]) for row in rows), 0)
