"""The web application, and the function that runs it until the process is told to stop."""

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from civman import __version__
from civman.domain.json_values import error_value
from civman.errors import Cause, CivmanError, ExitCode, Refused, UsageError
from civman.serve import (
    api_civitai,
    api_jobs,
    api_library,
    api_models,
    api_pictures,
    api_plans,
    openai_api,
    sdapi_controlnet,
    sdapi_extras,
    sdapi_render,
    sdapi_state,
)
from civman.serve.engine_link import EngineLink
from civman.serve.engine_process import RunCommand
from civman.serve.job_journal import JobJournal
from civman.serve.jobs import JobQueue
from civman.serve.openapi import openapi
from civman.serve.page_files import ROUTES as PAGE_ROUTES
from civman.serve.page_files import START, page_answer, wants_page
from civman.serve.request_checks import COOKIE, Access, BodyTooLarge, Guard, hosts_of, refused
from civman.serve.server_file import ServerFile, read_server_file
from civman.serve.serving import Serving
from civman.settings import Settings
from civman.system.process_lock import FileLock

STATUS = {
    ExitCode.USAGE: 400, ExitCode.NOT_FOUND: 404, ExitCode.NOT_ALLOWED: 403, ExitCode.NETWORK: 502,
    ExitCode.INTEGRITY: 422, ExitCode.INCOMPATIBLE: 422, ExitCode.CANNOT_RENDER: 422,
}  # fmt: skip
"""The HTTP status of an error, by its exit code on the command line; for other exit codes it is 500."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Options of the server. `origins`: sites whose pages may use the API, such as "https://example.org".

    `host`: with an address other than loopback, every request needs the token. `port`: 0 chooses any free port.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Additional host names under which browsers reach the server, such as "studio.local"."""
    budget_bytes: int = 0
    warm: bool = False
    """Start the engine's process at once."""


def _failed(request: Request, error: Exception) -> Response:
    """Send an error in the format of the API that the client uses (civman's, A1111's or OpenAI's)."""
    assert isinstance(error, CivmanError)
    value, status = error_value(error), STATUS.get(error.exit_code, 500)
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    kind = type(error).__name__
    if request.url.path.startswith("/sdapi/"):
        return JSONResponse({"error": kind, "detail": message, "body": "", "errors": message}, status)
    if request.url.path.startswith("/v1/"):
        told = {"message": message, "type": "invalid_request_error", "code": value["code"], "param": None}
        return JSONResponse({"error": told}, status)
    value["facts"] = {}  # leave out the facts, which may contain paths of this computer
    return JSONResponse(value, status)


def _http_failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error.status_code, "http", str(error.detail), error.headers)


def _too_large(_: Request, __: Exception) -> Response:
    return refused(413, "too-large", "the body is too large")


def _bug(_: Request, error: Exception) -> Response:
    return refused(500, "bug", f"civman has a bug: {type(error).__name__}")


async def _front(request: Request) -> Response:
    """Send the web page to browsers and a short JSON description to programs; a token in the URL becomes a cookie."""
    token = request.query_params.get("token")
    if token and request.app.state.access.needs_token:
        entered = RedirectResponse("/", 303)  # redirect, so that the token does not stay in the browser's address bar
        entered.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return entered
    if wants_page(request):
        return page_answer(request, START)
    return JSONResponse({"name": "civman", "version": __version__, "openapi": "/api/v1/openapi.json"})


async def _openapi(request: Request) -> Response:
    return JSONResponse(openapi(request.app.routes))


def make_app(serving: Serving, access: Access) -> Guard:
    """Make the web application with all routes, behind the checks of `access`."""
    routes: list[BaseRoute] = [
        Route("/", _front, methods=["GET"]), Route("/api/v1/openapi.json", _openapi), *PAGE_ROUTES,
        *api_models.ROUTES, *api_library.ROUTES, *api_pictures.ROUTES, *api_plans.ROUTES, *api_jobs.ROUTES,
        *api_civitai.ROUTES, *sdapi_render.ROUTES, *sdapi_state.ROUTES, *sdapi_controlnet.ROUTES, *sdapi_extras.ROUTES,
        *openai_api.ROUTES,
    ]  # fmt: skip
    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        CivmanError: _failed, HTTPException: _http_failed, BodyTooLarge: _too_large, Exception: _bug,
    }  # fmt: skip
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.serving, app.state.access = serving, access
    return Guard(_without_trailing_slash(app), access)


def _without_trailing_slash(app: Starlette) -> Any:
    """Treat `/sdapi/v1/options/` as `/sdapi/v1/options`.

    The server does not redirect instead, because old clients would send a POST again without its body.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/", "raw_path": None}
        await app(scope, receive, send)

    return answer


class _Server(uvicorn.Server):
    """A uvicorn server that ends its event streams before it stops, since it would wait for them otherwise."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams, then shut down."""
        self._end_streams()
        await super().shutdown(sockets)


def run_server(
    settings: Settings, options: ServeOptions, run_command: RunCommand, on_ready: Callable[[str, str], None]
) -> None:
    """Serve until the process receives SIGINT or SIGTERM. `on_ready` is called with the server's URL and the token.

    `run_command` runs handed-over commands in the engine's process; it must be a function that can be pickled.

    Raises: Refused: a server of this library is running already. UsageError: the address cannot be used. StoreError:
        the list of jobs cannot be read or written.
    """
    root = settings.library
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        _serve(settings, options, run_command, on_ready)


def _serve(
    settings: Settings, options: ServeOptions, run_command: RunCommand, on_ready: Callable[[str, str], None]
) -> None:
    root = settings.library
    journal = JobJournal(root)
    jobs = JobQueue(journal)
    listening = _bound(options)
    port = listening.getsockname()[1]
    is_loopback = options.host in ("127.0.0.1", "localhost", "::1")
    token = secrets.token_urlsafe(32)
    hosts = hosts_of(options.host, port) | {f"{name.lower()}:{port}" for name in options.names}
    is_everywhere = options.host in ("0.0.0.0", "::")  # noqa: S104  # asked for
    if is_everywhere:
        hosts |= {f"{socket.gethostname().lower()}:{port}"}
    access = Access(
        token, hosts, frozenset(options.origins), needs_token=not is_loopback, by_address=is_everywhere
    )  # fmt: skip
    serving = Serving(settings, jobs, EngineLink(jobs, root, options.budget_bytes, run_command))
    config = uvicorn.Config(
        make_app(serving, access), loop="asyncio", http="h11", ws="none", lifespan="off", access_log=False,
        log_level="error", timeout_graceful_shutdown=2, server_header=False, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    found = ServerFile(os.getpid(), port, token, __version__)
    found.write(root)
    try:
        serving.start(warm=options.warm)
        on_ready(f"http://{options.host if ':' not in options.host else f'[{options.host}]'}:{port}", token)
        with _quiet_signals():
            asyncio.run(_Server(config, serving.end_streams).serve([listening]))
    finally:
        found.remove(root)
        serving.close()
        journal.close()
        listening.close()


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM outside uvicorn, which raises them again after it has stopped."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _alone(library: Path) -> Iterator[None]:
    """Hold the lock that allows only one server per library. Raises: Refused: another server holds it."""
    lock = FileLock(library / "serve.lock")
    if not lock.acquire():
        there = read_server_file(library)
        where = f", at http://127.0.0.1:{there.port}" if there is not None else ""
        raise Refused(
            f"a server of this library is running already{where}", code=Cause.REFUSED,
            hint="use that server, or end it first" + (f" (process {there.pid})" if there is not None else ""),
        )  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def _bound(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((options.host, options.port))
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        raise UsageError(
            f"cannot listen on {options.host}, port {options.port}: {error}", hint="choose another port with --port"
        ) from error
    return made
