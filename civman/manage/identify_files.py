"""Finds the CivitAI version of each file: by its SHA-256, by its tensors' digest, or by another program's metadata.

CivitAI is asked about all files in one request. Files that it does not know by SHA-256 are looked up by AutoV3, the
digest of the tensors alone, which stays the same when another program edits the header. If a response is unusable, only
the file concerned stays unidentified, and the next import asks again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TypeVar

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import ModelFile, ModelId, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.events import Notice, OnEvent
from civman.errors import Cause, CivmanError, NotFound
from civman.index import Index, Source

_MODELS_AT_ONCE = 100
_ASKERS = 4
_MOST_BY_TENSORS = 200
"""The maximum number of files that one import looks up by AutoV3: CivitAI has no batch request for AutoV3."""
_MOST_FAILURES_AT_FIRST, _MOST_FAILURES = 3, 12
"""The number of failed requests in a row after which no more are sent. The first limit applies until a request has
succeeded, the second one afterwards.
"""
_NOT_REACHED = frozenset(
    {Cause.UNREACHABLE, Cause.TIMEOUT, Cause.TLS, Cause.PROXY, Cause.OFFLINE, Cause.BLOCKED_CLIENT, Cause.RATE_LIMITED}
)
"""Causes of failure that would probably make all further requests fail too."""
T = TypeVar("T")
R = TypeVar("R")


class FoundBy(StrEnum):
    """The evidence that a file belongs to a version."""

    SHA256 = "sha256"
    TENSORS = "tensors"
    """The tensors are the same as those of the version's file, but the header differs, and with it the SHA-256."""
    NOTE = "note"
    """A metadata file that another program saved next to the file contains the file's digest."""


@dataclass(frozen=True, slots=True)
class Unidentified:
    """A file to identify. `autov3` returns the digest of its tensors, or None; it is called only if it is needed."""

    sha256: Sha256
    path: Path
    autov3: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Identification:
    """The version that a file belongs to. `file` is None if the version lists no file with exactly these bytes."""

    version: ModelVersion
    file: ModelFile | None
    by: FoundBy


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A file about which CivitAI could not be asked, and the reason."""

    path: str
    message: str


@dataclass(slots=True)
class Identified:
    """The result of identifying files: what was found, and the files for which the request to CivitAI failed."""

    found: dict[Sha256, Identification] = field(default_factory=dict)
    unanswered: list[Unanswered] = field(default_factory=list)


def ask_civitai(
    index: Index, client: CivitaiClient, files: Sequence[Unidentified], on_event: OnEvent, now: datetime
) -> Identified:
    """Identify files by asking CivitAI, and save the models that it returns in the index.

    A failed request does not raise an error; it is reported as a notice.
    """
    return _Asking(index, client, files, on_event, now).result()


class _StopAskingError(Exception):
    """Stops all further requests, because CivitAI cannot be reached."""


class _Asking:
    """The state of one round of requests to CivitAI."""

    def __init__(
        self, index: Index, client: CivitaiClient, files: Sequence[Unidentified], on_event: OnEvent, now: datetime
    ) -> None:
        self._index = index
        self._client = client
        self._files = {file.sha256: file for file in files}
        self._on_event = on_event
        self._now = now
        self._identified = Identified()
        self._failures = 0
        self._has_answered = False

    def result(self) -> Identified:
        """Send all pending requests. After too many failures, the remaining files stay unidentified."""
        known: dict[Sha256, tuple[ModelId, VersionId]] = {}
        by_tensors: dict[Sha256, ModelVersion] = {}
        try:
            known = self._known_ids()
            unanswered = {said.path for said in self._identified.unanswered}
            by_tensors = self._known_tensors(
                [file for file in self._files.values() if file.sha256 not in known and str(file.path) not in unanswered]
            )
            self._read_models(known, by_tensors)
        except _StopAskingError as stopped:
            error = stopped.args[0]
            self._on_event(
                Notice(
                    "import",
                    f"CivitAI could not be asked: {error.message}; the files are imported, and the next import asks "
                    "about them again",
                )
            )
            done = self._identified.found.keys() | {said.path for said in self._identified.unanswered}
            self._identified.unanswered += [
                Unanswered(str(file.path), error.message)
                for file in self._files.values()
                if file.sha256 not in done and str(file.path) not in done
            ]
        for sha256, version in by_tensors.items():
            if sha256 not in self._identified.found:
                self._identified.found[sha256] = Identification(version, None, FoundBy.TENSORS)
        return self._identified

    def _known_ids(self) -> dict[Sha256, tuple[ModelId, VersionId]]:
        """Find the model and version of each file that CivitAI knows by SHA-256."""
        try:
            return self._answered(self._client.identify(self._files))
        except CivmanError as error:
            self._failed(error)
        found = {}
        for file, answer in self._asked_each(self._files.values(), lambda file: self._client.by_hash(file.sha256)[0]):
            found[file.sha256] = answer.model.id, answer.id
        return found

    def _known_tensors(self, files: Sequence[Unidentified]) -> dict[Sha256, ModelVersion]:
        """For `files` that CivitAI does not know by SHA-256, find versions with the same tensors."""
        digests: dict[Sha256, str] = {}
        for file in files:
            if len(digests) < _MOST_BY_TENSORS and (digest := file.autov3()) is not None:
                digests[file.sha256] = digest
        asked = [file for file in files if file.sha256 in digests]
        answers = self._asked_each(asked, lambda file: self._client.version_by_hash(digests[file.sha256])[0])
        return {file.sha256: version for file, version in answers}

    def _read_models(
        self, known: Mapping[Sha256, tuple[ModelId, VersionId]], by_tensors: Mapping[Sha256, ModelVersion]
    ) -> None:
        """Request the models in batches. Models that CivitAI's list leaves out are requested by version."""
        by_model: dict[ModelId, list[Sha256]] = {}
        for sha256, (model_id, _) in known.items():
            by_model.setdefault(model_id, []).append(sha256)
        for sha256, version in by_tensors.items():
            by_model.setdefault(version.model.id, []).append(sha256)
        wanted = {sha256: version_id for sha256, (_, version_id) in known.items()}
        wanted |= {sha256: version.id for sha256, version in by_tensors.items()}
        for models in _chunks(by_model, _MODELS_AT_ONCE):
            self._read_listed(models, by_model, wanted, by_tensors)
        missing = [self._files[sha256] for sha256 in known if sha256 not in self._identified.found]
        for chunk in _chunks(missing, _MODELS_AT_ONCE):
            self._read_unlisted(chunk, known)

    def _read_listed(
        self,
        models: Sequence[ModelId],
        by_model: Mapping[ModelId, Sequence[Sha256]],
        wanted: Mapping[Sha256, VersionId],
        by_tensors: Mapping[Sha256, ModelVersion],
    ) -> None:
        try:
            pages = self._answered(list(self._client.models_by_ids(models)))
        except CivmanError as error:
            self._failed(error)
            return
        self._index.remember_all(
            [(page.model, page.versions) for page in pages], fetched_at=self._now, source=Source.SEARCH
        )
        for page in pages:
            versions = {version.id: version for version in page.versions}
            for sha256 in by_model.get(page.model.id, ()):
                version = versions.get(wanted[sha256])
                if version is not None:
                    self._take(sha256, version, FoundBy.TENSORS if sha256 in by_tensors else FoundBy.SHA256)

    def _read_unlisted(self, files: Sequence[Unidentified], known: Mapping[Sha256, tuple[ModelId, VersionId]]) -> None:
        """Request models that CivitAI's list leaves out, such as unlisted ones and archived ones with hidden files."""
        try:
            versions = self._answered(self._client.versions_by_hashes(file.sha256 for file in files))
        except CivmanError as error:
            # ignore NotFound: a mirror might not support this request, so each version is requested separately
            if not isinstance(error, NotFound):
                self._failed(error)
            versions = {}
        left = [file for file in files if file.sha256 not in versions]
        for file, version in self._asked_each(left, lambda file: self._client.version(known[file.sha256][1])):
            versions[file.sha256] = version
        pages = [(version.model, (version,)) for version in versions.values()]
        self._index.remember_all(pages, fetched_at=self._now, source=Source.HASH)
        for sha256, version in versions.items():
            self._take(sha256, version, FoundBy.SHA256)

    def _take(self, sha256: Sha256, version: ModelVersion, by: FoundBy) -> None:
        self._identified.found[sha256] = Identification(version, file_with(version, sha256), by)

    def _asked_each(
        self, files: Iterable[Unidentified], ask: Callable[[Unidentified], R]
    ) -> Iterator[tuple[Unidentified, R]]:
        """Send a separate request for each file, a few at a time. Files that CivitAI does not know are left out.

        If a request fails, the failure is recorded for its file.
        """
        with ThreadPoolExecutor(_ASKERS, thread_name_prefix="ask") as pool:
            for chunk in _chunks(files, 2 * _ASKERS):
                for file, answer in zip(chunk, pool.map(lambda file: _outcome(ask, file), chunk), strict=True):
                    if not isinstance(answer, CivmanError):
                        yield file, self._answered(answer)
                        continue
                    if isinstance(answer, NotFound):
                        self._answered(None)
                        continue
                    self._identified.unanswered.append(Unanswered(str(file.path), answer.message))
                    self._on_event(Notice("import", f"`{file.path.name}` is not identified: {answer.message}"))
                    self._failed(answer)

    def _answered(self, answer: T) -> T:
        self._failures, self._has_answered = 0, True
        return answer

    def _failed(self, error: CivmanError) -> None:
        self._failures += 1
        most = _MOST_FAILURES if self._has_answered else _MOST_FAILURES_AT_FIRST
        if error.code in _NOT_REACHED or self._failures >= most:
            raise _StopAskingError(error)


def file_with(version: ModelVersion, sha256: Sha256) -> ModelFile | None:
    """The file of the version with this SHA-256, or None."""
    return next((file for file in version.files if file.hashes.sha256 == sha256), None)


def _outcome(ask: Callable[[T], R], about: T) -> R | CivmanError:
    try:
        return ask(about)
    except CivmanError as error:
        return error


def _chunks(values: Iterable[T], count: int) -> Iterator[list[T]]:
    left = iter(values)
    while chunk := list(islice(left, count)):
        yield chunk
