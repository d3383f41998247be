"""Opens connections to the library's database and translates SQLite's errors. Imports only the standard library.

All reads use the standard `sqlite3` module, because importing SQLModel and SQLAlchemy takes 0.5 to 1.3 s and `civman
list` should take about as long as `civman --help`.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from civman.errors import Cause, LibraryError

BUSY_TIMEOUT_S = 30.0
"""How long to wait for a database lock that another process holds."""

_SIDE_FILES = 256 << 10
_IN_USE = "the library's database is in use by another program"
_MEANINGS = {  # maps SQLite's primary result code to (civman's error code, message, hint)
    sqlite3.SQLITE_BUSY: (
        Cause.LIBRARY_LOCKED,
        _IN_USE,
        "wait until the other program has finished, then try again",
    ),
    sqlite3.SQLITE_LOCKED: (
        Cause.LIBRARY_LOCKED,
        _IN_USE,
        "wait until the other program has finished, then try again",
    ),
    sqlite3.SQLITE_CORRUPT: (
        Cause.LIBRARY_MALFORMED,
        "the library's database is damaged",
        "replace it with a copy (`library.db.backup-…`), or move the file away and run `civman verify --rebuild`",
    ),
    sqlite3.SQLITE_NOTADB: (
        Cause.LIBRARY_NOT_A_DATABASE,
        "the library's file is not a database",
        "move the file away and run `civman verify --rebuild`, or use another library with --library",
    ),
    sqlite3.SQLITE_FULL: (
        Cause.DISK_FULL,
        "the library's database cannot grow, because the disk is full",
        "free some space, then try again",
    ),
    sqlite3.SQLITE_READONLY: (
        Cause.LIBRARY_READ_ONLY,
        "the library's database cannot be written",
        "check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        Cause.LIBRARY_READ_ONLY,
        "the library's database cannot be opened",
        "check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_PERM: (
        Cause.LIBRARY_READ_ONLY,
        "the library's database cannot be opened",
        "check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_AUTH: (
        Cause.LIBRARY_READ_ONLY,
        "the library's database cannot be opened",
        "check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_IOERR: (
        Cause.LIBRARY_IO,
        "the library's database cannot be read or written",
        "check the disk and its connection",
    ),
}


def library_error(path: Path, error: sqlite3.Error) -> LibraryError:
    """Return the LibraryError for a SQLite error, chosen by SQLite's result code."""
    number = getattr(error, "sqlite_errorcode", None)
    if number is None:
        raise error  # any other error means that civman misuses the driver, which is a bug
    primary = number & 0xFF
    if primary == sqlite3.SQLITE_IOERR and _is_full(path):
        primary = sqlite3.SQLITE_FULL
    code, message, hint = _MEANINGS.get(
        primary,
        (
            Cause.INDEX,
            f"the library's database cannot be used ({error})",
            "run `civman verify --rebuild` on a copy, or report the error",
        ),
    )
    return LibraryError(f"{message}: {path}", hint=hint, code=code, path=str(path), sqlite=error.sqlite_errorname)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Convert errors from SQLite, file access and text that is not Unicode (e.g. file names) to civman's errors."""
    try:
        yield
    except sqlite3.Error as error:
        raise library_error(path, error) from error
    except OSError as error:
        raise LibraryError(
            f"the library's database cannot be accessed ({error.strerror}): {path}",
            code=Cause.LIBRARY_READ_ONLY,
            hint="check the permissions of the file and its folder",
            path=str(path),
        ) from error
    except UnicodeEncodeError as error:
        raise LibraryError(
            f"text that is not Unicode cannot be stored: {error.object!a}", code=Cause.BAD_TEXT, hint="rename the file"
        ) from error


def connect(path: Path, *, mode: str = "rw", timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Open a connection in autocommit mode with foreign keys on. `mode` is a mode of SQLite's URIs, or "immutable"."""
    query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, even if this user may not write to the file or its folder.

    A database in WAL mode needs its side files even for reading. If they are missing and cannot be created, because
    permission is missing or the disk is full, the database is opened as immutable. That is only done if no WAL file
    contains newer data.
    """
    last: sqlite3.Error | None = None
    for mode in ("rw", "ro", "immutable"):
        if mode == "immutable" and _has_log(path):
            break
        try:
            connection = connect(path, mode=mode)
        except sqlite3.Error as error:
            last = error
            continue
        try:
            connection.execute("PRAGMA query_only = ON")
            # 64 MB page cache: with SQLite's 2 MB default, reading 30,000 rows through another table's index rereads
            # the same pages many times
            connection.execute("PRAGMA cache_size = -65536")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            last = error
            known = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
            if not known and not _is_full(path):
                raise
        else:
            return connection
    assert last is not None
    raise last


def use_wal(connection: sqlite3.Connection) -> None:
    """Switch the database to write-ahead logging, so that readers and a writer do not block each other.

    The switch needs exclusive access and does not always honour the busy timeout. If it fails, the next process tries
    again. Until then, the rollback journal is used, which is just as safe.
    """
    deadline = time.monotonic() + 2.0
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)


class Reader:
    """A read-only connection with query methods."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = Path(os.path.normpath(path.parent.absolute()))
        with translated(path):
            self._connection = connect_reader(path)

    def all(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows, which come from one consistent snapshot."""
        with translated(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Run one statement and return its first row, or None if there is none."""
        with translated(self.path):
            row: tuple[Any, ...] | None = self._connection.execute(sql, parameters).fetchone()
            return row

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make all queries inside the `with` block see the same state, even if other processes write meanwhile."""
        with translated(self.path):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with translated(self.path):
                self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        with translated(self.path):
            self._connection.close()


def _is_full(path: Path) -> bool:
    """Whether the database's disk has too little free space for SQLite's side files (`-wal`, `-shm`)."""
    import shutil  # imported here, not at the top: it takes 5 ms, and only errors need it

    try:
        return shutil.disk_usage(path.parent).free < _SIDE_FILES
    except OSError:
        return False


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0
