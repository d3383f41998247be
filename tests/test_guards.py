"""The tests' own guards notice what they are there for."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import guards
import pytest

linux_only = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks the kernel what a process has")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of another kind there")
def test_what_a_test_starts_can_be_interrupted_wherever_the_tests_run() -> None:
    asks = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"

    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of another kind there")
def test_a_background_job_s_ignored_signal_is_not_handed_on() -> None:
    code = (
        "import signal, subprocess, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import guards; guards.let_children_be_interrupted()\n"
        "asks = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'\n"
        "subprocess.run([sys.executable, '-c', asks], check=True)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(guards.__file__).parent)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "True"


@linux_only
def test_a_running_and_a_forgotten_child_are_both_seen() -> None:
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    try:
        os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
        assert {sleeping.pid, ended} <= set(guards.children())
    finally:
        sleeping.send_signal(signal.SIGKILL)
        sleeping.wait()
        os.waitpid(ended, 0)

    assert not {sleeping.pid, ended} & set(guards.children())


@linux_only
def test_a_listening_socket_is_seen() -> None:
    before = guards.listening()
    with socket.create_server(("127.0.0.1", 0)):
        assert len(guards.listening()) == len(before) + 1

    assert guards.listening() == before
