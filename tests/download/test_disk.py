"""A disk that is full, read-only, or allows no large files."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashing import environment, start, wait_until_sent
from faults import Throttle, faulty_server
from rig import DATA, REF, MakeRig, assert_sound, blobs, model_bytes, names_in, rig_catalogue

from civman.index import Index

MIB = 1 << 20
Mounted = Callable[..., Path]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """A file system of its own at a path: `mounted("library", "size=4m")`."""
    if os.name != "posix" or os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount")
    with contextlib.ExitStack() as stack:

        def mount(name: str, options: str) -> Path:
            path = tmp_path / name
            path.mkdir(exist_ok=True, parents=True)
            words = ["mount", "-t", "tmpfs", "-o", options, "civman-test", str(path)]
            if subprocess.run(words, capture_output=True).returncode:
                pytest.skip("this machine lets nobody mount")
            stack.callback(subprocess.run, ["umount", "-l", str(path)], capture_output=True)
            return path

        yield mount


def test_a_file_that_does_not_fit_is_refused_before_its_first_byte(mounted: Mounted, rigged: MakeRig) -> None:
    mounted("library", "size=4m")
    rig = rigged(catalogue=rig_catalogue(model_bytes(5 * MIB)))

    run = rig.download()

    assert run.code == 1
    assert "[disk-full]" in run.err
    assert "MiB needed" in run.err
    assert "civman remove" in run.err
    assert rig.partials == []
    assert rig.server.sent_bytes < MIB


def test_a_disk_that_others_fill_meanwhile_stops_the_download_and_keeps_it(mounted: Mounted, rigged: MakeRig) -> None:
    root = mounted("library", "size=8m")
    data = model_bytes(2 * MIB)
    rig = rigged(Throttle(bytes_per_s=2_000_000, piece_bytes=8192), catalogue=rig_catalogue(data))

    def fill() -> None:
        while rig.server.sent_bytes < MIB:
            threading.Event().wait(0.005)
        with contextlib.suppress(OSError), (root / "blobs-of-others").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)

    filler = threading.Thread(target=fill)
    filler.start()
    run = rig.download()
    filler.join()
    (root / "blobs-of-others").unlink()
    mark = rig.start()
    again = rig.download()

    assert run.code == 1, run.err
    assert "[disk-full]" in run.err
    assert again.code == 0, again.err
    assert rig.server.sent_bytes - mark < 0.8 * len(data)


def test_a_read_only_folder_is_named_with_the_way_out(mounted: Mounted, rigged: MakeRig) -> None:
    rig = rigged()
    mounted("library/partial", "ro")

    run = rig.download()

    assert run.code == 1
    assert "[store]" in run.err
    assert "--library" in run.err
    assert rig.server.sent_bytes == 0


def test_a_file_that_is_here_needs_no_writable_folder(mounted: Mounted, rigged: MakeRig) -> None:
    rig = rigged()
    assert rig.download().code == 0
    mounted("library/partial", "ro")

    run = rig.download()

    assert run.code == 0, run.err
    assert "was already in the library" in run.out


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_file_larger_than_the_system_allows_is_told(tmp_path: Path) -> None:
    root = tmp_path / "library"
    root.mkdir()
    Index.open(root / "library.db").close()
    code = (
        "import resource, sys; from civman.cli.app import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}));"
        f"sys.exit(main(['download', '{REF}', '--preview', 'none']))"
    )
    with faulty_server(rig_catalogue(model_bytes(2 * MIB))) as server:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(server, root), text=True, capture_output=True, timeout=60
        )

    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "such a large file" in done.stderr
    assert blobs(root) == []


def test_a_library_of_a_user_who_may_not_write_is_told(tmp_path: Path, mounted: Mounted) -> None:
    root = mounted("library", "size=8m,mode=755")
    Index.open(root / "library.db").close()
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    with faulty_server(rig_catalogue(DATA)) as server:
        process = start(server, root)
        wait_until_sent(server, 10**9, process)
        _, err = process.communicate()

    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert server.sent_bytes == 0
    assert names_in(root / "partial") == []


def test_a_folder_where_the_partial_should_be_is_told(rigged: MakeRig) -> None:
    rig = rigged()
    (rig.root / "partial").write_text("a file")

    run = rig.download()

    assert run.code == 1
    assert "[store]" in run.err
    assert_sound(rig.root)
