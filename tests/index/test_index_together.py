"""Several processes and one library: each either works or waits, and nobody sees half of anything."""

import subprocess
import sys
import textwrap
from pathlib import Path

from index_values import NOON, blob, sha, version

from civman.index import Index, Source

REPOSITORY = Path(__file__).parents[2]


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip


def release(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Waits until all are ready, lets them go at once, gives what each printed."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=60) for process in processes]


def test_four_processes_open_a_new_library_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from civman.index import Index, SeenFile, migrate, transactions, write_assets
        print("ready", flush=True); sys.stdin.readline()
        with Index.open(Path(sys.argv[1])) as index:
            index.save_seen([SeenFile(sys.argv[2], 1, 2, 3, 4, "0" * 64)])
    """
    path = tmp_path / "new" / "library.db"

    answers = release([start(code, path, number) for number in range(4)])

    assert answers == [("", "")] * 4
    with Index.open(path) as index:
        assert sorted(index.seen_files()) == ["0", "1", "2", "3"]
    assert [file.name for file in path.parent.iterdir()] == ["library.db"]


def test_reader_never_sees_half_a_record_while_another_process_writes(index: Index, path: Path) -> None:
    """The writer renames model, version, file and previews to one number in one transaction, again and again."""
    index.remember(version(), fetched_at=NOON, source=Source.MODEL)
    writer = start(
        """
        import sys
        sys.path.insert(0, "tests/index")
        from datetime import timedelta
        from pathlib import Path
        from civman.domain.catalog import Preview
        from civman.index import Index, Source
        from index_values import NOON, file, model, version
        with Index.open(Path(sys.argv[1])) as index:
            for number in range(1, 60):
                name = str(number)
                one = version(
                    name=name, of=model(name=name), previews=(Preview(name), Preview(name)),
                    files=tuple(file(place, name=name) for place in range(1, 2 + number % 3)),
                )
                index.remember(one, fetched_at=NOON + timedelta(seconds=number), source=Source.MODEL)
                if number == 1:
                    print("ready", flush=True); sys.stdin.readline()
        """,
        path,
    )
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("go\n")
    writer.stdin.flush()

    seen = set()
    while writer.poll() is None:
        page = index.model(version().model.id)
        assert page is not None
        one = page[1][0]
        words = {page[0].name, one.name, *(file.name for file in one.files), *(shown.url for shown in one.previews)}
        seen.add((frozenset(words), len(one.files)))

    assert writer.communicate() == ("", "")
    assert {len(words) for words, _ in seen} == {1}
    assert all(count == 1 + int(*words) % 3 for words, count in seen)
    assert len(seen) > 1


def test_writers_in_two_processes_wait_for_each_other(index: Index, path: Path) -> None:
    code = """
        import sys
        sys.path.insert(0, "tests/index")
        from pathlib import Path
        from civman.index import Index, transactions, write_assets
        from index_values import FACTS, NOON, blob
        with Index.open(Path(sys.argv[1])) as index:
            print("ready", flush=True); sys.stdin.readline()
            for number in range(20):
                name = f"{sys.argv[2]}-{number}"
                index.record(
                    blob=blob(name), path=name, name=name, origin="import", version=None, file=None, added_at=NOON
                )
    """

    answers = release([start(code, path, letter) for letter in "ab"])

    assert answers == [("", "")] * 2
    assert index.count() == 40
    assert index._reader.all("PRAGMA integrity_check") == [("ok",)]
    assert index._reader.all("PRAGMA foreign_key_check") == []


def test_reader_that_is_open_sees_what_another_process_wrote(index: Index, path: Path) -> None:
    with Index.open(path) as other:
        other.record(
            blob=blob("x"), path="x", name="x", origin="import", version=None, file=None, added_at=NOON
        )  # fmt: skip

    assert index.find_sha256(sha("x")) is not None


def test_slow_reader_keeps_its_state_while_rows_are_written(index: Index, path: Path) -> None:
    for number in range(3):
        index.record(
            blob=blob(str(number)), path="x", name="x", origin="import", version=None, file=None, added_at=NOON
        )  # fmt: skip

    walked = 0
    for digest, _, _ in index.blobs():
        walked += 1
        index.set_verified(digest, NOON)
        with Index.open(path) as other:
            other.forget(other.assets()[0])

    assert walked == 3
    assert index.count() == 0
