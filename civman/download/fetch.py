"""Downloads one file into the store: receives it, reads it back from disk, verifies it, then renames it.

The file gets its final name only after every earlier step has succeeded.
"""

import hashlib
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from civman.civitai.responses import DownloadAddress
from civman.civitai.storage_connection import StorageConnection
from civman.domain.catalog import ModelFile, ModelVersion
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import Finished, OnEvent, Restarted, Started, Verifying, Waiting
from civman.domain.file_choice import is_pickle
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.domain.files.header import Sniffed, sniff
from civman.download.same_file import Changed, Identity
from civman.download.transfer import Transfer
from civman.download.transfer_options import TransferOptions
from civman.errors import Cause, HashMismatch, IntegrityError, Interrupted, InvalidModelFile, Refused
from civman.index import SeenFile
from civman.manage.file_state import is_unchanged
from civman.store.blobs import BlobStore, StoredBlob, digest_of
from civman.store.digester import Digester
from civman.store.partial import Partial
from civman.store.read_header import read_first, read_header
from civman.store.read_pickle import require_readable

_ATTEMPTS = 2
_POLL_S = 0.2
_NEVER_MODELS = (Sniffed.HTML, Sniffed.XML, Sniffed.EMPTY, Sniffed.GIT_LFS)
_EVENT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified file.

    `declared_by`: "civitai" if the file's digest was compared with one that CivitAI declares, else "civman".
    """

    blob: StoredBlob
    declared_by: str
    was_present: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to download: the key of its partial file, its declared metadata, and a function that returns its URL."""

    key: str
    file: ModelFile
    request_url: Callable[[], DownloadAddress]
    """Requests a fresh signed URL. It is called again when the storage server reports that the last one has expired."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Downloads files into the store. All files of one command share it."""

    store: BlobStore
    connect: Callable[[], StorageConnection]
    options: TransferOptions = field(default_factory=TransferOptions)
    allow_pickle: bool = False
    """Accept pickles that civman cannot read without running them."""

    def fetch(
        self,
        wanted: Wanted,
        *,
        on_event: OnEvent,
        cancel: threading.Event,
        places: Sequence[SeenFile] = (),
    ) -> Fetched:
        """Download and verify a file and put it in the store. A file that is already stored is not downloaded again.

        `places` are paths outside the store where the file's bytes were read before; if the file is still at one of
        them, it is not downloaded either. `on_event` is called from several threads.

        Raises: NetworkError, NotAllowed, NotFound: the download failed. IntegrityError: the bytes are not what CivitAI
        declares, or not a model file. Refused: the file is a pickle that could run code. StoreError. Interrupted:
        `cancel` was set. The bytes received so far are kept for the next attempt, unless they are wrong.
        """
        file = wanted.file
        declared_by = "civitai" if _has_declaration(file.hashes) else "civman"
        if file.size_bytes == 0:
            raise InvalidModelFile(f"`{file.name}` is not a model file: CivitAI says that it is empty", name=file.name)
        partial = self.store.partial(wanted.key)
        present = self._in_place(partial.key, file, places, on_event)
        if present is None:
            present = self._lock_or_find(partial, file, on_event, cancel)
        if present is not None:
            if is_pickle(file) and not self.allow_pickle:
                require_readable(present.path, file.name)
            on_event(Finished(partial.key, file.name, present.size_bytes, was_present=True))
            return Fetched(present, declared_by, was_present=True)
        try:
            blob = self._fetch_into(partial, wanted, on_event, cancel)
        finally:
            partial.close()
        on_event(Finished(partial.key, file.name, blob.size_bytes))
        return Fetched(blob, declared_by, was_present=False)

    def _lock_or_find(
        self, partial: Partial, file: ModelFile, on_event: OnEvent, cancel: threading.Event
    ) -> StoredBlob | None:
        """Lock the partial file for this process and return None, or return the blob if the file is already stored.

        While another process is downloading the same file, wait until that process has finished.
        """
        has_reported = False
        while True:
            present = self._present(file)
            if present is not None:
                return present
            if partial.acquire():
                # look again: another process may have stored the file after the first check and before this process got
                # the lock
                present = self._present(file)
                if present is not None:
                    partial.close(discard=True)
                return present
            if not has_reported:
                on_event(Started(partial.key, file.name, file.size_bytes, partial.journaled_bytes()))
                on_event(Waiting(partial.key, "another civman process is downloading this file"))
                has_reported = True
            if cancel.wait(_POLL_S):
                raise Interrupted(f"the download of `{file.name}` was stopped")

    def _in_place(self, key: str, file: ModelFile, places: Sequence[SeenFile], on_event: OnEvent) -> StoredBlob | None:
        """Find the file at one of `places`, outside the store.

        Files that changed since they were last read are hashed again.
        """
        if file.hashes.sha256 is None or self._present(file) is not None:
            return None
        for seen in sorted(places, key=lambda seen: not is_unchanged(seen)):
            path = Path(seen.path)
            if not path.is_file():
                continue
            if not is_unchanged(seen):
                size = path.stat().st_size
                on_event(Started(key, file.name, size))
                if digest_of(path, lambda done: on_event(Verifying(key, done, size))) != file.hashes.sha256:  # noqa: B023
                    continue
            return StoredBlob(file.hashes.sha256, path.suffix.lower(), path, path.stat().st_size)
        return None

    def _present(self, file: ModelFile) -> StoredBlob | None:
        return self.store.find(file.hashes.sha256) if file.hashes.sha256 else None

    def _fetch_into(self, partial: Partial, wanted: Wanted, on_event: OnEvent, cancel: threading.Event) -> StoredBlob:
        file = wanted.file
        if partial.discarded:
            on_event(Restarted(partial.key, partial.discarded))
        if file.size_bytes is not None and partial.size_bytes not in (None, file.size_bytes):
            on_event(Restarted(partial.key, "CivitAI now declares another size"))
            partial.reset()
        for attempt in range(_ATTEMPTS):
            on_event(Started(partial.key, file.name, file.size_bytes, partial.held_bytes))
            try:
                actual = self._download(partial, wanted, on_event, cancel, is_first=attempt == 0)
            except Changed as change:
                reason = str(change)
            else:
                expected = file.hashes.sha256
                if expected in (None, actual) or not partial.held_bytes:
                    return self._verify_and_commit(partial, file, actual)
                reason = "the bytes from an earlier attempt do not have the right SHA-256"
            if attempt + 1 < _ATTEMPTS:
                on_event(Restarted(partial.key, reason))
            partial.reset()
        raise IntegrityError(
            f"`{file.name}` keeps changing while it is downloaded: {reason}",
            code=Cause.CHANGED,
            hint="wait until the creator has finished uploading, then try again",
        )

    def _download(
        self,
        partial: Partial,
        wanted: Wanted,
        on_event: OnEvent,
        cancel: threading.Event,
        *,
        is_first: bool,
    ) -> Sha256:
        """Download all missing bytes into the partial file. Returns its SHA-256 as read back from disk."""
        file = wanted.file
        if partial.size_bytes is not None:
            partial.reserve(partial.size_bytes)
        reported = 0

        def report(done: int) -> None:
            nonlocal reported
            size = partial.size_bytes or 0
            if done - reported >= _EVENT_BYTES or done == size:
                reported = done
                on_event(Verifying(partial.key, done, size))

        has_digest = file.hashes.sha256 is not None
        transfer = Transfer(
            partial,
            request_url=wanted.request_url,
            connect=self.connect,
            identity=Identity(
                partial,
                size_bytes=file.size_bytes,
                name=file.name,
                has_digest=has_digest,
                # mirrors of a file may send different ETags, so if a SHA-256 will verify the file, a changed
                # ETag restarts the download only once
                compares_etags=is_first or not has_digest,
            ),
            name=file.name,
            options=self.options,
            on_event=on_event,
            cancel=cancel,
        )
        digester = Digester(partial, report)
        try:
            transfer.run()
            return digester.finish(cancel)
        finally:
            digester.stop()

    def _verify_and_commit(self, partial: Partial, file: ModelFile, actual: Sha256) -> StoredBlob:
        try:
            if file.hashes.sha256 in (None, actual):
                check_content(partial.path, file)
                if is_pickle(file) and not self.allow_pickle:
                    require_readable(partial.path, file.name)
        except (IntegrityError, Refused):
            partial.close(discard=True)
            raise
        return self.store.commit(
            partial, expected=file.hashes.sha256, actual=actual, name=file.name, suffix=file.suffix
        )


def partial_key(version: ModelVersion, file: ModelFile) -> str:
    """The name of the partial file: the declared SHA-256, or else the ids of the version and the file."""
    named = file.id or hashlib.sha256(file.name.encode("utf-8", "replace")).hexdigest()[:12]
    return file.hashes.sha256 or f"version-{version.id}-file-{named}"


def check_content(path: Path, file: ModelFile) -> None:
    """Check the first bytes and the digests of the file at `path` against what its name and CivitAI declare.

    Raises: InvalidModelFile: the file is a web page, for instance, or its header is broken. HashMismatch: no
    SHA-256 is declared, and another declared digest does not match.
    """
    if file.suffix in SAFETENSORS_SUFFIXES:
        read_header(path)
    else:
        found = sniff(read_first(path))
        if found in _NEVER_MODELS:
            raise InvalidModelFile(f"`{file.name}` is not a model file: its content is {found.value}", name=file.name)
    if file.hashes.sha256 is None:
        for algorithm, expected in file.hashes.known().items():
            actual = _small_digest(path, algorithm)
            if actual is not None and actual != expected:
                raise HashMismatch(name=file.name, expected=expected, actual=actual, algorithm=algorithm)


def _has_declaration(hashes: Hashes) -> bool:
    return hashes.sha256 is not None or hashes.crc32 is not None or hashes.autov3 is not None


def _small_digest(path: Path, algorithm: str) -> str | None:
    """Compute the file's digest by `algorithm`; None for BLAKE3 and AutoV1, which are not verified after a download."""
    if algorithm == "crc32":
        value = 0
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                value = zlib.crc32(part, value)
        return f"{value:08x}"
    if algorithm == "autov3":
        sha256 = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(read_header(path).header_bytes)
            while part := file.read(1 << 20):
                sha256.update(part)
        return sha256.hexdigest()[:12]
    return None
