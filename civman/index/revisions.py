"""Find out which revision a database has, and whether this version of civman knows it. Standard library only."""

import sqlite3
from pathlib import Path

from civman.errors import Cause, LibraryError, NewerLibrary
from civman.index.database import connect_reader

HEAD = "20261128_verdicts"
"""The newest revision in migrations/ (checked by a test). Comparing with it avoids importing Alembic."""


def read_revision(path: Path) -> str | None:
    """The revision of a database; None if the file is missing or empty.

    Raises: LibraryError: the file is a database but not a civman library. sqlite3.Error.
    """
    if not path.exists():
        return None
    connection = connect_reader(path)
    try:
        return revision_of(connection, path)
    finally:
        connection.close()


def revision_of(connection: sqlite3.Connection, path: Path) -> str | None:
    """The revision of a database that is already open."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" in tables:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is not None:
            return str(row[0])
    elif not tables:
        return None
    raise LibraryError(
        f"this database does not belong to civman: {path}",
        code=Cause.LIBRARY_FOREIGN,
        hint="use another library with --library",
        path=str(path),
    )


def refuse_unknown(path: Path, revision: str | None, known: frozenset[str]) -> None:
    """Raise NewerLibrary if `revision` is not in `known`."""
    if revision is not None and revision not in known:
        raise NewerLibrary(
            f"this library was written by a newer version of civman (revision {revision}): {path}",
            path=str(path),
            revision=revision,
            newest_known=HEAD,
        )
