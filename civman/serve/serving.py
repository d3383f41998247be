"""What all routes share: the queue, the engine, and the threads in which the library is used."""

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request

from civman.domain.catalog import Preview
from civman.errors import NotFound, UsageError
from civman.library import Library
from civman.serve.download_jobs import download
from civman.serve.engine_link import EngineLink
from civman.serve.jobs import JobKind, JobQueue, ServerJob
from civman.serve.site_searches import SiteSearches
from civman.settings import Settings

T = TypeVar("T")
_DOWNLOADS_AT_ONCE = 3
Change = tuple[str, dict[str, Any]]
"""What happened to a job ("job", "step", "preview" or "written"), and the job as JSON at that moment."""


class LibraryThread:
    """A thread with a `Library` of its own, since a library may be used from one thread only."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._library: Library | None = None

    def _call(self, function: Callable[[Library], T]) -> T:
        if self._library is None:
            self._library = Library(self._settings)
        return function(self._library)

    async def run(self, function: Callable[[Library], T]) -> T:
        """Call `function` with the library, in its thread. Raises: what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, function)

    def close(self) -> None:
        """Close the library of this thread, and end the thread."""
        if self._library is not None:
            self._pool.submit(self._library.close).result()
        self._pool.shutdown()


class Serving:
    """The parts of a running server."""

    def __init__(self, settings: Settings, jobs: JobQueue, engine: EngineLink) -> None:
        self.settings, self.jobs, self.engine = settings, jobs, engine
        self.options: dict[str, Any] = {}
        """What clients of AUTOMATIC1111's API have set since the start."""
        self.previews: dict[str, Preview] = {}
        """Images from CivitAI in the latest responses, by the SHA-256 of their URLs."""
        self.searches = SiteSearches()
        """The latest searches of CivitAI; only for the thread of `site`."""
        self.images = ThreadPoolExecutor(4, thread_name_prefix="images")
        self._starting = ThreadPoolExecutor(
            1, thread_name_prefix="starting"
        )  # a thread that waits until the engine has loaded torch
        self.library = LibraryThread(settings, "library")
        self.site = LibraryThread(settings, "civitai")
        """The library's thread for requests that may have to wait for CivitAI, so that lists need not wait too."""
        self._downloads = [
            threading.Thread(target=self._download_all, name=f"downloads {number}", daemon=True)
            for number in range(_DOWNLOADS_AT_ONCE)
        ]
        self._streams: set[asyncio.Queue[Change | None]] = set()

    def start(self, *, warm: bool = False) -> None:
        """Start taking jobs. `warm`: start the engine's process at once."""
        self.engine.start(at_once=warm)
        for thread in self._downloads:
            thread.start()

    def close(self) -> None:
        """End the queue, the engine, the downloads and the threads."""
        self.jobs.close()
        self.engine.close()
        self.library.close()
        self.site.close()
        self.images.shutdown(cancel_futures=True)
        self._starting.shutdown(cancel_futures=True)

    async def device(self) -> str | None:
        """The device that renders, so that plans are made for it without loading torch in this process."""
        return await asyncio.get_running_loop().run_in_executor(self._starting, self.engine.device)

    def end_streams(self) -> None:
        """End all streams of events, so that the server can stop."""
        for stream in tuple(self._streams):
            stream.put_nowait(None)

    async def changes(self, *, previews: bool = False) -> AsyncIterator[Change | None]:
        """Yield every change of a job; None from time to time, so that a stream notices when its client disconnects.

        `previews`: also small images of what is being computed, which are made only while a client wants them.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Change | None](10_000)

        def put(change: Change) -> None:
            if not queue.full():
                queue.put_nowait(change)

        def heard(what: str, job: ServerJob) -> None:
            is_wanted = previews if what == "preview" else what != "written" or job.kind is JobKind.COMMAND
            if is_wanted and (value := _change_value(what, job)) is not None:
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    loop.call_soon_threadsafe(put, (what, value))

        unlisten = self.jobs.listen(heard)
        self._streams.add(queue)
        self.engine.watchers += previews
        try:
            yield None  # tell the reader that no change is missed from here on
            while True:
                try:
                    change = await asyncio.wait_for(queue.get(), 10)
                except TimeoutError:
                    yield None
                    continue
                if change is None:
                    return
                yield change
        finally:
            unlisten()
            self._streams.discard(queue)
            self.engine.watchers -= previews

    async def wait(self, job: ServerJob) -> None:
        """Wait until a job is over."""
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard(_: str, changed: ServerJob) -> None:
            if changed is job and job.is_over:
                loop.call_soon_threadsafe(over.set)

        unlisten = self.jobs.listen(heard)
        try:
            if not job.is_over:
                await over.wait()
        finally:
            unlisten()

    def _download_all(self) -> None:
        while (job := self.jobs.take(engine=False)) is not None:
            with Library(self.settings) as library:
                download(library, self.jobs, job)


def _change_value(what: str, job: ServerJob) -> dict[str, Any] | None:
    """A change as JSON; None if it is about a preview that no longer exists."""
    if what == "step":
        return {"id": job.number, "progress": job.progress}
    if what != "preview":
        return job.value()
    preview = job.preview
    return {"id": job.number, "jpeg": base64.b64encode(preview).decode()} if preview is not None else None


def serving(request: Request) -> Serving:
    """The server's parts, from a request."""
    found: Serving = request.app.state.serving
    return found


def client_of(request: Request) -> str:
    """Identify the sender of a request for the queue: the client's own name, else its program and address."""
    name = request.headers.get("x-civman-client") or request.headers.get("user-agent", "").partition("/")[0]
    address = request.client.host if request.client else ""
    return f"{name[:60] or 'unknown'} at {address}"


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body. Raises: UsageError."""
    data = await request.body()
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise UsageError("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise UsageError("the body must be a JSON object")
    return value


def job_of(request: Request) -> ServerJob:
    """Find the job whose number is in the request's path. Raises: NotFound."""
    number = int(request.path_params["number"])
    job = serving(request).jobs.get(number)
    if job is None:
        raise NotFound(f"there is no job {number}", hint="`civman jobs` lists all jobs")
    return job
