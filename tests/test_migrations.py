"""Revisions: they lead to the tables as written, keep every row, and leave the old file usable when they fail."""

import ast
import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from civman.domain.catalog import VersionId
from civman.errors import LibraryError
from civman.index import AssetFilter, Index
from civman.index.migrate import migrations_folder, upgrade
from civman.index.revisions import HEAD, read_revision
from civman.index.tables import metadata

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = ScriptDirectory(str(migrations_folder()))
REVISIONS = list(SCRIPTS.walk_revisions())[::-1]
FIRST = "20261122_first"
SEARCH = "20261123_search"
T = "2026-01-01T00:00:00.000000+00:00"

# Rows for the schema of each revision, parents before children, written once and never changed: what a user's library
# held at that time. A new revision adds its own entry where it adds tables or columns that may not be NULL.
ROWS = {
    FIRST: f"""
        INSERT INTO model (id, name, type, type_raw, nsfw, nsfw_level, real_person, tags, is_complete, raw,
                           fetched_at, source)
            VALUES (1, 'Fox', 'LORA', 'LORA', 0, 1, 0, '["a"]', 1, '{{}}', '{T}', 'model');
        INSERT INTO version (id, model_id, position, name, trained_words, is_gated, gate_permanent, nsfw_level, raw,
                             fetched_at, source)
            VALUES (2, 1, 0, 'v1', '["fox"]', 0, 0, 1, '{{}}', '{T}', 'model'),
                   (3, 1, NULL, 'v0', '[]', 1, 0, 1, '{{}}', '{T}', 'model');
        INSERT INTO file (key, version_id, position, file_id, name, type, is_primary, is_linked, pickle_scan,
                          virus_scan, raw)
            VALUES (1, 2, 0, 33, 'fox.safetensors', 'Model', 1, 0, 'Success', 'Success', '{{}}');
        INSERT INTO preview (version_id, position, url, nsfw_level, media)
            VALUES (2, 0, 'https://a/1', 1, 'image'), (2, 1, 'https://a/2', 1, 'image'),
                   (3, 0, 'https://a/3', 1, 'video');
        INSERT INTO blob (sha256, size_bytes, suffix, declared_by, verified_at, path, kind, architecture, adapter,
                          key_format, precision, claimed_base, trigger_words, flags, conflicts)
            VALUES ('{"a" * 64}', 5, '.safetensors', 'civitai', '{T}', 'blobs/a', '', '', '', '', '', '', '[]', '[]',
                    '[]');
        INSERT INTO asset (id, blob_sha256, model_id, version_id, file_key, name, name_key, stem_key, model_key,
                           search_text, alias, origin, type, type_raw, added_at)
            VALUES (1, '{"a" * 64}', 1, 2, 1, 'fox.safetensors', 'fox.safetensors', 'fox', 'fox', 'fox', 'pet',
                    'civitai', 'LORA', 'LORA', '{T}'),
                   (2, '{"a" * 64}', NULL, NULL, NULL, 'x', 'x', 'x', '', 'x', NULL, 'import', 'Other', '', '{T}');
        INSERT INTO seen_file VALUES ('/x', '1', '2', 3, 4, '{"a" * 64}');
    """,
}
ROWS[SEARCH] = (
    ROWS[FIRST]
    + f"""
        INSERT INTO annotation VALUES (1, 'at 0.8', '["keep"]', '["vixen"]', 5, 1), (2, '', '[]', '[]', NULL, 0);
        INSERT INTO pin VALUES ('{"a" * 64}', 'user', '{T}'), ('{"b" * 64}', 'recipe 1', '{T}');
        INSERT INTO sidecar_due VALUES ('{"a" * 64}', 'ff');
    """
)


def is_ours(name: str | None, kind: str, parents: object) -> bool:
    """The full-text tables are SQLite's own kind and no part of the metadata."""
    return kind != "table" or (name or "").split("_")[0] != "search"


def fill(path: Path, rows: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(rows)


def content(path: Path) -> dict[str, list[dict[str, object]]]:
    """All rows of all tables, by column name."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        names = [name for name in names if is_ours(name, "table", None)]
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in sorted(names)}


def rows_of(revision: str) -> str:
    """The rows of the newest entry that is not newer than `revision`."""
    line = [script.revision for script in SCRIPTS.walk_revisions("base", revision)]
    return next(ROWS[name] for name in line if name in ROWS)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A library with rows at the first revision."""
    path = tmp_path / "library" / "library.db"
    path.parent.mkdir()
    upgrade(path, target=FIRST)
    fill(path, ROWS[FIRST])
    return path


# A next revision that rebuilds every parent table, as SQLite needs for most changes, and adds a column.
REBUILD = """
    import sqlalchemy as sa
    from alembic import op
    revision = "20991231_next"
    down_revision = "{head}"
    def upgrade():
        for table in ("model", "version", "file", "blob"):
            with op.batch_alter_table(table, recreate="always") as batch:
                batch.add_column(sa.Column("extra", sa.String(), nullable=False, server_default="new"))
        {more}
"""


@pytest.fixture
def next_migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    shutil.copytree(migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def write_next(folder: Path, more: str = "pass") -> None:
    text = textwrap.dedent(REBUILD).format(head=HEAD, more=more)
    (folder / "versions" / "20991231_next.py").write_text(text)


def test_constant_names_the_only_head() -> None:
    assert SCRIPTS.get_heads() == [HEAD]
    assert REVISIONS[0].revision == FIRST


def test_revisions_lead_to_the_tables_as_written(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    upgrade(path)

    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        opts = {"compare_type": True, "compare_server_default": True, "include_name": is_ours}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_checks_and_cascades_are_those_of_the_tables(tmp_path: Path) -> None:
    """Alembic does not compare these: SQLite's own text does."""
    path = tmp_path / "library.db"
    upgrade(path)
    wanted = create_engine("sqlite://")
    with wanted.connect() as connection:
        metadata.create_all(connection)
        expected = dict(connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all())
    wanted.dispose()

    with closing(sqlite3.connect(path)) as connection:
        made = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))

    def parts(sql: str) -> list[str]:
        lines = re.sub(r", (?=[a-z_]+ [A-Z])", "\n", sql)  # SQLite writes an added column behind the last one
        return sorted(line.strip().rstrip(",") for line in lines.replace("\t", "").splitlines())

    ours = {name: sql for name, sql in made.items() if name != "alembic_version" and is_ours(name, "table", None)}
    assert {name: parts(sql) for name, sql in ours.items()} == {name: parts(sql) for name, sql in expected.items()}


@pytest.mark.parametrize("revision", [script.revision for script in REVISIONS])
def test_each_revision_keeps_rows_and_child_rows_of_its_predecessor(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "library.db"
    predecessor = SCRIPTS.get_revision(revision).down_revision
    if predecessor is not None:
        upgrade(path, target=str(predecessor))
        fill(path, rows_of(str(predecessor)))
    before = content(path) if predecessor is not None else {}

    upgrade(path, target=revision)

    after = content(path)
    assert {name: len(rows) for name, rows in after.items() if name in before} == {
        name: len(rows) for name, rows in before.items()
    }
    assert after["alembic_version"] == [{"version_num": revision}]
    fill(tmp_path / "library.db", "" if predecessor is not None else rows_of(revision))


def test_library_of_the_very_first_schema_opens_and_reads(old: Path) -> None:
    with Index.open(old) as index:
        assert [asset.name for asset in index.find_by_name("pet")] == ["fox.safetensors"]
        assert index.count() == 2
        version = index.version(VersionId(2))
        assert version is not None
        assert len(version.previews) == 2


def test_words_of_an_old_library_are_found_after_the_upgrade(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE model SET description = '<p>A <b>clever</b> &amp; quick vulpine</p>'")

    with Index.open(old) as index:
        assert [asset.alias for asset in index.assets(AssetFilter(words=("clever & quick",)))] == ["pet"]
        assert index.count(AssetFilter(words=("p",))) == 1, "a beginning of `pet`, and no tag of HTML"
        assert index.count(AssetFilter(words=("b",))) == 0


def test_rebuilding_parents_keeps_their_children(old: Path, next_migrations: Path) -> None:
    write_next(next_migrations)
    before = content(old)

    upgrade(old, migrations=next_migrations)

    after = content(old)
    assert read_revision(old) == "20991231_next"
    assert after["preview"] == before["preview"]
    assert after["asset"] == before["asset"]
    assert after["model"] == [row | {"extra": "new"} for row in before["model"]]
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_upgrade_leaves_a_copy_of_the_old_library_and_keeps_three(old: Path, next_migrations: Path) -> None:
    write_next(next_migrations)
    before = content(old)
    for stamp in ("20200101T000000000000Z", "20210101T000000000000Z", "20220101T000000000000Z"):
        (old.parent / f"library.db.backup-{stamp}-x").write_text("old")

    upgrade(old, migrations=next_migrations)

    copies = sorted(old.parent.glob("library.db.*"))
    assert [copy.name[:22] for copy in copies[:2]] == ["library.db.backup-2021", "library.db.backup-2022"]
    assert len(copies) == 3
    assert copies[2].name.endswith(f"-{FIRST}")
    assert content(copies[2]) == before


def test_library_that_is_up_to_date_is_not_copied(old: Path) -> None:
    upgrade(old, target=FIRST)

    assert [file.name for file in old.parent.iterdir()] == ["library.db"]


@pytest.mark.parametrize(
    "more",
    [
        "raise RuntimeError('in the middle')",
        "op.execute('INSERT INTO nowhere VALUES (1)')",
        "op.execute('DELETE FROM model')",
    ],
    ids=["bug", "bad SQL", "rows with broken references"],
)
def test_revision_that_fails_leaves_the_library_as_it_was(old: Path, next_migrations: Path, more: str) -> None:
    write_next(next_migrations, more)
    before = content(old)

    with pytest.raises((RuntimeError, LibraryError)):
        upgrade(old, migrations=next_migrations)

    assert content(old) == before
    with Index.open(old) as index:
        assert index.count() == 2


def test_process_that_dies_inside_a_revision_leaves_the_library_usable(old: Path, next_migrations: Path) -> None:
    write_next(next_migrations, "import os; os._exit(9)")
    before = content(old)

    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("""
            import sys
            from pathlib import Path
            from civman.index.migrate import upgrade
            upgrade(Path(sys.argv[1]), migrations=Path(sys.argv[2]))
        """), str(old), str(next_migrations)], cwd=REPOSITORY, timeout=60,
    )  # fmt: skip

    assert died.returncode == 9
    assert content(old) == before
    write_next(next_migrations)
    upgrade(old, migrations=next_migrations)
    assert read_revision(old) == "20991231_next"


def test_processes_that_upgrade_at_once_do_it_once(old: Path, next_migrations: Path) -> None:
    write_next(next_migrations)
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from civman.index.migrate import upgrade
        print("ready", flush=True); sys.stdin.readline()
        upgrade(Path(sys.argv[1]), migrations=Path(sys.argv[2]))
    """)
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(old), str(next_migrations)], cwd=REPOSITORY,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    answers = [process.communicate("go\n", timeout=60) for process in running]

    assert answers == [("", "")] * 3
    assert len(list(old.parent.glob("library.db.backup-*"))) == 1
    assert read_revision(old) == "20991231_next"


def test_failed_copy_stops_the_upgrade(old: Path, next_migrations: Path) -> None:
    write_next(next_migrations)
    before = content(old)
    for number in range(3):  # three newest copies that cannot be replaced by a file: folders
        (old.parent / f"library.db.backup-9999010{number}T-x").mkdir()
    (old.parent / "library.db.backup-00000101T-x").mkdir()

    with pytest.raises(LibraryError) as caught:
        upgrade(old, migrations=next_migrations)

    assert caught.value.code == "library-backup"
    assert content(old) == before


def test_migrations_are_found_inside_an_installed_package(tmp_path: Path) -> None:
    site = tmp_path / "site"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "civman", site / "civman", ignore=ignore)
    shutil.copytree(REPOSITORY / "migrations", site / "civman" / "_migrations", ignore=ignore)
    code = "import sys, pathlib; from civman.index import Index; Index.open(pathlib.Path(sys.argv[1])).close()"

    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code, str(tmp_path / "library.db")], cwd=tmp_path, timeout=60,
        env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip

    assert (done.stdout, done.stderr) == ("", "")
    assert read_revision(tmp_path / "library.db") == HEAD


def test_revisions_use_nothing_of_ours_and_say_what_they_do() -> None:
    for script in REVISIONS:
        tree = ast.parse(Path(script.path).read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

        assert {name.split(".")[0] for name in names} <= {"alembic", "sqlalchemy"}
        assert all(word in (ast.get_docstring(tree) or "") for word in ("Why:", "Existing rows get:", "Does not:"))


def test_developers_command_line_finds_nothing_to_generate(tmp_path: Path) -> None:
    said = io.StringIO()
    config = Config(stdout=said)
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{tmp_path / 'dev.db'}")

    command.upgrade(config, "head")
    command.check(config)

    assert "No new upgrade operations detected" in said.getvalue()
