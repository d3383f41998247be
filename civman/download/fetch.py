"""One file from CivitAI into the store: fetched, read back, proven, named. In that order, or not at all."""

import hashlib
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from civman.civitai.client import CivitaiClient
from civman.civitai.storage_connection import StorageConnection
from civman.domain.catalog import ModelFile, ModelVersion
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import Finished, OnEvent, Restarted, Started, Verifying, Waiting
from civman.domain.files.header import Sniffed, sniff
from civman.download.same_file import Changed, Identity
from civman.download.transfer import Transfer
from civman.download.transfer_options import TransferOptions
from civman.errors import Cause, HashMismatch, IntegrityError, Interrupted, InvalidModelFile
from civman.store.blobs import BlobStore, StoredBlob
from civman.store.digester import Digester
from civman.store.partial import Partial
from civman.store.read_header import read_first, read_header

_ATTEMPTS = 2
_POLL_S = 0.2
_NEVER_MODELS = (Sniffed.HTML, Sniffed.XML, Sniffed.EMPTY, Sniffed.GIT_LFS)
_EVENT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A proven file. `declared_by` is "civitai" where its digest was compared with CivitAI's, else "civman"."""

    blob: StoredBlob
    declared_by: str
    was_present: bool


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Where files come from and where they go; shared by all files of a command."""

    client: CivitaiClient
    store: BlobStore
    connect: Callable[[], StorageConnection]
    options: TransferOptions = field(default_factory=TransferOptions)

    def fetch(self, version: ModelVersion, file: ModelFile, *, on_event: OnEvent, cancel: threading.Event) -> Fetched:
        """The bytes of `file`, verified and in the store; from the store alone where they are there already.

        `on_event` is called from several threads.
        Raises: NetworkError, NotAllowed, NotFound: they did not come. IntegrityError: they are not what CivitAI
            declared, or no model file. StoreError. Interrupted: `cancel` was set. What has arrived is kept, unless
            it is known to be wrong.
        """
        declared_by = "civitai" if _has_declaration(file.hashes) else "civman"
        if file.size_bytes == 0:
            raise InvalidModelFile(f"`{file.name}` is no model: CivitAI says that it is empty", name=file.name)
        partial = self.store.partial(partial_key(version, file))
        present = self._take(partial, file, on_event, cancel)
        if present is not None:
            on_event(Finished(partial.key, file.name, present.size_bytes, was_present=True))
            return Fetched(present, declared_by, was_present=True)
        try:
            blob = self._fetch_into(partial, version, file, on_event, cancel)
        finally:
            partial.close()
        on_event(Finished(partial.key, file.name, blob.size_bytes))
        return Fetched(blob, declared_by, was_present=False)

    def _take(self, partial: Partial, file: ModelFile, on_event: OnEvent, cancel: threading.Event) -> StoredBlob | None:
        """Own the partial, or find the blob: another process may be fetching the same file, and is let finish."""
        has_told = False
        while True:
            present = self._present(file)
            if present is not None:
                return present
            if partial.acquire():
                present = self._present(file)  # it may have come between the look and the lock
                if present is not None:
                    partial.close(discard=True)
                return present
            if not has_told:
                on_event(Started(partial.key, file.name, file.size_bytes, partial.journaled_bytes()))
                on_event(Waiting(partial.key, "another civman is fetching this file"))
                has_told = True
            if cancel.wait(_POLL_S):
                raise Interrupted(f"`{file.name}` was stopped")

    def _present(self, file: ModelFile) -> StoredBlob | None:
        return self.store.find(file.hashes.sha256) if file.hashes.sha256 else None

    def _fetch_into(
        self, partial: Partial, version: ModelVersion, file: ModelFile, on_event: OnEvent, cancel: threading.Event
    ) -> StoredBlob:
        if partial.discarded:
            on_event(Restarted(partial.key, partial.discarded))
        if file.size_bytes is not None and partial.size_bytes not in (None, file.size_bytes):
            on_event(Restarted(partial.key, "CivitAI now declares another size"))
            partial.reset()
        for attempt in range(_ATTEMPTS):
            on_event(Started(partial.key, file.name, file.size_bytes, partial.held_bytes))
            try:
                actual = self._bytes(partial, version, file, on_event, cancel, is_first=attempt == 0)
            except Changed as change:
                reason = str(change)
            else:
                expected = file.hashes.sha256
                if expected in (None, actual) or not partial.held_bytes:
                    return self._prove(partial, file, actual)
                reason = "the bytes kept from an earlier attempt are wrong"
            if attempt + 1 < _ATTEMPTS:
                on_event(Restarted(partial.key, reason))
            partial.reset()
        raise IntegrityError(
            f"`{file.name}` changes while it is downloaded: {reason}",
            code=Cause.CHANGED,
            hint="wait until its creator has finished uploading, then try again",
        )

    def _bytes(
        self,
        partial: Partial,
        version: ModelVersion,
        file: ModelFile,
        on_event: OnEvent,
        cancel: threading.Event,
        *,
        is_first: bool,
    ) -> Sha256:
        """All bytes in the partial; their SHA-256 as read back from disk."""
        if partial.size_bytes is not None:
            partial.reserve(partial.size_bytes)
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            size = partial.size_bytes or 0
            if done - told >= _EVENT_BYTES or done == size:
                told = done
                on_event(Verifying(partial.key, done, size))

        has_digest = file.hashes.sha256 is not None
        transfer = Transfer(
            partial,
            request_url=lambda: self.client.download_address(version.id, file),
            connect=self.connect,
            identity=Identity(
                partial,
                size_bytes=file.size_bytes,
                name=file.name,
                has_digest=has_digest,
                # replicas of one file may have an ETag each; where a digest decides, they are believed once
                compares_etags=is_first or not has_digest,
            ),
            name=file.name,
            options=self.options,
            on_event=on_event,
            cancel=cancel,
        )
        digester = Digester(partial, tell)
        try:
            transfer.run()
            return digester.finish(cancel)
        finally:
            digester.stop()

    def _prove(self, partial: Partial, file: ModelFile, actual: Sha256) -> StoredBlob:
        try:
            if file.hashes.sha256 in (None, actual):
                check_content(partial.path, file)
        except IntegrityError:
            partial.close(discard=True)
            raise
        return self.store.commit(
            partial, expected=file.hashes.sha256, actual=actual, name=file.name, suffix=file.suffix
        )


def partial_key(version: ModelVersion, file: ModelFile) -> str:
    """The name of the partial: the digest it must have, or the file's identity where none is declared."""
    named = file.id or hashlib.sha256(file.name.encode("utf-8", "replace")).hexdigest()[:12]
    return file.hashes.sha256 or f"version-{version.id}-file-{named}"


def check_content(path: Path, file: ModelFile) -> None:
    """Pass if the file at `path` is what its name says, as far as its first bytes and small digests tell.

    Raises: InvalidModelFile: a web page, a broken header. HashMismatch: another declared digest is wrong.
    """
    if file.suffix == ".safetensors":
        read_header(path)
    else:
        found = sniff(read_first(path))
        if found in _NEVER_MODELS:
            raise InvalidModelFile(f"`{file.name}` is no model: its content is {found.value}", name=file.name)
    if file.hashes.sha256 is None:
        for algorithm, expected in file.hashes.known().items():
            actual = _small_digest(path, algorithm)
            if actual is not None and actual != expected:
                raise HashMismatch(name=file.name, expected=expected, actual=actual, algorithm=algorithm)


def _has_declaration(hashes: Hashes) -> bool:
    return hashes.sha256 is not None or hashes.crc32 is not None or hashes.autov3 is not None


def _small_digest(path: Path, algorithm: str) -> str | None:
    """The digest by one of CivitAI's other algorithms, or None where it is not computed here (BLAKE3, AutoV1)."""
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
