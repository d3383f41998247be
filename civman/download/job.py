"""Downloads as a whole: choose the file, check that it may be downloaded, fetch it, record it in the index."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from civman.civitai.client import CivitaiClient
from civman.civitai.storage_connection import Network, StorageConnection, tls_context
from civman.domain.access import Permits, check_gates, check_version
from civman.domain.catalog import Asset, Blob, ModelFile, ModelVersion, Preview
from civman.domain.digests import Sha256
from civman.domain.events import Failed, Notice, OnEvent, Queued
from civman.domain.file_choice import choose_file
from civman.domain.file_names import safe_name
from civman.domain.file_suffixes import CONFIG_SUFFIXES
from civman.domain.printed_refs import file_ref
from civman.domain.refs import parse_ref
from civman.domain.timeouts import Patience
from civman.download.fetch import Fetched, Fetcher, Wanted, partial_key
from civman.download.rate_limit import RateLimit
from civman.download.transfer_options import TransferOptions
from civman.errors import AmbiguousRef, Cause, CivmanError, Interrupted, InvalidRef, NotFound, StoreError, UsageError
from civman.index import Index, SeenFile
from civman.manage.file_state import is_unchanged, seen_now
from civman.manage.find_assets import find_asset
from civman.manage.resolve import ResolvedVersion, remember
from civman.manage.sidecar import write_sidecar
from civman.store.blobs import BlobStore
from civman.store.trash import blob_lock, take_back

_MOST_CONNECTIONS = 24
_PREVIEW_BYTES = 32 << 20
_SAFE_LEVEL = 1
"""CivitAI's NSFW level for images rated PG."""


class Previews(StrEnum):
    """Which preview image to store with a model file."""

    SAFE = "safe"
    ANY = "any"
    NONE = "none"


def previews_named(name: str) -> Previews:
    """Return the `Previews` value for a user's choice. Raises: UsageError: the choice is not valid."""
    try:
        return Previews(name.lower())
    except ValueError:
        raise UsageError(f"`{name}` is not a valid preview choice", hint="choose one of: safe, any, none") from None


Examine = Callable[[ModelVersion, ModelFile], list[str]]
"""A function that is called for each file before its download.

It returns notices for the user, or raises a CivmanError to refuse the file.
"""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Settings of a download: connections, speed limit, preview image, and a check to run before each file."""

    connections: int | None = None
    """The number of connections per file; None: as many as make the download faster."""
    files_at_once: int = 3
    limit: RateLimit | None = None
    preview: Previews = Previews.SAFE
    examine: Examine | None = None
    is_stopped: Callable[[], bool] = lambda: False
    """Called several times a second; once it returns True, the downloads are interrupted."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file to download."""

    ref: str
    resolved: ResolvedVersion
    file: ModelFile
    name: str
    """The file's name, made safe for any file system."""
    notices: tuple[str, ...]
    held: Asset | None
    """The stored asset if the index already lists this file of this version, else None."""
    is_stored: bool
    """Whether the store already has the file's bytes, even if only under another version or name."""
    places: tuple[SeenFile, ...] = ()
    """Paths outside the store at which a file with these bytes was read before."""

    @property
    def version(self) -> ModelVersion:
        """The model version that the file belongs to."""
        return self.resolved.version


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of downloading one ref: an asset or an error."""

    ref: str
    asset: Asset | None = None
    error: CivmanError | None = None
    was_present: bool = False


def shown_ref(text: str) -> str:
    """Remove the query from a URL, because it may contain an API key: the result is safe to show and to store."""
    try:
        return str(parse_ref(text))
    except InvalidRef:
        return text.partition("?")[0]


class Downloads:
    """The downloads of one command. Use this object from one thread only; it starts more threads by itself."""

    def __init__(
        self,
        *,
        index: Index,
        store: BlobStore,
        client: CivitaiClient,
        network: Network,
        resolve: Callable[[str], ResolvedVersion],
        clock: Callable[[], datetime],
        patience: Patience,
    ) -> None:
        """`network` provides the API key and the settings for connections to the storage servers."""
        self._index = index
        self._store = store
        self._client = client
        self._network = network
        self._tls = cache(tls_context)  # loading the CA certificates takes 0.03 s, so do it once
        self._resolve = resolve
        self._clock = clock
        self._patience = patience

    def plan(self, ref: str, *, file: str | None, permits: Permits, examine: Examine | None = None) -> Job:
        """Choose the file that `ref` refers to and check that it may be downloaded.

        Raises: NotFound, AmbiguousRef, Gone, NotAllowed, Refused: the file cannot be downloaded.
        """
        resolved = self._resolve(ref)
        version = resolved.version
        if not version.files:
            check_version(version, has_token=self._network.token is not None, now=self._clock())
        chosen = choose_file(version, file or resolved.file)
        stored = self._store.find(chosen.hashes.sha256) if chosen.hashes.sha256 else None
        places = self._places(chosen.hashes.sha256) if stored is None else ()
        is_here = stored is not None or any(is_unchanged(place) for place in places)
        held = next(
            (
                asset
                for asset in self._index.find_by_version(version.id)
                if is_here and asset.blob.sha256 == chosen.hashes.sha256
            ),
            None,
        )
        notices: list[str] = []
        if held is None:
            notices = check_gates(
                version, chosen, permits=permits, has_token=self._network.token is not None, now=self._clock()
            )
            notices += [
                f"`{other.name}` is a config that belongs to this file: `civman download {file_ref(version, other)}`"
                for other in version.files
                if other is not chosen and other.suffix in CONFIG_SUFFIXES
            ]
        if examine is not None:
            notices += examine(version, chosen)
        name = safe_name(chosen.name, fallback=f"version-{version.id}")
        return Job(shown_ref(ref), resolved, chosen, name, tuple(notices), held, is_here, places)

    def _places(self, sha256: Sha256 | None) -> tuple[SeenFile, ...]:
        if sha256 is None:
            return ()
        return tuple(seen for seen in self._index.places([sha256]) if Path(seen.path).is_absolute())

    def find_stored(self, ref: str, file: str | None) -> Outcome | None:
        """Find the stored file that `ref` refers to, without asking CivitAI.

        None if there is no such file, or if `ref` is ambiguous.
        """
        try:
            asset = find_asset(self._index, parse_ref(ref), file)
        except (NotFound, AmbiguousRef, UsageError):
            return None
        is_there = Path(asset.path).is_file()
        return Outcome(shown_ref(ref), asset=asset, was_present=True) if is_there else None

    def run(
        self, refs: Sequence[str], *, file: str | None, permits: Permits, options: DownloadOptions, on_event: OnEvent
    ) -> list[Outcome]:
        """Download all `refs`, a few at a time. Returns an outcome for each, in the same order.

        Raises: Interrupted, KeyboardInterrupt: after all connections are closed. The bytes received so far are kept.
        """
        at_once = max(1, min(options.files_at_once, len(refs)))
        transfer_options = TransferOptions(
            max_connections=options.connections,
            most=max(1, _MOST_CONNECTIONS // at_once),
            limit=options.limit,
            patience=self._patience,
        )
        fetcher = Fetcher(self._store, self._connection, transfer_options, permits.pickle)
        cancel = threading.Event()
        outcomes: dict[int, Outcome] = {}
        running: dict[Future[Fetched], tuple[int, Job]] = {}
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="file")
        try:
            for number, ref in enumerate(refs):
                job = self._plan_or_report(ref, file, permits, options.examine, on_event)
                if isinstance(job, Outcome):
                    outcomes[number] = job
                else:
                    named = replace(job.file, name=job.name)
                    on_event(Queued(partial_key(job.version, job.file), job.name, job.file.size_bytes))
                    future = pool.submit(
                        fetcher.fetch, self._wanted(job, named), on_event=on_event, cancel=cancel, places=job.places
                    )
                    running[future] = number, job
                    # save the metadata now, while the file is being downloaded
                    remember(self._index, job.resolved, self._clock())
                    # import the rules that identify model files now, while the file is being downloaded, because
                    # importing them takes 0.05 s
                    from civman.manage import inspection  # noqa: F401
                while len(running) >= 2 * at_once:
                    self._collect(running, outcomes, options, on_event)
            while running:
                if options.is_stopped():
                    raise Interrupted("stopped")
                self._collect(running, outcomes, options, on_event)
        finally:
            cancel.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return [outcomes[number] for number in sorted(outcomes)]

    def _wanted(self, job: Job, file: ModelFile) -> Wanted:
        version = job.version
        return Wanted(partial_key(version, file), file, lambda: self._client.download_address(version.id, file))

    def _plan_or_report(
        self, ref: str, file: str | None, permits: Permits, examine: Examine | None, on_event: OnEvent
    ) -> Job | Outcome:
        try:
            job = self.plan(ref, file=file, permits=permits, examine=examine)
        except CivmanError as error:
            if isinstance(error, NotFound) and (stored := self.find_stored(ref, file)) is not None:
                return stored
            shown = shown_ref(ref)
            on_event(Failed(shown, shown, error.code, error.message))
            return Outcome(shown, error=error)
        for notice in job.notices:
            on_event(Notice(partial_key(job.version, job.file), notice))
        return job

    def _collect(
        self,
        running: dict[Future[Fetched], tuple[int, Job]],
        outcomes: dict[int, Outcome],
        options: DownloadOptions,
        on_event: OnEvent,
    ) -> None:
        """Collect the outcomes of finished downloads, waiting up to 0.1 s for the first one."""
        done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for future in done:
            number, job = running.pop(future)
            try:
                outcomes[number] = self._record(job, future.result(), options, on_event)
            except Interrupted:
                raise
            except CivmanError as error:
                on_event(Failed(partial_key(job.version, job.file), job.name, error.code, error.message))
                outcomes[number] = Outcome(job.ref, error=error)

    def _record(self, job: Job, fetched: Fetched, options: DownloadOptions, on_event: OnEvent) -> Outcome:
        """Record a downloaded file in the index.

        The row is written last: a crash may leave a file without a row, never a row without a file.
        """
        stored = fetched.blob
        is_outside = not stored.path.is_relative_to(self._store.root)
        if job.held is not None and fetched.was_present and (not is_outside or job.held.path == str(stored.path)):
            return Outcome(job.ref, job.held, was_present=True)
        # not imported at the top of the module: the import takes 0.05 s, which would delay the start of the download
        from civman.manage.inspection import facts_of_file

        now = self._clock()
        blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, fetched.declared_by, now)
        # the lock keeps other processes from removing or garbage-collecting the blob before its row is written
        with blob_lock(self._store, stored.sha256):
            if not (stored.path.is_file() if is_outside else take_back(self._store, stored.sha256)):
                raise StoreError(
                    f"`{job.name}` was removed by another program before it could be added to the index",
                    code=Cause.REMOVED_MEANWHILE,
                    hint="download the file again",
                )
            asset = self._index.record(
                blob=blob,
                path=str(stored.path),
                name=job.name,
                origin="civitai",
                version=job.version,
                file=job.file,
                facts=facts_of_file(stored.path, job.version.base_model),
                added_at=now,
            )
            write_sidecar(self._store, self._index, stored.sha256)
        kept_path = None if is_outside else stored.path.relative_to(self._store.root).as_posix()
        seen = seen_now(str(stored.path), stored.sha256, kept_path=kept_path)
        # record the file as verified: its bytes have just been read back from disk
        if seen is not None and not fetched.was_present:
            self._index.save_seen([seen])
        if options.preview is not Previews.NONE and self._store.preview(stored.sha256) is None:
            self._keep_preview(job, asset, options.preview, on_event)
        return Outcome(job.ref, asset, was_present=fetched.was_present)

    def _keep_preview(self, job: Job, asset: Asset, wanted: Previews, on_event: OnEvent) -> None:
        preview = next(_suitable(job.version.previews, wanted), None)
        if preview is None:
            return
        try:
            data = self.preview_bytes(preview)
            suffix = PurePosixPath(urlsplit(preview.url).path).suffix.lower()
            self._store.write_preview(asset.blob.sha256, data, suffix)
        except CivmanError as error:
            on_event(
                Notice(
                    partial_key(job.version, job.file), f"could not download a preview of `{job.name}`: {error.message}"
                )
            )

    def preview_bytes(self, preview: Preview) -> bytes:
        """Download an image that CivitAI shows for a version. Raises: what `StorageConnection.open` raises."""
        connection = self._connection()
        try:
            return bytes(connection.open(preview.url, start=0, end=None).read_all(_PREVIEW_BYTES))
        finally:
            connection.close()

    def _connection(self) -> StorageConnection:
        return StorageConnection(self._network, self._tls)


def _suitable(previews: Sequence[Preview], wanted: Previews) -> Iterator[Preview]:
    for preview in previews:
        if preview.media == "image" and (wanted is Previews.ANY or preview.nsfw_level == _SAFE_LEVEL):
            yield preview
