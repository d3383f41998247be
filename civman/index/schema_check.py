"""Check that a database is intact and has the expected tables. Imports SQLModel, so only `doctor` uses it."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from civman.index.database import connect, translated
from civman.index.tables import SEARCH_TABLES, metadata


def faults(path: Path) -> tuple[str, ...]:
    """Describe each problem of the database: damaged pages, dangling references, unexpected tables or columns.

    Raises: LibraryError: SQLite cannot read the database at all.
    """
    engine = create_engine("sqlite://", creator=lambda: connect(path, mode="ro"), poolclass=NullPool)
    try:
        with translated(path), engine.connect() as connection:
            found = [text for (text,) in connection.exec_driver_sql("PRAGMA quick_check(5)") if text != "ok"]
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            found += [f"a row of `{table}` refers to a missing row of `{other}`" for table, _, other, _ in broken[:5]]
            context = MigrationContext.configure(connection, opts={"include_name": _is_ours})
            return (*found, *(_words(change) for change in compare_metadata(context, metadata)))
    finally:
        engine.dispose()


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    """Whether civman defines the table; False for full-text tables and SQLite's internal tables."""
    return kind != "table" or (name or "").split("_")[0] not in {table.split("_")[0] for table in SEARCH_TABLES}


def _words(change: object) -> str:
    """Describe a difference that Alembic found between the database and the table definitions."""
    first = change[0] if isinstance(change, (list, tuple)) and change else change
    step = first if isinstance(first, tuple) else change
    if not isinstance(step, tuple) or len(step) < 2:
        return f"part of the database does not match the table definitions: {change}"
    name = next((part.name for part in reversed(step) if getattr(part, "name", None)), None)
    verb, _, what = str(step[0]).partition("_")
    how = {"add": "is missing", "remove": "should not exist", "modify": "does not match its definition"}.get(verb, verb)
    return f"{what or 'part'} `{name or step[-1]}` {how}"
