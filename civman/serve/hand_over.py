"""Handing a command to the running server of a library. Imports only the standard library, to start at once."""

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from civman.serve.server_file import ServerFile, read_server_file

_PASSED = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM", "TERM_PROGRAM", "KITTY_WINDOW_ID")
"""Environment variables that decide how output looks. They are passed to the server, as are civman's own settings."""


def passed_environment() -> dict[str, str]:
    """The variables of this process's environment that a handed-over command runs with."""
    return {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("CIVMAN_")}


def _connection(server: ServerFile, timeout: float | None) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)


def request(
    server: ServerFile, method: str, path: str, body: Any = None, *, timeout: float | None = 10
) -> http.client.HTTPResponse:
    """Send a request with the server's token. Raises: OSError, http.client.HTTPException: nobody answers."""
    connection = _connection(server, timeout)
    headers = {"Authorization": f"Bearer {server.token}", "X-Civman-Client": f"terminal {os.getppid()}"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    connection.request(method, path, data, headers)
    return connection.getresponse()


def answers(server: ServerFile) -> bool:
    """Whether this server is running; its file stays behind if it was killed."""
    try:
        with contextlib.closing(request(server, "GET", "/api/v1/server", timeout=2)) as answer:
            return answer.status == 200 and bool(json.load(answer).get("protocol") == server.protocol)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _environment() -> dict[str, str]:
    found = passed_environment()
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(stream.fileno())
                found.setdefault("COLUMNS", str(size.columns))
                found.setdefault("LINES", str(size.lines))
    return found


def hand_over(library: Path, argv: Sequence[str]) -> int | None:
    """Let the server of `library` run a command. Returns its exit code; None if there is no server, so run it here.

    What the command writes is written here, as it is written there. Ctrl-C cancels it.
    """
    server = read_server_file(library)
    if server is None:
        return None
    body = {
        "argv": list(argv), "folder": os.getcwd(), "environment": _environment(),  # noqa: PTH109  # as text
        "terminals": {"stdout": sys.stdout.isatty(), "stderr": sys.stderr.isatty()},
    }  # fmt: skip
    try:
        answer = request(server, "POST", "/api/v1/commands", body, timeout=None)
    except (OSError, http.client.HTTPException):
        return None  # no server runs: its file was left behind
    if answer.status != 200:
        return None
    return _follow(server, answer)


def _follow(server: ServerFile, answer: http.client.HTTPResponse) -> int:
    number = 0

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C ends this process, and with it the job
        if number:
            with contextlib.suppress(OSError, http.client.HTTPException):
                request(server, "DELETE", f"/api/v1/jobs/{number}").close()

    # install a handler instead of raising: an exception here would leave half a line unread
    before = signal.signal(signal.SIGINT, cancel)
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    try:
        while line := answer.readline():
            value = json.loads(line)
            if "job" in value:
                number = value["job"]
            elif "stream" in value:
                streams[value["stream"]].write(value["text"])
                streams[value["stream"]].flush()
            else:
                return _ended(value)
    finally:
        signal.signal(signal.SIGINT, before)
    sys.stderr.write("Error [worker-lost]: the server ended before the command did\n")
    return 8


def _ended(value: dict[str, Any]) -> int:
    if value["exit_code"] is not None:
        return int(value["exit_code"])
    error = value["error"] or {"code": "interrupted", "message": "stopped", "hint": None, "exit_code": 130}
    sys.stderr.write(f"Error [{error['code']}]: {error['message']}\n")
    if error["hint"]:
        sys.stderr.write(f"Hint: {error['hint']}\n")
    return int(error["exit_code"])
