"""Shows the rows of a long result as they arrive, in every output mode, without storing them."""

from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

from civman.cli.output import Output
from civman.cli.table_layout import Column, GrowingTable
from civman.errors import CivmanError, Interrupted


class StreamedRows:
    """The rows of one result. Use it as a context manager: leaving it ends the result, even after an error.

    With `--json`, the rows are a list in one object, as in other results. If an error ends the list early, the object
    contains the rows so far and the error.
    """

    def __init__(self, output: Output, kind: str, columns: Sequence[Column], *, empty: str) -> None:
        """`empty` is the text printed instead of a table if there are no rows."""
        self._output = output
        self._kind = kind
        self._columns = columns
        self._empty = empty
        self._waiting: list[Sequence[str]] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
            if self._output.as_json:
                self._output.end_list(self._kind, self._count)
            elif not self._count and not self._output.quiet:
                self._output.console().print(self._empty)
            return
        if isinstance(error, KeyboardInterrupt):
            self.flush()
            error = Interrupted("stopped", hint="the rows above are complete; later rows are missing")
        if isinstance(error, CivmanError):
            self.flush()
            if self._output.as_json and self._count:
                self._output.end_list(self._kind, self._count, error)
            if kind is not type(error):
                raise error

    def add(self, value: object, cells: Sequence[str], ref: str) -> None:
        """Add a row: its JSON value, its cells in the table, and its line for --quiet."""
        if self._output.as_json:
            self._output.list_item(self._kind, value, self._count)
        elif self._output.quiet:
            self._output.line(ref)
        else:
            self._waiting.append(cells)
        self._count += 1

    def flush(self) -> None:
        """Show all rows that were added so far."""
        if self._waiting:
            self._table.print(self._waiting)
            self._waiting = []
        self._output.flush()

    @cached_property
    def _table(self) -> GrowingTable:
        return GrowingTable(self._output.console(), self._columns)
