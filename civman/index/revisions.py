"""Which revision a database is at, and whether this civman knows it. Standard library only."""

import sqlite3
from pathlib import Path

from civman.errors import LibraryError, NewerLibrary
from civman.index.database import connect_reader

HEAD = "20261124_renderings"
"""The newest revision in migrations/ (a test compares): lets an up-to-date library open without Alembic."""


def read_revision(path: Path) -> str | None:
    """The revision a database is at; None where there is none yet or the file is empty.

    Raises: LibraryError: a database, but no library. sqlite3.Error.
    """
    if not path.exists():
        return None
    connection = connect_reader(path)
    try:
        return revision_of(connection, path)
    finally:
        connection.close()


def revision_of(connection: sqlite3.Connection, path: Path) -> str | None:
    """As `read_revision`, on an open connection."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" in tables:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is not None:
            return str(row[0])
    elif not tables:
        return None
    raise LibraryError(
        f"a database, but not civman's: {path}",
        code="library-foreign",
        hint="use another library with --library",
        path=str(path),
    )


def refuse_unknown(path: Path, revision: str | None, known: frozenset[str]) -> None:
    """Raises: NewerLibrary: `revision` is none of `known`."""
    if revision is not None and revision not in known:
        raise NewerLibrary(
            f"a newer civman wrote this library (revision {revision}): {path}",
            path=str(path),
            revision=revision,
            newest_known=HEAD,
        )
