"""Hand a command over to the library's running server. Imports only the standard library, so that it starts fast."""

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
"""Environment variables that affect how output looks. They are sent to the server, like all CIVMAN_ variables."""


def passed_environment() -> dict[str, str]:
    """Return the environment variables of this process that a command keeps when it is handed over to the server."""
    return {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("CIVMAN_")}


def _connection(server: ServerFile, timeout: float | None) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)


def request(
    server: ServerFile, method: str, path: str, body: Any = None, *, timeout: float | None = 10
) -> http.client.HTTPResponse:
    """Send a request with the server's token. Raises: OSError, http.client.HTTPException: no response."""
    connection = _connection(server, timeout)
    headers = {"Authorization": f"Bearer {server.token}", "X-Civman-Client": f"terminal {os.getppid()}"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    connection.request(method, path, data, headers)
    return connection.getresponse()


def answers(server: ServerFile) -> bool:
    """Whether the server described by `serve.json` is running; a killed server leaves its file behind."""
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
    """Let the server of `library` run a command.

    Returns the exit code; None if no server can run the command, so that the caller has to run it.

    The command's output is written to this process's stdout and stderr as it arrives. Ctrl-C cancels the command.
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
        return None  # no server is running: a killed server left its file behind
    if answer.status != 200:
        return None
    return _follow(server, answer)


def _follow(server: ServerFile, answer: http.client.HTTPResponse) -> int:
    number = 0

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)  # a second Ctrl-C ends this process; the server then cancels the job
        if number:
            with contextlib.suppress(OSError, http.client.HTTPException):
                request(server, "DELETE", f"/api/v1/jobs/{number}").close()

    # handle Ctrl-C without raising: an exception could leave a line of the response half read
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
