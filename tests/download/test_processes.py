"""Several civman processes, and what signals do to one."""

import hashlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from crashing import start, wait_until_sent
from faults import Hold, Silence, faulty_server
from rig import assert_sound, blobs, many_files, model_bytes, names_in, rig_catalogue

from civman.index import Index
from civman.store.resume_journal import Journal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are of another kind there"),
]
DATA = model_bytes(3_000_000)
HALF = len(DATA) // 2
KEY = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    root.mkdir()
    Index.open(root / "library.db").close()
    return root


def wait_for(process: "subprocess.Popen[str]", words: str) -> str:
    """All of stderr up to the line with these words."""
    told = ""
    for line in process.stderr:
        told += line
        if words in line:
            return told
    raise AssertionError(f"never said `{words}`: {told}")


def wait_until_journaled(root: Path, wanted_bytes: int) -> None:
    """Return when a kill would lose less than what is beyond `wanted_bytes`."""
    journal = Journal(root / "partial", KEY)
    deadline = time.monotonic() + 60
    while True:
        memory = journal.recall()
        if memory is not None and memory.ranges.total_bytes >= wanted_bytes:
            return
        assert time.monotonic() < deadline, "the download does not move"
        time.sleep(0.01)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_of_two_processes_one_downloads_and_the_other_waits_and_finds_it(root: Path) -> None:
    released = threading.Event()
    with faulty_server(rig_catalogue(DATA), Hold(after=HALF, released=released)) as server:
        first = start(server, root)
        wait_until_sent(server, HALF, first)
        second = start(server, root)
        waiting = wait_for(second, "waiting")
        released.set()
        code, out, err = ended(first)
        other_code, other_out, other_err = ended(second)

    assert (code, other_code) == (0, 0), err + other_err
    assert "another civman" in waiting
    assert "downloaded and verified" in out
    assert "was already in the library" in other_out
    assert server.sent_bytes == len(DATA)
    assert_sound(root)


def test_when_the_first_process_dies_the_second_takes_over(root: Path) -> None:
    released = threading.Event()
    with faulty_server(rig_catalogue(DATA), Hold(after=HALF, released=released)) as server:
        first = start(server, root)
        wait_until_journaled(root, HALF * 9 // 10)
        second = start(server, root)
        wait_for(second, "waiting")
        first.kill()
        first.communicate()
        released.set()
        code, out, err = ended(second)

    assert code == 0, err
    assert "downloaded and verified" in out
    assert "already received" in err
    assert_sound(root)
    assert names_in(root / "partial") == []


def test_control_c_ends_at_once_and_says_how_to_go_on(root: Path) -> None:
    with faulty_server(rig_catalogue(DATA), Hold(after=HALF, released=threading.Event())) as server:
        process = start(server, root)
        wait_until_journaled(root, HALF * 9 // 10)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        took_s = time.monotonic() - began
        server.heal()
        sent = server.sent_bytes
        code_again, _, err_again = ended(start(server, root))

    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert "Error [interrupted]" in err
    assert re.search(r"Hint: .*again", err)
    assert took_s < 10
    assert code_again == 0, err_again
    assert "already received" in err_again
    assert server.sent_bytes - sent <= len(DATA) - HALF * 9 // 10


def test_a_background_job_that_was_started_to_ignore_control_c_goes_on(root: Path) -> None:
    released = threading.Event()
    with faulty_server(rig_catalogue(DATA), Hold(after=HALF, released=released)) as server:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does before it starts a job with `&`
        try:
            process = start(server, root)
        finally:
            signal.signal(signal.SIGINT, before)
        wait_until_sent(server, HALF, process)
        process.send_signal(signal.SIGINT)
        released.set()
        code, out, err = ended(process)

    assert code == 0, err
    assert "downloaded and verified" in out


def test_control_c_ends_at_once_while_the_api_is_silent(root: Path) -> None:
    with faulty_server(rig_catalogue(DATA), Silence(seconds=60, on="api", path="^/api/download")) as server:
        process = start(server, root)
        deadline = time.monotonic() + 60
        while not server.requests_to("api", "/api/download") and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        took_s = time.monotonic() - began

    assert code == 130, err
    assert "Traceback" not in err
    assert took_s < 10


def test_twenty_files_at_once_all_land_or_are_named(root: Path) -> None:
    catalogue = many_files(20, 200_000)
    bad = catalogue.file(902 + 13)
    catalogue.replace_bytes(bad.id, model_bytes(200_000, seed="other"), declare=False)
    with faulty_server(catalogue) as server:
        process = start(server, root, *(f"@{901 + number}" for number in range(20)), "--at-once", "8")
        code, out, err = ended(process)

    assert code == 6
    assert len(blobs(root)) == 19
    assert "1 of 20 downloads failed: @914" in err
    assert out.count("downloaded and verified") == 19
    assert_sound(root)
    assert names_in(root / "partial") == []


def test_one_speed_limit_holds_for_all_files_together(root: Path) -> None:
    size, rate = 1_200_000, 4_000_000
    catalogue = many_files(20, size)
    with faulty_server(catalogue) as server:
        words = [*(f"@{901 + number}" for number in range(20)), "--at-once", "8", "--limit-rate", "4M"]
        process = start(server, root, *words)
        wait_until_sent(server, 1, process)
        began = time.monotonic()
        ends = threading.Thread(target=process.wait)
        ends.start()
        while len(blobs(root)) < 20 and process.poll() is None:
            time.sleep(0.01)
        took_s = time.monotonic() - began
        code, _, err = ended(process)
        ends.join()

    assert code == 0, err
    measured = 20 * size / took_s
    # a busy machine may be slower than the limit; a limit that is divided among the files would be 20 times slower
    assert 0.2 * rate <= measured <= 1.15 * rate, f"{measured:,.0f} B/s"


def test_control_c_in_the_making_of_a_class_ends_with_our_code_too(tmp_path: Path) -> None:
    # Python kills itself at its end where Ctrl-C hit an `exec`, as dataclasses use, whoever caught it
    script = """
        import signal, sys
        from civman.cli.app import main
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests' own parent ignores it
        def interrupted(*args, **kwargs):
            exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(10**8): pass")
        sys.exit(main(["list"], make_library=interrupted))
    """
    (tmp_path / "hit.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "-m", "hit"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 130, done.stderr
    assert "Error [interrupted]" in done.stderr
