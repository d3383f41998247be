"""A partial on disk: what it remembers after a kill, a restart and a fault, and what it never does."""

import errno
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from civman.domain.byte_ranges import Ranges
from civman.errors import Interrupted, StoreError
from civman.store.digester import Digester
from civman.store.partial import Partial, store_error
from civman.store.resume_journal import Journal, Memory, Validator, promised_bytes
from civman.system.process_lock import FileLock
from civman.system.system_facts import boot_id

SIZE = 1 << 20
KEY = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "partial"


def opened(folder: Path, size: int = SIZE) -> Partial:
    partial = Partial(folder, KEY)
    assert partial.acquire()
    partial.reserve(size)
    return partial


def left_behind(folder: Path, written: list[tuple[int, int]], size: int = SIZE) -> None:
    """What a process leaves that wrote these ranges and was killed."""
    partial = opened(folder, size)
    for start, end in written:
        partial.write(start, b"\xaa" * (end - start))
    partial.close()


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_written_counts_for_the_next_owner(folder: Path) -> None:
    left_behind(folder, [(0, 1000), (5000, 6000)])

    again = Partial(folder, KEY)
    assert again.acquire()

    assert (again.held_bytes, list(again.ranges), again.discarded) == (2000, [(0, 1000), (5000, 6000)], "")
    again.close()


def test_bytes_that_are_there_are_never_written_again(folder: Path) -> None:
    partial = opened(folder)
    partial.write(100, b"\x01" * 100)

    fresh = partial.write(0, b"\x02" * 300)

    partial.close()
    data = (folder / f"{KEY}.part").read_bytes()
    assert fresh == 200
    assert data[:300] == b"\x02" * 100 + b"\x01" * 100 + b"\x02" * 100


def test_a_restart_of_the_machine_leaves_only_what_was_synced(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    journal = Journal(folder, KEY)
    journal.note_synced(Memory(SIZE, Ranges([(0, 3000)]), Validator("host", '"tag"')))
    rewrite(folder / f"{KEY}.live", boot="another boot")

    again = Partial(folder, KEY)
    assert again.acquire()

    assert (list(again.ranges), again.validator) == ([(0, 3000)], Validator("host", '"tag"'))
    again.close()


def test_a_restart_before_anything_was_synced_starts_over(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    rewrite(folder / f"{KEY}.live", boot="another boot")

    again = Partial(folder, KEY)
    assert again.acquire()

    assert (again.held_bytes, again.size_bytes) == (0, None)
    assert "journal" in again.discarded
    again.close()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not boot_id(), reason="the system names no boot")
@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b'{"format": 1, "boot": "',
        b"\x00\xff\xfe garbage",
        b"[]",
        b'"text"',
        b"null",
        b'{"format": 2}',
        b'{"format": 1, "boot": "BOOT", "size": 1048576, "validator": null, "ranges": [[0, 9999999]]}',
        b'{"format": 1, "boot": "BOOT", "size": 1048576, "validator": null, "ranges": [[5, 1]]}',
        b'{"format": 1, "boot": "BOOT", "size": 1048576, "validator": null, "ranges": [[-5, 1]]}',
        b'{"format": 1, "boot": "BOOT", "size": 1048576, "validator": null, "ranges": 7}',
        b'{"format": 1, "boot": "BOOT", "size": 1048576, "validator": ["host"], "ranges": []}',
        b'{"format": 1, "boot": "BOOT", "size": "x", "validator": null, "ranges": []}',
        b'{"format": 1, "boot": "BOOT", "size": 1e999, "validator": null, "ranges": []}',
        b'{"format": 1, "boot": "BOOT", "size": 99, "validator": null, "ranges": [[0, 99]]}',
        b"[" * 100_000,
    ],
)
def test_a_journal_that_cannot_be_trusted_counts_for_nothing(folder: Path, journal: bytes) -> None:
    left_behind(folder, [(0, 4000)])
    (folder / f"{KEY}.live").write_bytes(journal.replace(b"BOOT", boot_id().encode()))

    again = Partial(folder, KEY)
    assert again.acquire()

    assert again.held_bytes == 0
    again.reserve(SIZE)
    assert again.write(0, b"x" * 10) == 10
    again.close()


def test_a_file_of_another_length_than_the_journal_says_starts_over(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    with (folder / f"{KEY}.part").open("ab") as file:
        file.write(b"more")

    again = Partial(folder, KEY)
    assert again.acquire()

    assert (again.held_bytes, bool(again.discarded)) == (0, True)
    again.close()


def test_a_journal_without_its_file_counts_for_nothing(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    (folder / f"{KEY}.part").unlink()

    again = Partial(folder, KEY)
    assert again.acquire()

    assert again.held_bytes == 0
    again.close()
    assert list(folder.iterdir()) == []


def test_a_journal_that_was_being_replaced_is_the_old_one(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    (folder / f"{KEY}.live.new").write_text('{"format": 1, "bo')

    again = Partial(folder, KEY)
    assert again.acquire()

    assert again.held_bytes == 4000
    again.close()
    assert promised_bytes(folder, but_not="other") == 0


def test_a_partial_made_read_only_by_a_commit_that_was_killed_can_go_on(folder: Path) -> None:
    left_behind(folder, [(0, SIZE)])
    (folder / f"{KEY}.part").chmod(0o444)

    again = Partial(folder, KEY)
    assert again.acquire()

    assert again.is_complete
    if os.getuid() != 0:
        assert (folder / f"{KEY}.part").stat().st_mode & 0o200
    again.close()


def test_a_failure_to_open_loses_nothing(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    real = folder / f"{KEY}.part"
    aside = real.rename(folder / "aside")
    real.mkdir()  # cannot be opened as a file

    with pytest.raises(StoreError):
        Partial(folder, KEY).acquire()
    real.rmdir()
    aside.rename(real)

    again = Partial(folder, KEY)
    assert again.acquire()
    assert again.held_bytes == 4000
    again.close()


def test_closing_what_another_process_owns_touches_nothing(folder: Path) -> None:
    owner = opened(folder)
    owner.write(0, b"x" * 1000)
    stranger = Partial(folder, KEY)
    assert not stranger.acquire()

    stranger.close(discard=True)

    assert (folder / f"{KEY}.part").exists()
    assert not Partial(folder, KEY).acquire()
    owner.close()


def test_one_syncing_thread_at_a_time_and_none_after(folder: Path) -> None:
    partial = opened(folder, 16 << 20)
    partial.reserve(16 << 20)

    assert [thread.name for thread in threading.enumerate()].count("syncer") == 1
    partial.close()
    assert "syncer" not in [thread.name for thread in threading.enumerate()]


def test_large_partials_are_synced_while_they_grow(folder: Path) -> None:
    partial = opened(folder, 16 << 20)
    partial.write(0, b"x" * (1 << 20))
    deadline = time.monotonic() + 10

    while time.monotonic() < deadline:
        synced = folder / f"{KEY}.synced"
        if synced.exists() and json.loads(synced.read_text())["ranges"] == [[0, 1 << 20]]:
            break
        time.sleep(0.02)
    else:
        pytest.fail("nothing was synced")
    partial.close()


def test_another_size_starts_over(folder: Path) -> None:
    left_behind(folder, [(0, 4000)])
    again = Partial(folder, KEY)
    assert again.acquire()

    again.reserve(SIZE * 2)

    assert (again.held_bytes, again.missing()) == (0, [(0, SIZE * 2)])
    again.close()


def test_space_promised_to_others_is_taken_into_account(folder: Path) -> None:
    folder.mkdir()
    Journal(folder, "other").note(Memory(10**15, Ranges(), None))
    (folder / "other.part").touch()
    partial = Partial(folder, KEY)
    assert partial.acquire()

    with pytest.raises(StoreError) as refused:
        partial.reserve(SIZE)

    assert refused.value.code == "disk-full"
    assert refused.value.facts["promised_bytes"] == 10**15
    partial.close()


def test_more_than_the_disk_holds_is_refused_before_the_first_byte(folder: Path) -> None:
    partial = Partial(folder, KEY)
    assert partial.acquire()

    with pytest.raises(StoreError, match="not enough disk space") as refused:
        partial.reserve(10**17)

    assert refused.value.code == "disk-full"
    partial.close()
    assert list(folder.iterdir()) == []


def test_the_digest_is_of_what_lies_on_disk(folder: Path) -> None:
    data = os.urandom(SIZE)
    partial = opened(folder)
    digester = Digester(partial, lambda done: None)
    for start in (SIZE // 2, 0):
        partial.write(start, data[start : start + SIZE // 2])

    assert digester.finish(threading.Event()) == hashlib.sha256(data).hexdigest()
    partial.close()


def test_a_listener_that_fails_never_yields_a_digest(folder: Path) -> None:
    def on_progress(done: int) -> None:
        raise RuntimeError("listener")

    partial = opened(folder)
    digester = Digester(partial, on_progress)
    partial.write(0, b"x" * SIZE)

    with pytest.raises(RuntimeError, match="listener"):
        digester.finish(threading.Event())
    partial.close()


def test_waiting_for_a_digest_can_be_cancelled(folder: Path) -> None:
    partial = opened(folder)
    digester = Digester(partial, lambda done: None)
    cancel = threading.Event()
    cancel.set()

    with pytest.raises(Interrupted):
        digester.finish(cancel)
    partial.close()


def test_a_lock_is_for_one_holder_and_goes_with_it(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "x.lock")

    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()

    assert list(tmp_path.iterdir()) == []


def test_a_lock_under_contention_has_one_holder_at_a_time(tmp_path: Path) -> None:
    inside, seen = [], []

    def contend() -> None:
        for _ in range(50):
            lock = FileLock(tmp_path / "x.lock")
            while not lock.acquire():
                time.sleep(0)
            inside.append(1)
            seen.append(len(inside))
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(seen) == {1}
    assert len(seen) == 200


@pytest.mark.parametrize(
    ("number", "code", "hint"),
    [
        (errno.ENOSPC, "disk-full", "free some space"),
        (errno.EROFS, "store", "writable"),
        (errno.EFBIG, "store", "such a large file"),
    ],
)
def test_the_systems_word_becomes_a_cause_and_a_way_out(number: int, code: str, hint: str) -> None:
    error = store_error(OSError(number, os.strerror(number)), Path("library/x"))

    assert error.code == code
    assert hint in error.hint


class Unmappable(Partial):
    """On a file system that maps no files."""

    def mapped(self, start: int, end: int) -> NoReturn:  # type: ignore[override]
        raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize("kind", [Partial, Unmappable])
def test_the_digest_is_that_of_the_file_wherever_its_bytes_are_taken_from(folder: Path, kind: type[Partial]) -> None:
    data = os.urandom(20_000_000)
    partial = kind(folder, KEY)
    assert partial.acquire()
    partial.reserve(len(data))
    digester = Digester(partial, lambda done: None)

    # out of order, so that the unbroken run jumps by odd amounts
    for start, end in ((7_000_001, 20_000_000), (0, 3), (3, 1_500_000), (1_500_000, 7_000_001)):
        partial.write(start, data[start:end])

    assert digester.finish(threading.Event()) == hashlib.sha256(data).hexdigest()
    partial.close()


def test_a_file_that_became_shorter_under_the_digester_is_an_error(folder: Path) -> None:
    partial = opened(folder, 4_000_000)
    os.truncate(partial.path, 1000)

    with pytest.raises(StoreError, match="shorter"), partial.mapped(0, 4_000_000):
        pass
    partial.close(discard=True)
