"""A download as a whole: which file is meant, whether it may be had, its bytes, its place in the index."""

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
from civman.domain.events import Failed, Notice, OnEvent
from civman.domain.file_choice import choose_file
from civman.domain.file_names import safe_name
from civman.domain.refs import parse_ref
from civman.domain.timeouts import Patience
from civman.download.fetch import Fetched, Fetcher, partial_key
from civman.download.rate_limit import RateLimit
from civman.download.transfer_options import TransferOptions
from civman.errors import AmbiguousRef, Cause, CivmanError, Interrupted, InvalidRef, NotFound, StoreError, UsageError
from civman.index import Index
from civman.manage.file_state import seen_now
from civman.manage.resolve import ResolvedVersion, find_asset, remember
from civman.manage.sidecar import write_sidecar
from civman.store.blobs import BlobStore
from civman.store.trash import blob_lock, take_back

_MOST_CONNECTIONS = 24
_PREVIEW_BYTES = 32 << 20
_SAFE_LEVEL = 1
"""CivitAI's PG."""


class Previews(StrEnum):
    """Which preview picture is kept beside a file."""

    SAFE = "safe"
    ANY = "any"
    NONE = "none"


def previews_named(name: str) -> Previews:
    """The choice called `name`. Raises: UsageError."""
    try:
        return Previews(name.lower())
    except ValueError:
        raise UsageError(f"`{name}` is no choice of preview", hint="one of: safe, any, none") from None


Examine = Callable[[ModelVersion, ModelFile], list[str]]
"""Asked about each file before it is fetched: what to tell a person, or a CivmanError that refuses it."""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Connections, rate limit, preview and checks of a download."""

    connections: int | None = None
    """To one file; None: as many as pay."""
    files_at_once: int = 3
    limit: RateLimit | None = None
    preview: Previews = Previews.SAFE
    examine: Examine | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One file to be had."""

    ref: str
    resolved: ResolvedVersion
    file: ModelFile
    name: str
    """The file's name, safe for any file system."""
    notices: tuple[str, ...]
    held: Asset | None
    """The asset, where these bytes are here and known as this file already."""
    is_stored: bool
    """Whether the bytes are here already, whatever they are known as."""

    @property
    def version(self) -> ModelVersion:
        """The version that the file belongs to."""
        return self.resolved.version


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one ref: an asset, or an error."""

    ref: str
    asset: Asset | None = None
    error: CivmanError | None = None
    was_present: bool = False


def shown_ref(text: str) -> str:
    """`text` as it may be shown and kept: what a person pastes may hold a key in its query."""
    try:
        return str(parse_ref(text))
    except InvalidRef:
        return text.partition("?")[0]


class Downloads:
    """Downloads of one command. For one thread; it uses others inside."""

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
        """`network` describes how storage is reached, and contains the API key."""
        self._index = index
        self._store = store
        self._client = client
        self._network = network
        self._tls = cache(tls_context)  # 0.03 s a piece
        self._resolve = resolve
        self._clock = clock
        self._patience = patience

    def plan(self, ref: str, *, file: str | None, permits: Permits, examine: Examine | None = None) -> Job:
        """Which file `ref` means. Raises: NotFound, AmbiguousRef, Gone, NotAllowed, Refused: it cannot be had."""
        resolved = self._resolve(ref)
        version = resolved.version
        if not version.files:
            check_version(version, has_token=self._network.token is not None, now=self._clock())
        chosen = choose_file(version, file or resolved.file)
        stored = self._store.find(chosen.hashes.sha256) if chosen.hashes.sha256 else None
        held = next(
            (
                asset
                for asset in self._index.find_by_version(version.id)
                if stored is not None and asset.blob.sha256 == stored.sha256
            ),
            None,
        )
        notices: list[str] = []
        if held is None:
            notices = check_gates(
                version, chosen, permits=permits, has_token=self._network.token is not None, now=self._clock()
            )
        if examine is not None:
            notices += examine(version, chosen)
        name = safe_name(chosen.name, fallback=f"version-{version.id}")
        return Job(shown_ref(ref), resolved, chosen, name, tuple(notices), held, stored is not None)

    def find_stored(self, ref: str, file: str | None) -> Outcome | None:
        """The library's file that `ref` means, for files that CivitAI does not have; None if there is none."""
        try:
            asset = find_asset(self._index, parse_ref(ref), file)
        except (NotFound, AmbiguousRef, UsageError):
            return None
        is_there = Path(asset.path).is_file()
        return Outcome(shown_ref(ref), asset=asset, was_present=True) if is_there else None

    def run(
        self, refs: Sequence[str], *, file: str | None, permits: Permits, options: DownloadOptions, on_event: OnEvent
    ) -> list[Outcome]:
        """All of `refs`, some at a time; an outcome for each, in their order.

        Raises: Interrupted, KeyboardInterrupt: after every connection was closed; what has arrived is kept.
        """
        at_once = max(1, min(options.files_at_once, len(refs)))
        transfer_options = TransferOptions(
            max_connections=options.connections,
            most=max(1, _MOST_CONNECTIONS // at_once),
            limit=options.limit,
            patience=self._patience,
        )
        fetcher = Fetcher(self._client, self._store, self._connection, transfer_options)
        cancel = threading.Event()
        outcomes: dict[int, Outcome] = {}
        running: dict[Future[Fetched], tuple[int, Job]] = {}
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="file")
        try:
            for number, ref in enumerate(refs):
                job = self._planned(ref, file, permits, options.examine, on_event)
                if isinstance(job, Outcome):
                    outcomes[number] = job
                else:
                    named = replace(job.file, name=job.name)
                    future = pool.submit(fetcher.fetch, job.version, named, on_event=on_event, cancel=cancel)
                    running[future] = number, job
                    remember(self._index, job.resolved, self._clock())  # while the bytes come
                    from civman.manage import inspection  # noqa: F401  0.05 s of rules, for when they are there
                while len(running) >= 2 * at_once:
                    self._collect(running, outcomes, options, on_event)
            while running:
                self._collect(running, outcomes, options, on_event)
        finally:
            cancel.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return [outcomes[number] for number in sorted(outcomes)]

    def _planned(
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
        """Take in what has finished, waiting a moment for the first."""
        done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        for future in done:
            number, job = running.pop(future)
            try:
                outcomes[number] = self._kept(job, future.result(), options, on_event)
            except Interrupted:
                raise
            except CivmanError as error:
                on_event(Failed(partial_key(job.version, job.file), job.name, error.code, error.message))
                outcomes[number] = Outcome(job.ref, error=error)

    def _kept(self, job: Job, fetched: Fetched, options: DownloadOptions, on_event: OnEvent) -> Outcome:
        """Give the proven bytes their place in the index. The row comes last: a crash leaves bytes, never a row."""
        if job.held is not None and fetched.was_present:
            return Outcome(job.ref, job.held, was_present=True)
        from civman.manage.inspection import facts_of_file  # 0.05 s of rules, which the first byte need not wait for

        stored, now = fetched.blob, self._clock()
        blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, fetched.declared_by, now)
        # bytes and row belong together: nobody removes or collects the blob between the two
        with blob_lock(self._store, stored.sha256):
            if take_back(self._store, stored.sha256) is None:
                raise StoreError(
                    f"`{job.name}` was removed by another program",
                    code=Cause.REMOVED_MEANWHILE,
                    hint="download it again",
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
        seen = seen_now(str(stored.path), stored.sha256, kept_path=stored.path.relative_to(self._store.root).as_posix())
        if seen is not None and not fetched.was_present:  # its bytes were read back from disk just now
            self._index.save_seen([seen])
        if options.preview is not Previews.NONE and self._store.preview(stored.sha256) is None:
            self._keep_preview(job, asset, options.preview, on_event)
        return Outcome(job.ref, asset, was_present=fetched.was_present)

    def _keep_preview(self, job: Job, asset: Asset, wanted: Previews, on_event: OnEvent) -> None:
        preview = next(_suitable(job.version.previews, wanted), None)
        if preview is None:
            return
        connection = self._connection()
        try:
            body = connection.open(preview.url, start=0, end=None)
            data = body.read_all(_PREVIEW_BYTES)
            suffix = PurePosixPath(urlsplit(preview.url).path).suffix.lower()
            self._store.write_preview(asset.blob.sha256, data, suffix)
        except CivmanError as error:
            on_event(Notice(partial_key(job.version, job.file), f"no preview of `{job.name}`: {error.message}"))
        finally:
            connection.close()

    def _connection(self) -> StorageConnection:
        return StorageConnection(self._network, self._tls)


def _suitable(previews: Sequence[Preview], wanted: Previews) -> Iterator[Preview]:
    for preview in previews:
        if preview.media == "image" and (wanted is Previews.ANY or preview.nsfw_level == _SAFE_LEVEL):
            yield preview
