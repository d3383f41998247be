"""Upgrade a database to the newest revision.

This module imports Alembic, so `open_database.prepare` imports it only if an upgrade is needed.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from civman.errors import Cause, LibraryError
from civman.index.database import connect, library_error, translated, use_wal
from civman.index.revisions import read_revision, refuse_unknown, revision_of
from civman.index.search_rows import refill_if_empty
from civman.system.move_files import remove_file, replace_file

KEPT_BACKUPS = 3


def migrations_folder() -> Path:
    """The folder of the migrations: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def upgrade(path: Path, *, migrations: Path | None = None, target: str = "head") -> None:
    """Create or upgrade the database at `path` to revision `target`. If the upgrade fails, nothing is changed.

    A copy of the old database is kept in the same folder. Several processes may call this at once: the first one does
    the work, the others wait.

    Raises: NewerLibrary, LibraryError.
    """
    scripts = ScriptDirectory(str(migrations or migrations_folder()))
    known = frozenset(script.revision for script in scripts.walk_revisions())
    wanted = scripts.as_revision_number(target)
    with translated(path):
        # refuse an unknown revision before anything is written, including the journal mode
        refuse_unknown(path, read_revision(path), known)
    with _locked(path) as connection:
        driver = _driver(connection)
        revision = revision_of(driver, path)
        refuse_unknown(path, revision, known)
        if revision != wanted:
            if revision is not None:
                back_up(path, label=revision)
            config = Config()
            config.set_main_option("script_location", str(scripts.dir).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, target)
            refill_if_empty(driver)
            _check_references(driver, path)
    with translated(path):
        with_log = connect(path)
        try:
            use_wal(with_log)
        finally:
            with_log.close()


@contextmanager
def _locked(path: Path) -> Iterator[Connection]:
    """Open a connection inside `BEGIN IMMEDIATE` with foreign keys off; commit at the end, roll back on any error.

    With foreign keys on, rebuilding a parent table would silently delete the rows that refer to it with ON DELETE
    CASCADE. Foreign keys cannot be switched off inside a transaction, so they are switched off when connecting.
    """

    def make() -> sqlite3.Connection:
        connection = connect(path, mode="rwc")
        connection.execute("PRAGMA foreign_keys = OFF")
        return connection

    engine = create_engine("sqlite://", creator=make, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with translated(path), engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise library_error(path, error.orig) from error
        raise
    finally:
        engine.dispose()


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _check_references(driver: sqlite3.Connection, path: Path) -> None:
    broken = driver.execute("PRAGMA foreign_key_check").fetchall()
    if broken:
        tables = sorted({str(row[0]) for row in broken})
        raise LibraryError(
            f"the upgrade would leave rows with broken references, so it was undone: {', '.join(tables)}",
            code=Cause.LIBRARY_UPGRADE,
            hint="report this, with the civman versions before and after the upgrade",
            path=str(path),
            tables=tables,
        )


def back_up(path: Path, *, label: str) -> Path:
    """Copy the database to a backup file and keep the three newest backups. Returns the path of the copy."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    copy = path.with_name(f"{path.name}.backup-{stamp}-{label}")
    unfinished = path.with_name(f"{path.name}.unfinished-{stamp}")
    try:
        with translated(path):
            source, sink = connect(path), sqlite3.connect(unfinished)
            try:
                source.backup(sink)
            finally:
                sink.close()
                source.close()
        replace_file(unfinished, copy)
        for old in sorted(path.parent.glob(f"{path.name}.backup-*"))[:-KEPT_BACKUPS]:
            remove_file(old)
    except OSError as error:
        raise LibraryError(
            f"the database could not be backed up before the upgrade: {copy}",
            code=Cause.LIBRARY_BACKUP,
            hint="free some disk space",
            path=str(copy),
        ) from error
    finally:
        remove_file(unfinished, missing_ok=True)
    return copy
