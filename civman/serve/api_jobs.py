"""The API's routes for the server's state, for jobs and their events, and for commands handed over by a terminal."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from civman import __version__
from civman.domain.recipes.enlargement import UpscaleRequest
from civman.errors import NotFound, UsageError
from civman.serve.api_library import is_set
from civman.serve.download_jobs import download_payload
from civman.serve.jobs import JobKind
from civman.serve.render_requests import (
    MOST_TEXT,
    changes_of,
    grid_axes,
    kept_value,
    recipe_of,
    request_of,
    require_name,
    require_recipe,
    upload_of,
)
from civman.serve.server_file import PROTOCOL
from civman.serve.serving import client_of, job_of, json_body, serving

HANDED_OVER = ("render", "replay")
"""The commands that the command line may hand over to a running server."""


async def about(request: Request) -> Response:
    """Return the server's version, its engine and the number of waiting jobs."""
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
    made = _SUBMITTED.get(str(body.get("kind")))
    if made is None:
        raise UsageError(f"`kind` must be one of: {', '.join(_SUBMITTED)}")
    kind, title, payload = made(body, parts.settings.library)
    job = parts.jobs.submit(kind, client_of(request), title, payload, lasts=True)
    return JSONResponse(job.value(), 202)


Submitted = tuple[JobKind, str, dict[str, Any]]
"""A submitted job: its kind, its title, and the payload for the process or thread that runs it."""


def _download(body: dict[str, Any], _: Path) -> Submitted:
    payload = download_payload(body)
    return JobKind.DOWNLOAD, payload["ref"], payload


def _render(body: dict[str, Any], library: Path) -> Submitted:
    _require_fields(body, "request", "requests", "device", "allow_partial")
    requests = body.get("requests", [body.get("request")])
    if not isinstance(requests, list) or not 0 < len(requests) <= 100:
        raise UsageError("`requests` must be a list of 1 to 100 render requests")
    checked = [request_of(each, library=library) for each in requests]
    kept = [kept_value(*each) for each in zip(requests, checked, strict=True)]
    return JobKind.RENDER, checked[0].prompt, {"requests": kept, **_conditions(body)}


def _grid(body: dict[str, Any], library: Path) -> Submitted:
    _require_fields(body, "request", "axes", "device", "allow_partial")
    request = request_of(body.get("request"), library=library)
    axes = grid_axes(body.get("axes"))
    payload = {"request": kept_value(body["request"], request), "axes": body["axes"], **_conditions(body)}
    return JobKind.GRID, f"{' × '.join(axis.title for axis in axes)}: {request.prompt}", payload


def _replay(body: dict[str, Any], _: Path) -> Submitted:
    _require_fields(body, "picture", "set", "fetch", "device")
    number = body.get("picture")
    if type(number) is not int or number < 0:
        raise UsageError("`picture` must be the number of an image in the library")
    changes_of(body.get("set", {}))
    payload = {
        "picture": number, "set": body.get("set", {}), "fetch": body.get("fetch") is True, "device": body.get("device"),
    }  # fmt: skip
    return JobKind.REPLAY, f"picture:{number}", payload


def _redraw(body: dict[str, Any], _: Path) -> Submitted:
    _require_fields(body, "recipe", "settings", "set", "pixel_sha256", "device", "allow_partial")
    changes_of(body.get("set", {}))
    payload: dict[str, Any] = {
        "set": body.get("set", {}), "pixel_sha256": body.get("pixel_sha256"), **_conditions(body),
    }  # fmt: skip
    if ("recipe" in body) == ("settings" in body):
        raise UsageError("pass either `recipe` or `settings`, not both")
    if "settings" in body:
        settings = _text(body, "settings")
        if len(settings) > MOST_TEXT:
            raise UsageError(f"`settings` has more than {MOST_TEXT} characters")
        return JobKind.REDRAW, settings, {**payload, "settings": settings}
    recipe = recipe_of(body["recipe"])
    require_recipe(recipe)
    return JobKind.REDRAW, recipe.prompt, {**payload, "recipe": body["recipe"]}


def _upscale(body: dict[str, Any], library: Path) -> Submitted:
    _require_fields(body, "image", "upscaler", "scale", "size", "device")
    upscaler = require_name(_text(body, "upscaler"))
    UpscaleRequest(upscaler, body.get("scale"), body.get("size"))
    payload = {
        "files": [str(upload_of(body.get("image"), library))], "upscaler": upscaler, "scale": body.get("scale"),
        "size": body.get("size"), "multiple": 1, "device": body.get("device"),
    }  # fmt: skip
    return JobKind.UPSCALE, f"upscale with {upscaler}", payload


_SUBMITTED: dict[str, Callable[[dict[str, Any], Path], Submitted]] = {
    "render": _render, "grid": _grid, "replay": _replay, "redraw": _redraw, "upscale": _upscale,
    "download": _download,
}  # fmt: skip


def _conditions(body: dict[str, Any]) -> dict[str, Any]:
    return {"device": body.get("device"), "allow_partial": body.get("allow_partial")}


def _require_fields(body: dict[str, Any], *known: str) -> None:
    unknown = sorted(set(body) - {"kind", *known})
    if unknown:
        raise UsageError(
            f"a job of kind `{body['kind']}` has no field `{unknown[0]}`", hint=f"fields: {', '.join(known)}"
        )


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"`{name}` must be a string")
    return value


async def jobs(request: Request) -> Response:
    """List all jobs that the server remembers, the latest first, and the queue positions of waiting jobs."""
    queue = serving(request).jobs
    return JSONResponse({"jobs": [job.value() for job in reversed(queue.all())], "places": queue.places()})


async def job(request: Request) -> Response:
    """Return one job; if it runs a command, with the command's output so far."""
    found = job_of(request)
    return JSONResponse({**found.value(), "written": found.written})


async def cancel(request: Request) -> Response:
    """Cancel a job; if the job has ended already, this changes nothing."""
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
    """Stream every change of every job as server-sent events; the stream begins with all unfinished jobs."""
    parts, previews = serving(request), is_set(request, "previews")

    async def stream() -> AsyncIterator[str]:
        is_first = True
        async for change in parts.changes(previews=previews):
            if is_first:
                yield ": all unfinished jobs follow\n\n"
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
    """Run a command that a terminal handed over, and stream its output as JSON objects, one per line.

    The token proves that the caller can read the library's folder, so the command may use file paths as if the caller
    had run it.
    """
    body, parts = await json_body(request), serving(request)
    argv, environment = body.get("argv"), body.get("environment", {})
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise UsageError("`argv` must be a list of strings")
    if argv[0] not in HANDED_OVER:
        raise UsageError(
            f"the command `{argv[0]}` cannot be handed over to the server",
            hint=f"only these commands can be handed over: {', '.join(HANDED_OVER)}",
        )
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
                # cancel the command: its client has disconnected, so nobody would receive the output
                parts.jobs.cancel(queued.number)
        result = queued.result or {}
        yield json.dumps({"exit_code": result.get("exit_code"), "error": queued.error}) + "\n"

    return StreamingResponse(stream(), media_type="application/x-ndjson")


async def sheet(request: Request) -> Response:
    """Return the contact sheet of a finished grid."""
    found = job_of(request)
    path = (found.result or {}).get("sheet") if found.kind is JobKind.GRID else None
    if path is None or not Path(path).is_file():
        raise NotFound(f"job {found.number} has no contact sheet")
    return FileResponse(path, media_type="image/png")


async def unload(request: Request) -> Response:
    """Free the memory of all loaded models by ending the engine's process. Refused while a render is running."""
    if not serving(request).engine.unload():
        raise NotFound(
            "a render is running, so the models stay loaded",
            hint="wait until the render has finished, or cancel it first",
        )
    return JSONResponse({})


ROUTES = [
    Route("/api/v1/server", about), Route("/api/v1/jobs", jobs, methods=["GET"]),
    Route("/api/v1/jobs", submit, methods=["POST"]),
    Route("/api/v1/jobs/{number:int}", job, methods=["GET"]),
    Route("/api/v1/jobs/{number:int}", cancel, methods=["DELETE"]),
    Route("/api/v1/jobs/{number:int}/move", move, methods=["POST"]),
    Route("/api/v1/jobs/{number:int}/sheet", sheet), Route("/api/v1/events", events),
    Route("/api/v1/commands", command, methods=["POST"]), Route("/api/v1/unload", unload, methods=["POST"]),
]  # fmt: skip
