"""Each call of `civman.system` without the function it would like best."""

import ctypes
import errno
import json
import mmap
import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from civman.errors import StoreError, UsageError
from civman.store.partial import store_error
from civman.system import file_io, file_links, move_files, path_rules, process_lock, sockets, system_facts

PACKAGE = Path(system_facts.__file__).parents[1]


@pytest.mark.parametrize(
    "missing", [(), ("preadv",), ("preadv", "pread", "pwrite"), ("posix_fallocate", "posix_fadvise", "fdatasync")]
)
def test_bytes_go_to_their_places(missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    descriptor = file_io.open_for_update(tmp_path / "file")
    try:
        file_io.allocate(descriptor, 100_000)
        file_io.write_at(descriptor, b"\r\nend\x1a", 99_994)
        file_io.write_at(descriptor, memoryview(b"start\n"), 0)
        file_io.sync_data(descriptor)
        file_io.forget_pages(descriptor, 0, 100_000)
        view = memoryview(bytearray(6))
        assert file_io.read_at(descriptor, view, 99_994) == 6
        assert bytes(view) == b"\r\nend\x1a"
        assert file_io.read_at(descriptor, view, 0) == 6
        assert bytes(view) == b"start\n"
        assert file_io.read_at(descriptor, view, 200_000) == 0
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("has_advice", [True, False])
def test_a_mapping_is_read_again_after_its_pages_are_dropped(
    has_advice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_advice:
        monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    data = os.urandom(3 * mmap.PAGESIZE)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[0] = data[0] ^ 1
        file_io.forget_mapped(mapping, 1, 2 * mmap.PAGESIZE)
        assert mapping[1:] == data[1:]
        assert mapping[0] == data[0] ^ 1  # the page is not wholly within the range
        file_io.forget_mapped(mapping, 0, mmap.PAGESIZE)
        assert (mapping[0] == data[0]) == (has_advice and hasattr(mmap, "MADV_DONTNEED"))


@pytest.mark.parametrize("has_poll", [True, False])
def test_a_socket_tells_whether_something_came(has_poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_poll:
        monkeypatch.delattr(select, "poll", raising=False)
    near, far = socket.socketpair()
    with near, far:
        began = time.monotonic()
        assert not sockets.is_readable(near, 0.05)
        assert time.monotonic() - began >= 0.04
        far.sendall(b"x")
        assert sockets.is_readable(near, 5)


def test_free_memory_is_counted_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = system_facts.available_memory_bytes()
    assert counted is None or counted > 2**20
    if sys.platform == "linux":
        monkeypatch.setattr(Path, "read_text", refuse)
        by_pages = system_facts.available_memory_bytes()
        assert by_pages is not None
        assert by_pages > 2**20
        monkeypatch.delattr(os, "sysconf")
        assert system_facts.available_memory_bytes() is None


def refuse(*_: object, **__: object) -> str:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_windows_fills_a_structure_of_its_own_size() -> None:
    assert ctypes.sizeof(system_facts.MemoryStatus) == 64
    assert system_facts.MemoryStatus.available_bytes.offset == 16


def test_what_macos_counts_as_free() -> None:
    text = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10.
Pages active:                         400000.
Pages inactive:                          200.
Pages speculative:                      3000.
Pages throttled:                           0.
Pages wired down:                     100000.
Pages purgeable:                       40000.
"Translation faults":              900000000.
"""
    assert system_facts.vm_stat_bytes(text) == 43_210 * 16384
    assert system_facts.vm_stat_bytes("vm_stat: not permitted") is None


def test_links_say_why_they_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    monkeypatch.delattr(os, "link", raising=False)
    monkeypatch.delattr(os, "symlink", raising=False)
    for link, what in ((file_links.hard_link, "hard links"), (file_links.symbolic_link, "symbolic links")):
        with pytest.raises(OSError, match="this system does not support") as caught:
            link(source, tmp_path / "target")
        assert file_links.link_refusal(what, caught.value) == f"this file system does not support {what}"
    forbidden = OSError(errno.EINVAL, "A required privilege is not held by the client")
    forbidden.winerror = 1314
    assert "developer mode" in file_links.link_refusal("symbolic links", forbidden)


@pytest.mark.parametrize("winerror", [5, 32])
def test_a_file_that_is_open_for_a_moment_is_waited_for(
    winerror: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    true, tries = os.replace, []

    def sometimes(source: Path, target: Path) -> None:
        tries.append(source)
        if len(tries) < 4:
            raise busy(winerror)
        true(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    move_files.replace_file(tmp_path / "new", tmp_path / "old")

    assert (tmp_path / "old").read_bytes() == b"new"
    assert len(tries) == 4


def test_a_file_that_stays_open_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise busy(32)

    monkeypatch.setattr(os, "unlink", never)
    began = time.monotonic()
    with pytest.raises(PermissionError) as caught:
        move_files.remove_file(tmp_path / "model.safetensors", missing_ok=True)
    told = store_error(caught.value, tmp_path / "model.safetensors")

    assert 1 < time.monotonic() - began < 10
    assert told.code == "file-in-use"
    assert "open in another program" in told.message
    assert "close" in told.hint


def busy(winerror: int) -> OSError:
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = winerror
    return error


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        move_files.replace_file(tmp_path / "absent", tmp_path / "target")
    assert time.monotonic() - began < 1


def test_a_lock_that_the_system_cannot_make_is_an_error_and_not_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(process_lock, "_lock", broken)
    with pytest.raises(StoreError, match="cannot lock"):
        process_lock.FileLock(tmp_path / "lock").acquire()


def test_a_path_of_260_characters_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_rules, "longest_path", lambda: 259)
    short, deep = tmp_path / "a", tmp_path / ("d" * (300 - len(str(tmp_path))))
    absent = FileNotFoundError(errno.ENOENT, "The system cannot find the path specified")

    assert path_rules.name_room(short, 200) == min(200, 259 - len(str(short)) - 1 - 32)
    assert path_rules.name_room(deep, 200) == 0
    assert "too long" in store_error(absent, deep).message
    assert "too long" not in store_error(absent, short).message
    with pytest.raises(StoreError, match="too long"):
        path_rules.require_room(deep, 40, 200)


@pytest.mark.parametrize("name", ["NUL", "con.png", "a:b.png", "picture.png.", "what?.png"])
def test_a_name_that_windows_gives_to_devices_and_streams_is_refused_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_rules, "_NAMES_DEVICES", True)
    with pytest.raises(UsageError, match="Windows"):
        path_rules.require_file_name(Path("out", name))
    path_rules.require_file_name(Path("out", "picture.png"))


def test_nothing_outside_system_asks_which_system_it_is() -> None:
    asking = re.compile(
        r"os\.name\b|sys\.platform (?:==|!=|in)|\bimport (?:fcntl|msvcrt|resource|pwd|termios)\b"
        r"|os\.(?:pread|pwrite|preadv|sysconf|link|symlink|replace|rename|unlink|fdatasync|posix_\w+|statvfs|getuid)\("
        r"|select\.poll|\.(?:unlink|symlink_to|hardlink_to)\(|\.madvise\("
    )
    found = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "system"
        for line in path.read_text(encoding="utf-8").splitlines()
        if asking.search(line)
    }
    assert found == set()


def test_names_that_the_terminal_cannot_write_do_not_end_a_command(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CIVMAN_", "LC_", "LANG"))}
    environment |= {"PYTHONIOENCODING": "cp1252", "CIVMAN_OFFLINE": "1", "COLUMNS": "80"}
    missing = tmp_path / "モデル.safetensors"
    words = [sys.executable, "-m", "civman", "inspect", str(missing)]
    for more in ((), ("--json",)):
        done = subprocess.run([*words, *more], env=environment, cwd=tmp_path, capture_output=True, timeout=120)
        told = (done.stdout + done.stderr).decode("cp1252")
        assert "Traceback" not in told
        assert done.returncode in (2, 3), told
    assert "モデル" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (
            "processor\t: 0\nflags\t\t: avx512_bf16 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n",
            True,
        ),
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512f\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16x\n", False),
        ("processor\t: 0\nvmx flags\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_known_by_the_flag_of_every_processor(text: str, has: bool) -> None:
    assert system_facts.states_bfloat16(text) is has
