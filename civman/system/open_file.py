"""Open a file with the system's default program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_WAIT_S: Final = 2.0
"""The time in seconds after which a program that is still running is assumed to have opened the file."""
_OPENERS: Final = (("xdg-open",), ("gio", "open"), ("wslview",))
"""Commands that open a file on Linux and similar systems, in the order in which they are tried."""


def open_file(path: Path) -> str:
    """Open a file with the system's default program, without waiting for that program to end.

    Returns why it could not be opened, or an empty string. Never raises an OSError.
    """
    if sys.platform == "win32":
        problem = ""
        try:
            os.startfile(path)  # noqa: S606  # a file that civman has just written
        except OSError as error:
            problem = error.strerror or str(error)
    elif sys.platform == "darwin":
        problem = _run(["/usr/bin/open", str(path)])
    else:
        problem = _open_on_desktop(path)
    return problem


def _open_on_desktop(path: Path) -> str:
    """Open a file with the first desktop command that can."""
    if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")):
        return "there is no graphical session"
    problem = f"none of {', '.join(' '.join(command) for command in _OPENERS)} is installed"
    for command in _OPENERS:
        program = shutil.which(command[0])
        if program is not None:
            problem = _run([program, *command[1:], str(path)])
            if not problem:
                break
    return problem


def _run(command: list[str]) -> str:
    """Start a program in the background. Returns why it failed, or an empty string."""
    null = subprocess.DEVNULL
    try:
        started = subprocess.Popen(  # noqa: S603  # a program of the system, and one path as its argument
            command, stdin=null, stdout=null, stderr=null, start_new_session=True
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror or error}"
    try:
        code = started.wait(_WAIT_S)
    except subprocess.TimeoutExpired:
        started.returncode = (
            # set the return code: the opened program outlives civman, and Python would warn that it is still running
            0
        )
        return ""
    return f"{command[0]} ended with code {code}" if code else ""
