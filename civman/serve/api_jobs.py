"""The API's routes for what happens: the server, jobs, their events, and commands handed over by a terminal."""

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from civman import __version__
from civman.errors import NotFound, UsageError
from civman.serve.api_library import is_set
from civman.serve.download_jobs import download_payload
from civman.serve.jobs import JobKind
from civman.serve.render_requests import kept_value, request_of
from civman.serve.server_file import PROTOCOL
from civman.serve.serving import client_of, job_of, json_body, serving

HANDED_OVER = ("render", "replay")
"""The commands that the command line may hand over to a running server."""


async def about(request: Request) -> Response:
    """The server's version, its engine and how many jobs wait."""
    parts = serving(request)
    waiting = sum(not job.is_over for job in parts.jobs.all())
    models, needed = parts.engine.kept
    return JSONResponse({
        "version": __version__, "protocol": PROTOCOL, "unfinished_jobs": waiting,
        "engine": {
            "pid": parts.engine.pid, "loaded_models": models, "loaded_bytes": needed,
            "budget_bytes": parts.engine.budget_bytes,
        },
    })  # fmt: skip


async def submit(request: Request) -> Response:
    """Queue a job."""
    body, parts = await json_body(request), serving(request)
    kind, client = body.get("kind"), client_of(request)
    if kind == "download":
        payload = download_payload(body)
        job = parts.jobs.submit(JobKind.DOWNLOAD, client, payload["ref"], payload, lasts=True)
    elif kind == "render":
        requests = body.get("requests", [body.get("request")])
        if not isinstance(requests, list) or not 0 < len(requests) <= 100:
            raise UsageError("`requests` must be a list of 1 to 100 render requests")
        checked = [request_of(each, library=parts.settings.library) for each in requests]
        kept = [kept_value(*each) for each in zip(requests, checked, strict=True)]
        payload = {"requests": kept, "device": body.get("device"), "allow_partial": body.get("allow_partial")}
        job = parts.jobs.submit(JobKind.RENDER, client, checked[0].prompt, payload, lasts=True)
    elif kind == "replay":
        number = body.get("picture")
        if not isinstance(number, int) or isinstance(number, bool):
            raise UsageError("`picture` must be the number of an image")
        changes = body.get("set", {})
        if not isinstance(changes, dict):
            raise UsageError("`set` must be an object of fields and their new values")
        argv = ["replay", f"picture:{number}", "--json"]
        argv += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        payload = {
            "argv": argv, "folder": str(parts.settings.library), "environment": {},
            "terminals": {"stdout": False, "stderr": False},
        }  # fmt: skip
        job = parts.jobs.submit(JobKind.COMMAND, client, f"replay picture:{number}", payload, lasts=True)
    else:
        raise UsageError("`kind` must be render, replay or download")
    return JSONResponse(job.value(), 202)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"`{name}` must be a text")
    return value


async def jobs(request: Request) -> Response:
    """List all jobs that are known, the latest first."""
    queue = serving(request).jobs
    return JSONResponse({"jobs": [job.value() for job in reversed(queue.all())], "places": queue.places()})


async def job(request: Request) -> Response:
    """One job, with what it has written if it is a command."""
    found = job_of(request)
    return JSONResponse({**found.value(), "written": found.written})


async def cancel(request: Request) -> Response:
    """Cancel a job; cancelling one that is over changes nothing."""
    found = job_of(request)
    serving(request).jobs.cancel(found.number)
    return JSONResponse(found.value())


async def move(request: Request) -> Response:
    """Move a waiting job among the jobs of its client; `to` is first, up, down or last."""
    found, body = job_of(request), await json_body(request)
    queue = serving(request).jobs
    queue.move(found.number, str(body.get("to")))
    return JSONResponse({**found.value(), "places": queue.places()})


async def events(request: Request) -> Response:
    """Stream every change of every job as server-sent events, beginning with all jobs that are not over."""
    parts, previews = serving(request), is_set(request, "previews")

    async def stream() -> AsyncIterator[str]:
        is_first = True
        async for change in parts.changes(previews=previews):
            if is_first:
                yield ": the jobs that are not over\n\n"
                for each in parts.jobs.all():
                    if not each.is_over:
                        yield _event("job", each.value())
                is_first = False
            elif change is None:
                yield ": still here\n\n"
            elif change[0] != "written":
                yield _event(*change)

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _event(what: str, value: dict[str, Any]) -> str:
    return f"event: {what}\ndata: {json.dumps(value)}\n\n"


async def command(request: Request) -> Response:
    """Run a command that a terminal handed over, and stream what it writes, one JSON object a line.

    The caller has proven with the token that it can read the library's folder, so it may name files as its user can.
    """
    body, parts = await json_body(request), serving(request)
    argv, environment = body.get("argv"), body.get("environment", {})
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise UsageError("`argv` must be a list of texts")
    if argv[0] not in HANDED_OVER:
        raise UsageError(f"`{argv[0]}` cannot be handed over", hint=f"only {' and '.join(HANDED_OVER)} can")
    payload = {
        "argv": argv, "folder": _text(body, "folder"),
        "environment": {str(key): str(value) for key, value in environment.items()},
        "terminals": {name: bool(body.get("terminals", {}).get(name)) for name in ("stdout", "stderr")},
    }  # fmt: skip
    queued = parts.jobs.submit(JobKind.COMMAND, client_of(request), " ".join(argv), payload)
    changes = parts.changes()

    async def stream() -> AsyncIterator[str]:
        sent = 0
        yield json.dumps({"job": queued.number}) + "\n"
        try:
            async for _ in changes:
                while sent < len(queued.written):
                    yield json.dumps(dict(zip(("stream", "text"), queued.written[sent], strict=True))) + "\n"
                    sent += 1
                if queued.is_over:
                    break
                if await request.is_disconnected():
                    break
        finally:
            if not queued.is_over:
                parts.jobs.cancel(queued.number)  # nobody reads the rest
        result = queued.result or {}
        yield json.dumps({"exit_code": result.get("exit_code"), "error": queued.error}) + "\n"

    return StreamingResponse(stream(), media_type="application/x-ndjson")


async def unload(request: Request) -> Response:
    """Free the memory of all loaded models by ending the engine's process; refused while it renders."""
    if not serving(request).engine.unload():
        raise NotFound("a render is running, so the models stay loaded", hint="cancel it first")
    return JSONResponse({})


ROUTES = [
    Route("/api/v1/server", about), Route("/api/v1/jobs", jobs, methods=["GET"]),
    Route("/api/v1/jobs", submit, methods=["POST"]),
    Route("/api/v1/jobs/{number:int}", job, methods=["GET"]),
    Route("/api/v1/jobs/{number:int}", cancel, methods=["DELETE"]),
    Route("/api/v1/jobs/{number:int}/move", move, methods=["POST"]),
    Route("/api/v1/events", events), Route("/api/v1/commands", command, methods=["POST"]),
    Route("/api/v1/unload", unload, methods=["POST"]),
]  # fmt: skip
