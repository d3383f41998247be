"""Opening: nothing is written to a library that is not ours, broken or newer, and every failure says what to do."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from index_values import FACTS, NOON, blob, model, sha, version

from civman.domain.catalog import NOTHING_SAID, ModelType
from civman.domain.digests import Hashes
from civman.errors import ExitCode, LibraryError, NewerLibrary
from civman.index import UNREAD, AssetFilter, Index, Source, rows

REPOSITORY = Path(__file__).parents[2]


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, warnings being errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, cwd=REPOSITORY, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def fill(index: Index) -> None:
    index.record(
        blob=blob("x2"), path="p", name="fox.safetensors", origin="civitai", version=version(),
        file=version().files[0], facts=FACTS, added_at=NOON,
    )  # fmt: skip


def test_new_library_is_made_with_its_folders(tmp_path: Path) -> None:
    with Index.open(tmp_path / "a b%20?#" / "c" / "library.db") as index:
        assert index.assets() == []

    assert [file.name for file in (tmp_path / "a b%20?#" / "c").iterdir()] == ["library.db"]


def test_library_uses_a_write_ahead_log_and_foreign_keys(index: Index, path: Path) -> None:
    fill(index)

    assert index._reader.one("PRAGMA journal_mode") == ("wal",)
    with index._writer.transaction() as connection:
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_reading_side_cannot_write(index: Index) -> None:
    with pytest.raises(LibraryError) as caught:
        index._reader.all("DELETE FROM asset")

    assert caught.value.code == "library-read-only"


def test_file_that_is_no_database_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"<!doctype html>" * 1000)

    with pytest.raises(LibraryError) as caught:
        Index.open(path)

    assert caught.value.code == "library-not-a-database"
    assert "--rebuild" in caught.value.hint
    assert path.read_bytes() == b"<!doctype html>" * 1000


def test_database_of_another_program_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (x)")
        connection.commit()
    before = path.read_bytes()

    with pytest.raises(LibraryError) as caught:
        Index.open(path)

    assert caught.value.code == "library-foreign"
    assert path.read_bytes() == before


def test_unknown_newer_revision_is_refused_untouched(index: Index, path: Path) -> None:
    index.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '29991231_later'")
        connection.commit()
    before = path.read_bytes()

    with pytest.raises(NewerLibrary) as caught:
        Index.open(path)

    assert caught.value.facts["revision"] == "29991231_later"
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["library.db"]


def test_damaged_database_is_named_so(index: Index, path: Path) -> None:
    fill(index)
    index.close()
    with path.open("r+b") as file:  # all pages but the first, which holds the table names
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))

    with pytest.raises(LibraryError) as caught, Index.open(path) as again:
        again.assets()

    assert caught.value.code == "library-malformed"
    assert "backup" in caught.value.hint


def test_library_locked_for_too_long_is_named_so(index: Index, path: Path) -> None:
    fill(index)
    with index._writer.transaction() as connection:
        connection.execute("PRAGMA busy_timeout = 50")

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LibraryError) as caught:
            fill(index)
        assert [asset.name for asset in index.assets()] == ["fox.safetensors"]

    assert caught.value.code == "library-locked"
    fill(index)


def test_full_disk_is_named_so_and_loses_nothing(index: Index, path: Path) -> None:
    fill(index)
    index.close()

    done = python(
        """
        import sys
        from pathlib import Path
        from civman.index import Index, SeenFile
        from civman.errors import LibraryError
        with Index.open(Path(sys.argv[1])) as index:
            index.save_seen([])
            with index._writer.transaction() as connection:
                (pages,) = connection.execute("PRAGMA page_count").fetchone()
                connection.execute(f"PRAGMA max_page_count = {pages}")
            try:
                index.save_seen([SeenFile(f"{n:0200}", 1, 2, 3, 4, "0" * 64) for n in range(10_000)])
            except LibraryError as error:
                print(error.code, error.hint)
            print(len(index.seen_files()), len(index.assets()))
        """,
        path,
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == ["disk-full free some space, then try again", "0 1"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("state", ["closed", "open elsewhere"])
def test_library_that_may_not_be_written_can_still_be_read(
    index: Index, path: Path, state: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fill(index)
    if state == "closed":
        index.close()
    for folder in (path.parent, *path.parent.parents[:-1]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o755)
    for file in path.parent.iterdir():
        file.chmod(0o444)

    done = python(
        """
        import os, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from civman.errors import LibraryError
        from civman.index import Index, transactions, write_assets
        os.setgroups([]), os.setgid(65534), os.setuid(65534)  # after the imports, which only root may be able to read
        with Index.open(Path(sys.argv[1])) as index:
            print([asset.name for asset in index.assets()])
            try:
                index.mark_used(["0" * 64], datetime.now(UTC))
            except LibraryError as error:
                print(error.code, "|", error.hint)
        """,
        path,
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['fox.safetensors']", "library-read-only | check the permissions of the file and its folder"
    ]  # fmt: skip


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LibraryError) as caught:
        Index.open(tmp_path / "file" / "below" / "library.db")

    assert caught.value.code == "library-read-only"
    assert caught.value.exit_code == ExitCode.FAILED


def test_text_that_is_not_unicode_is_refused_in_words(index: Index) -> None:
    with pytest.raises(LibraryError) as caught:
        index.record(
            blob=blob(), path="/srv/\udce9.safetensors", name="\udce9.safetensors", origin="import", version=None,
            file=None, facts=FACTS, added_at=NOON,
        )  # fmt: skip

    assert caught.value.code == "bad-text"
    assert index.assets() == []


def test_reading_loads_neither_sqlmodel_nor_sqlalchemy_nor_alembic(index: Index, path: Path) -> None:
    fill(index)
    index.close()

    done = python(
        """
        import sys
        from pathlib import Path
        from civman.domain.refs import HashKind
        from civman.index import AssetFilter, Index
        heavy = ("sqlmodel", "sqlalchemy", "alembic", "pydantic", "httpx", "rich", "typer", "torch")
        with Index.open(Path(sys.argv[1])) as index:
            asset, = index.assets(AssetFilter(words=("fox",)), limit=3)
            assert index.count() == 1
            assert index.version(asset.version_id).name == "v2"
            assert index.model(asset.model_id)[0].id == 1
            assert index.snapshot_of_model(asset.model_id).source == "record"
            assert index.snapshot_of_version(asset.version_id).gone_at is None
            assert index.find_sha256(asset.blob.sha256) == asset
            assert index.find_by_digest(asset.blob.sha256[:10], HashKind.AUTOV2) == [asset]
            assert index.find_by_version(asset.version_id) == index.find_by_model(asset.model_id) == [asset]
            assert index.find_by_file(asset.file_id) == index.find_by_name("fox") == [asset]
            assert index.referrers(asset.blob.sha256) == [asset]
            assert len(list(index.blobs())) == 1
            assert index.seen_files() == index.seen_files(["x"]) == {}
            print([name for name in heavy if name in sys.modules])
        """,
        path,
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_lock_of_a_dead_process_does_not_remain(index: Index, path: Path) -> None:
    fill(index)
    index.close()

    done = python(
        """
        import os, sys
        from pathlib import Path
        from civman.index import Index
        index = Index.open(Path(sys.argv[1]))
        with index._writer.transaction() as connection:
            connection.execute("DELETE FROM asset")
            os._exit(9)
        """,
        path,
    )

    assert done.returncode == 9
    with Index.open(path) as again:
        assert [asset.blob.sha256 for asset in again.assets()] == [sha("x2")]
        again.remember(version(3), fetched_at=NOON, source=Source.VERSION)


def test_page_of_the_newest_comes_from_an_index_without_sorting_all(index: Index) -> None:
    statements: list[str] = []
    index._reader._connection.set_trace_callback(statements.append)
    index.assets(limit=5)
    index.assets(AssetFilter(types=(ModelType.LORA,)), limit=5)
    index._reader._connection.set_trace_callback(None)

    choices = [statement for statement in statements if statement.startswith("SELECT a.id")]
    plans = [[row[3] for row in index._reader.all(f"EXPLAIN QUERY PLAN {statement}")] for statement in choices]

    assert any("USING COVERING INDEX ix_asset_added_at_id" in step for step in plans[0])
    assert any("USING COVERING INDEX ix_asset_type_added_at_id" in step for step in plans[1])
    assert not [step for plan in plans for step in plan if step.startswith("SCAN") and "INDEX" not in step]


def test_benchmark_fills_an_index_that_reads_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / "make_index.py"), "1200", str(tmp_path / "library.db")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.stderr == ""
    with Index.open(tmp_path / "library.db") as index:
        assert index.count() == len(index.assets()) == 1200
        assert index.count(AssetFilter(types=(ModelType.CHECKPOINT,))) > 50


def test_writing_loads_neither_sqlmodel_nor_sqlalchemy(index: Index, path: Path) -> None:
    fill(index)
    index.close()

    done = python(
        """
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from civman.index import Index, Source
        with Index.open(Path(sys.argv[1])) as index:
            (asset,) = index.assets()
            version = index.version(asset.version_id)
            index.remember(version, fetched_at=datetime.now(UTC), source=Source.VERSION)
            index.set_alias(asset, "reynard")
            print(index.assets()[0].alias, [name for name in ("sqlmodel", "sqlalchemy") if name in sys.modules])
        """,
        path,
    )

    assert (done.stdout, done.stderr) == ("reynard []\n", "")


def test_columns_that_are_written_are_those_of_the_tables() -> None:
    from civman.index.tables import metadata  # not at the top: reading must do without, and other tests look

    written = {
        "model": rows.model_values(model()),
        "version": rows.version_values(version()),
        "file": rows.file_values(version().files[0]),
        "blob": rows.blob_values(blob("x2"), "x", UNREAD, Hashes()),
        "annotation": rows.own_values(NOTHING_SAID),
    }

    for table, values in written.items():
        assert set(values) <= set(metadata.tables[table].columns.keys()), table
    assert set(written["blob"]) == set(metadata.tables["blob"].columns.keys())
