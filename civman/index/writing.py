"""The write side's connection: one transaction per use case. Imports SQLAlchemy: `Index` imports this late."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from civman.index.database import connect, library_error, translated, use_wal


class Writer:
    """One connection that writes, made on first use. Every transaction takes the write lock at its start.

    `BEGIN IMMEDIATE` rather than the driver's default: a transaction that starts by reading and writes later fails at
    once when another process wrote in between, whatever the busy timeout.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=StaticPool, hide_parameters=True)
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All of it is written or nothing. Raises: LibraryError."""
        try:
            with translated(self._path), self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise library_error(self._path, error.orig) from error
            raise

    def close(self) -> None:
        """Gives the connection back."""
        self._engine.dispose()

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path)
        try:
            use_wal(connection)
            # FULL: a row that was reported as written survives a power cut.
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection
