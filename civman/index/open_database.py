"""Creates the database, or upgrades its tables for this version of civman, before anyone reads or writes it."""

from pathlib import Path

from civman.errors import Cause, LibraryError
from civman.index.database import translated
from civman.index.revisions import HEAD, read_revision


def prepare(path: Path) -> None:
    """Create the database at `path` or upgrade it; do nothing if it is up to date.

    Raises: NewerLibrary: the database has an unknown revision; it is left unchanged. LibraryError: it is not a civman
        library, or SQLite cannot use it.
    """
    with translated(path):
        if read_revision(path) == HEAD:
            return
    # importing Alembic and SQLAlchemy takes 0.5 to 1.2 s, so do it only if there is something to upgrade
    from civman.index.migrate import upgrade

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LibraryError(
            f"cannot create the library's folder: {path.parent}",
            code=Cause.LIBRARY_READ_ONLY,
            hint="choose another folder with --library",
            path=str(path.parent),
        ) from error
    upgrade(path)
