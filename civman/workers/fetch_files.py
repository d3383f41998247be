"""Fetches a plan's files from the head to a worker's machine by digest; they are verified on arrival and cached."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from civman.civitai.responses import DownloadAddress
from civman.civitai.site import user_agent
from civman.civitai.storage_connection import Network, StorageConnection, tls_context
from civman.domain.catalog import ModelFile
from civman.domain.digests import Hashes
from civman.domain.events import ignore
from civman.download.fetch import Fetcher, Wanted
from civman.planning.plan_types import PlannedFile
from civman.planning.plan_upscale import PlannedUpscale
from civman.store.blobs import BlobStore
from civman.workers.tasks import Work


@dataclass(frozen=True, slots=True)
class Source:
    """Where a worker fetches its files: HOST:PORT of the head's `BlobServer`, and the server's token."""

    origin: str
    token: str = field(repr=False)


def with_local_files(planned: Work, source: Source, cache: Path) -> Work:
    """Return the plan with its files in the folder `cache`, after fetching those that the folder lacks.

    Raises: NetworkError: the head cannot be reached. HashMismatch: the head sent other bytes. StoreError.
    """
    store = BlobStore(cache)
    files = tuple(_local(file, source, store) for file in planned.files)
    return planned.with_files(files) if isinstance(planned, PlannedUpscale) else replace(planned, files=files)


def _local(file: PlannedFile, source: Source, store: BlobStore) -> PlannedFile:
    if file.data is not None:  # nothing to fetch: the plan itself contains the bytes of this image
        return file
    stored = store.find(file.sha256)
    if stored is None:
        network = Network(user_agent(), token=source.token, own_server=("http", source.origin))
        fetcher = Fetcher(store, lambda: StorageConnection(network, tls_context), allow_pickle=True)
        address = DownloadAddress(f"http://{source.origin}/blobs/sha256/{file.sha256}", send_token=True)
        wanted = ModelFile(None, file.name, "Model", None, Hashes(sha256=file.sha256))
        stored = fetcher.fetch(
            Wanted(file.sha256, wanted, lambda: address), on_event=ignore, cancel=threading.Event()
        ).blob
    copy = None if file.copy is None else store.root / "copies" / file.copy.name
    return replace(file, path=stored.path, copy=copy)
