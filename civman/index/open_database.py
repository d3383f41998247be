"""Makes sure that a database is there and has this civman's tables, before anybody reads or writes."""

from pathlib import Path

from civman.errors import LibraryError
from civman.index.database import translated
from civman.index.revisions import HEAD, read_revision


def prepare(path: Path) -> None:
    """Creates the database at `path` or brings it up to date; does nothing to one that is.

    Raises: NewerLibrary: a revision this civman does not know; the file stays as it is. LibraryError: not ours, or
    SQLite cannot use it.
    """
    with translated(path):
        if read_revision(path) == HEAD:
            return
    # 0.5 to 1.2 s for Alembic and SQLAlchemy, spent only where there is something to do.
    from civman.index.migrate import upgrade

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LibraryError(
            f"the library's folder cannot be made: {path.parent}",
            code="library-read-only",
            hint="choose another place with --library",
            path=str(path.parent),
        ) from error
    upgrade(path)
