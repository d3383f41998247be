"""The state that all routes share: the queue, the engine, and the threads that use the library."""

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
"""A change to a job: its kind ("job", "step", "preview" or "written"), and the changed data as JSON."""


class LibraryThread:
    """A thread that opens its own `Library`, since a library may be used from one thread only."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._library: Library | None = None

    def _call(self, function: Callable[[Library], T]) -> T:
        if self._library is None:
            self._library = Library(self._settings)
        return function(self._library)

    async def run(self, function: Callable[[Library], T]) -> T:
        """Call `function` with the library in this thread and return its result. Raises: what `function` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, function)

    def close(self) -> None:
        """Close the library of this thread, and end the thread."""
        if self._library is not None:
            self._pool.submit(self._library.close).result()
        self._pool.shutdown()


class Serving:
    """The state of a running server: its queue, engine, threads and options."""

    def __init__(self, settings: Settings, jobs: JobQueue, engine: EngineLink) -> None:
        self.settings, self.jobs, self.engine = settings, jobs, engine
        self.options: dict[str, Any] = {}
        """The options that clients of AUTOMATIC1111's API have set since the server started."""
        self.previews: dict[str, Preview] = {}
        """The images on CivitAI that recent responses listed, by the SHA-256 of their URLs."""
        self.searches = SiteSearches()
        """The latest searches of CivitAI. They may be used only in the thread of `self.site`."""
        self.images = ThreadPoolExecutor(4, thread_name_prefix="images")
        # a separate thread, because asking the engine for its device waits until torch is loaded
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="starting")
        self.library = LibraryThread(settings, "library")
        self.site = LibraryThread(settings, "civitai")
        """A second library thread for requests that may wait for CivitAI, so that requests handled by `self.library`
        need not wait.
        """
        self._downloads = [
            threading.Thread(target=self._download_all, name=f"downloads {number}", daemon=True)
            for number in range(_DOWNLOADS_AT_ONCE)
        ]
        self._streams: set[asyncio.Queue[Change | None]] = set()

    def start(self, *, warm: bool = False) -> None:
        """Start running the queue's jobs. `warm`: start the engine's process at once."""
        self.engine.start(at_once=warm)
        for thread in self._downloads:
            thread.start()

    def close(self) -> None:
        """Close the queue, and stop the engine, the downloads and the threads."""
        self.jobs.close()
        self.engine.close()
        self.library.close()
        self.site.close()
        self.images.shutdown(cancel_futures=True)
        self._starting.shutdown(cancel_futures=True)

    async def device(self) -> str | None:
        """Return the engine's default device, so that plans can use it without loading torch in this process."""
        return await asyncio.get_running_loop().run_in_executor(self._starting, self.engine.device)

    def end_streams(self) -> None:
        """End all streams of events, so that the server can stop."""
        for stream in tuple(self._streams):
            stream.put_nowait(None)

    async def changes(self, *, previews: bool = False) -> AsyncIterator[Change | None]:
        """Yield every change of every job, and None now and then, so that a stream notices when its client disconnects.

        `previews`: also yield previews of the image being rendered; they are computed only while a client wants them.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Change | None](10_000)

        def put(change: Change) -> None:
            if not queue.full():
                queue.put_nowait(change)

        def heard(what: str, job: ServerJob) -> None:
            is_wanted = previews if what == "preview" else what != "written" or job.kind is JobKind.COMMAND
            if is_wanted and (value := _change_value(what, job)) is not None:
                # ignore the error: the event loop is closed, so the server has stopped
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(put, (what, value))

        unlisten = self.jobs.listen(heard)
        self._streams.add(queue)
        self.engine.watchers += previews
        try:
            yield None  # the listener is registered, so the reader will not miss any change from here on
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
    """Convert a change to JSON; None if it is a preview that no longer exists."""
    if what == "step":
        return {"id": job.number, "progress": job.progress}
    if what != "preview":
        return job.value()
    preview = job.preview
    return {"id": job.number, "jpeg": base64.b64encode(preview).decode()} if preview is not None else None


def serving(request: Request) -> Serving:
    """Return the state of the server that received a request."""
    found: Serving = request.app.state.serving
    return found


def client_of(request: Request) -> str:
    """Return a name for a request's sender: the X-Civman-Client header or its program's name, and its IP address."""
    name = request.headers.get("x-civman-client") or request.headers.get("user-agent", "").partition("/")[0]
    address = request.client.host if request.client else ""
    return f"{name[:60] or 'unknown'} at {address}"


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body. Raises: UsageError."""
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
