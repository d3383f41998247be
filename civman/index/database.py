"""Connections to the library's database and what its failures mean. Standard library only.

SQLite's own module serves all reading, since SQLModel and SQLAlchemy take 0.5 to 1.3 s to import and `civman list`
should take about as long as `civman --help`.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from civman.errors import LibraryError

BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process that writes."""

_MEANINGS = {  # primary result code → our code, words, way out
    sqlite3.SQLITE_BUSY: ("library-locked", "is in use by another program", "wait until it is done, then try again"),
    sqlite3.SQLITE_LOCKED: ("library-locked", "is in use by another program", "wait until it is done, then try again"),
    sqlite3.SQLITE_CORRUPT: (
        "library-malformed",
        "is damaged",
        "put a copy `library.db.backup-…` in its place, or move the file away and run `civman verify --rebuild`",
    ),
    sqlite3.SQLITE_NOTADB: (
        "library-not-a-database",
        "is not a database",
        "move the file away and run `civman verify --rebuild`, or use another library with --library",
    ),
    sqlite3.SQLITE_FULL: ("disk-full", "cannot grow: the disk is full", "free some room, then try again"),
    sqlite3.SQLITE_READONLY: ("library-read-only", "cannot be written", "check who owns the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("library-read-only", "cannot be opened", "check who owns the file and its folder"),
    sqlite3.SQLITE_PERM: ("library-read-only", "cannot be opened", "check who owns the file and its folder"),
    sqlite3.SQLITE_AUTH: ("library-read-only", "cannot be opened", "check who owns the file and its folder"),
    sqlite3.SQLITE_IOERR: ("library-io", "cannot be read or written", "check the disk and its connection"),
}


def library_error(path: Path, error: sqlite3.Error) -> LibraryError:
    """What SQLite's `error` means to a person, judged by its result code alone."""
    number = getattr(error, "sqlite_errorcode", None)
    if number is None:
        raise error  # misuse of the driver: a bug of ours
    code, words, hint = _MEANINGS.get(
        number & 0xFF,
        ("index", f"cannot be used ({error})", "run `civman verify --rebuild` on a copy, or report this"),
    )
    return LibraryError(
        f"the library's database {words}: {path}", hint=hint, code=code, path=str(path), sqlite=error.sqlite_errorname
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours, and text that cannot be stored (a file name that is not UTF-8) too."""
    try:
        yield
    except sqlite3.Error as error:
        raise library_error(path, error) from error
    except OSError as error:
        raise LibraryError(
            f"the library's database cannot be reached ({error.strerror}): {path}",
            code="library-read-only",
            hint="check who owns the file and its folder",
            path=str(path),
        ) from error
    except UnicodeEncodeError as error:
        raise LibraryError(
            f"text that is not Unicode cannot be kept: {error.object!a}", code="bad-text", hint="rename the file"
        ) from error


def connect(path: Path, *, mode: str = "rw", timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection in autocommit, foreign keys on. `mode` as in SQLite's addresses, or "immutable"."""
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
    """A connection that cannot write, also to a file or in a folder where nobody may.

    A database in WAL mode needs its side files even to be read. Where they can be neither found nor made, the file
    is read as immutable, which is right as long as nobody writes: no one can here, and no log is left beside it.
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
            # 64 MB: walking 30,000 rows by another table's index reads each page many times over with SQLite's 2 MB
            connection.execute("PRAGMA cache_size = -65536")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            last = error
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise
        else:
            return connection
    assert last is not None
    raise last


def use_wal(connection: sqlite3.Connection) -> None:
    """Switches to write-ahead logging, by which readers and a writer do not wait for each other.

    The switch wants the file for itself and does not always honour the busy timeout. Whoever fails leaves it to the
    next one: the older journal is as safe.
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
    """Queries on one connection that cannot write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = Path(os.path.normpath(path.parent.absolute()))
        with translated(path):
            self._connection = connect_reader(path)

    def all(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, which is one snapshot."""
        with translated(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row, if any."""
        with translated(self.path):
            row: tuple[Any, ...] | None = self._connection.execute(sql, parameters).fetchone()
            return row

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All queries within see the same state, whatever others write."""
        with translated(self.path):
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with translated(self.path):
                self._connection.execute("COMMIT")

    def close(self) -> None:
        """Gives the connection back."""
        with translated(self.path):
            self._connection.close()


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0
