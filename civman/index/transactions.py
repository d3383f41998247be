"""Writes to the database: one transaction per operation, built from a few kinds of statement.

Like the reads, the writes use the standard `sqlite3` module. SQLAlchemy takes 0.4 s of CPU to import and 0.15 s to shut
down, and the threads of a download would wait for the interpreter meanwhile. The tables themselves are SQLModel classes
(`tables`, `migrations/`); a test compares the columns written here with them.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from civman.index.database import connect, translated, use_wal

Connection = sqlite3.Connection
Values = Mapping[str, Any]
IN_LIST = "IN (SELECT value FROM json_each(?))"
"""An SQL `IN` expression with a single parameter, made by `listed`, that can contain any number of values."""


class Writer:
    """One connection for writing, opened on first use. Every transaction takes the write lock when it starts.

    It uses `BEGIN IMMEDIATE` instead of the driver's default. Otherwise, a transaction that reads first and writes
    later would fail at once if another process wrote in between, whatever the busy timeout.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit all changes inside the block, or none. Raises: LibraryError."""
        with translated(self._path):
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have ended the transaction already
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        connection = connect(self._path)
        try:
            use_wal(connection)
            # synchronous=FULL: a row that was reported as written survives a power failure
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def insert(connection: Connection, table: str, rows: Sequence[Values]) -> None:
    """Insert rows. All of them must have the same columns as the first one."""
    if rows:
        connection.executemany(_insert_into(table, rows[0]), rows)


def insert_or_update(
    connection: Connection, table: str, key: str, changes: Mapping[str, str], rows: Sequence[Values]
) -> None:
    """Insert rows. If a row with the same `key` exists, set its columns to the expressions in `changes` instead."""
    if rows:
        changed = ", ".join(f'"{name}" = {expression}' for name, expression in changes.items())
        connection.executemany(f"{_insert_into(table, rows[0])} ON CONFLICT ({key}) DO UPDATE SET {changed}", rows)


def update(connection: Connection, table: str, names: Iterable[str], where: str, rows: Sequence[Values]) -> int:
    """Set the columns `names` of the rows that match `where`, once for each of `rows`. Returns how many rows changed.

    `where` refers to the values of `rows` as `:name`.
    """
    changed = ", ".join(f'"{name}" = :{name}' for name in names)
    return connection.executemany(f"UPDATE {table} SET {changed} WHERE {where}", rows).rowcount  # noqa: S608


def named(connection: Connection, sql: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
    """Run a SELECT and return its rows, whose columns can be read by name."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(sql, parameters).fetchall()


# the result has the type Any, because the type of a value depends on the column
def scalar(connection: Connection, sql: str, parameters: Sequence[object] = ()) -> Any:
    """Run a SELECT and return the first column of its first row, or None."""
    row = connection.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


def listed(values: Iterable[object]) -> str:
    """The parameter value for `IN_LIST`."""
    return json.dumps(list(values))


def _insert_into(table: str, row: Values) -> str:
    columns, places = ", ".join(f'"{name}"' for name in row), ", ".join(f":{name}" for name in row)
    return f"INSERT INTO {table} ({columns}) VALUES ({places})"  # noqa: S608  names of ours only
