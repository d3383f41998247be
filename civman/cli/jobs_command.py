"""The command `civman jobs`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from civman.cli.output import Result, clean
from civman.cli.running_server import running_server
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from civman.serve.server_file import ServerFile

_COLUMNS = (Column("job"), Column("state"), Column("kind"), Column("progress"), Column("what"))


@command()
def jobs(
    session: Session,
    cancel: Annotated[int | None, typer.Option(metavar="JOB", help="Cancel this job.")] = None,
    follow: Annotated[int | None, typer.Option(metavar="JOB", help="Wait until this job has ended.")] = None,
) -> Result:
    """List the renders and downloads of a running `civman serve`, cancel one, or wait for one."""
    server = running_server(session.library.context.settings.library)
    if cancel is not None:
        job = asked(server, "DELETE", f"/api/v1/jobs/{cancel}")
        return _one(job)
    if follow is not None:
        return _one(_followed(session, server, follow))
    return jobs_result(asked(server, "GET", "/api/v1/jobs")["jobs"])


def jobs_result(listed: list[dict[str, Any]]) -> Result:
    """Build the result of a command that prints a list of jobs."""
    return Result(
        "jobs", listed, human=lambda console: _table(console, listed), ids=(job["id"] for job in listed)
    )  # fmt: skip


def asked(server: "ServerFile", method: str, path: str, body: Any = None) -> Any:
    """Send a request to the server. Raises: the server's error; NetworkError: the server does not respond."""
    import http.client

    from civman.errors import CivmanError, ExitCode, NetworkError
    from civman.serve.hand_over import request

    try:
        answer = request(server, method, path, body)
        value = json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NetworkError(f"the server does not respond: {error}") from error
    if answer.status >= 400:
        wrong = CivmanError(str(value.get("message")), hint=value.get("hint") or "")
        wrong.code = value.get("code", wrong.code)
        wrong.exit_code = ExitCode(value.get("exit_code", 1))
        raise wrong
    return value


def _followed(session: Session, server: "ServerFile", number: int) -> Any:
    """Wait until a job has ended, and print each change of its progress."""
    import time

    told = ""
    while True:
        job = asked(server, "GET", f"/api/v1/jobs/{number}")
        words = f"job {number}: {job['state']} {_progress(job)}".strip()
        if words != told:
            session.output.notice(words)
            told = words
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.2)


def _one(job: dict[str, Any]) -> Result:
    error = None
    if job["state"] == "failed" and job["error"]:
        from civman.errors import CivmanError, ExitCode

        error = CivmanError(job["error"]["message"], hint=job["error"]["hint"] or "")
        error.code, error.exit_code = job["error"]["code"], ExitCode(job["error"]["exit_code"])
    return Result("job", job, human=lambda console: _table(console, [job]), ids=[job["id"]], error=error)


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if "step" in progress:
        which = f", image {progress['first']} of {progress['count']}" if progress.get("count", 1) > 1 else ""
        return f"step {progress['step']} of {progress['steps']}{which}"
    if progress.get("total_bytes"):
        return f"{100 * progress.get('received_bytes', 0) / progress['total_bytes']:.0f} %"
    return ""


def _table(console: "Console", listed: list[dict[str, Any]]) -> None:
    if not listed:
        console.print("no jobs")
        return
    rows = [[str(job["id"]), job["state"], job["kind"], _progress(job), clean(job["title"])] for job in listed]
    print_table(console, _COLUMNS, rows)
