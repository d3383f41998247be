"""Downloads as jobs of the server: checks a client's request, and runs the download."""

import threading
import time
from typing import Any

from civman.domain.access import Permits
from civman.domain.events import Event, Failed, Finished, Notice, Queued, Received, Started, Verifying, Waiting
from civman.domain.json_values import error_value
from civman.download.job import DownloadOptions, previews_named, shown_ref
from civman.download.rate_limit import RateLimit, parse_rate
from civman.errors import Cause, CivmanError, ExitCode, UsageError
from civman.library import Library
from civman.serve.jobs import JobQueue, JobState, ServerJob
from civman.serve.render_requests import require_name

_TOLD_SECONDS = 0.2
_TEXTS = ("file", "for", "preview", "limit_rate")
_SWITCHES = ("force", "allow_pickle", "allow_unsafe", "allow_unverified")
_FIELDS = ("kind", "ref", "connections", *_TEXTS, *_SWITCHES)


def download_payload(body: dict[str, Any]) -> dict[str, Any]:
    """Check a client's download request and return the job's payload, whose fields are `civman download`'s options.

    Raises: UsageError: a field is unknown or has a wrong type. Refused: a ref is a path.
    """
    unknown = sorted(set(body) - set(_FIELDS))
    if unknown:
        raise UsageError(f"a download request has no field `{unknown[0]}`", hint=f"fields: {', '.join(_FIELDS)}")
    ref = body.get("ref")
    if not isinstance(ref, str) or not ref.strip():
        raise UsageError("`ref` must be a string")
    for name in _TEXTS:
        if not isinstance(body.get(name), str | None):
            raise UsageError(f"`{name}` must be a string")
    for name in _SWITCHES:
        if not isinstance(body.get(name, False), bool):
            raise UsageError(f"`{name}` must be true or false")
    connections = body.get("connections")
    if connections is not None and (type(connections) is not int or not 1 <= connections <= 32):
        raise UsageError("`connections` must be a number from 1 to 32")
    if body.get("for"):
        require_name(body["for"])
    if body.get("preview"):
        previews_named(body["preview"])
    if body.get("limit_rate"):
        parse_rate(body["limit_rate"])
    given = {name: body[name] for name in _FIELDS if name != "kind" and body.get(name) is not None}
    # `shown_ref` removes an API key from a URL: jobs are displayed and saved to disk
    return {**given, "ref": shown_ref(require_name(ref))}


def download(library: Library, jobs: JobQueue, job: ServerJob) -> None:
    """Run a download job until it succeeds, fails or is cancelled."""
    listener = _Listener(jobs, job)
    try:
        asset = library.download(
            job.payload["ref"], file=job.payload.get("file"), permits=_permits(job.payload),
            options=_options(library, job), on_event=listener.on_event,
        )  # fmt: skip
    except CivmanError as error:
        stopped = job.is_cancelling and error.exit_code == ExitCode.INTERRUPTED
        jobs.end(job, JobState.CANCELLED if stopped else JobState.FAILED, error=error_value(error))
    except Exception as error:  # noqa: BLE001  # a bug ends this job and not the thread
        wrong = CivmanError(f"civman has a bug: {type(error).__name__}: {error}", code=Cause.BUG)
        jobs.end(job, JobState.FAILED, error=error_value(wrong))
    else:
        result = {
            "sha256": asset.blob.sha256, "name": asset.name, "ref": asset.ref, "was_present": listener.was_present,
            "notices": listener.notices,
        }  # fmt: skip
        jobs.end(job, JobState.DONE, result=result)


def _permits(payload: dict[str, Any]) -> Permits:
    return Permits(**{name: bool(payload.get(f"allow_{name}")) for name in ("pickle", "unsafe", "unverified")})


def _options(library: Library, job: ServerJob) -> DownloadOptions:
    """Return the options of a download job. Raises: the error if the checkpoint named by `for` cannot be found."""
    payload = job.payload
    rate, checkpoint = payload.get("limit_rate"), payload.get("for")
    return DownloadOptions(
        connections=payload.get("connections"), limit=RateLimit(parse_rate(rate)) if rate else None,
        preview=previews_named(payload.get("preview", "safe")),
        examine=library.downloads.require_fit(checkpoint, force=bool(payload.get("force"))) if checkpoint else None,
        is_stopped=lambda: job.is_cancelling,
    )  # fmt: skip


class _Listener:
    """Turns the events of a download, which come from several threads, into a few progress reports per second."""

    def __init__(self, jobs: JobQueue, job: ServerJob) -> None:
        self._jobs, self._job = jobs, job
        self._lock = threading.Lock()
        self._told_at, self._stage = 0.0, ""
        self.notices: list[str] = []
        self.was_present = False

    def on_event(self, event: Event) -> None:
        """Record an event of the download, and report the progress if enough time has passed."""
        with self._lock:
            if isinstance(event, Notice):
                self.notices.append(event.message)
            if isinstance(event, Finished):
                self.was_present = event.was_present
            self._job.progress = _progress(self._job.progress, event)
            now, stage = time.monotonic(), self._job.progress.get("stage", "")
            is_due = stage != self._stage or now - self._told_at >= _TOLD_SECONDS
            if is_due:
                self._told_at, self._stage = now, stage
        if is_due:
            self._jobs.tell("step", self._job)


def _progress(before: dict[str, Any], event: Event) -> dict[str, Any]:
    match event:
        case Queued() | Started():
            held = event.held_bytes if isinstance(event, Started) else 0
            return {"name": event.name, "total_bytes": event.total_bytes, "received_bytes": held, "stage": "download"}
        case Received():
            received = before.get("received_bytes", 0) + event.count_bytes
            return {**before, "received_bytes": received, "stage": "download"}
        case Verifying():
            return {**before, "stage": "verify", "verified_bytes": event.done_bytes}
        case Waiting():
            return {**before, "stage": "wait", "reason": event.reason}
        case Finished() | Failed():
            return {**before, "stage": "end"}
    return before
