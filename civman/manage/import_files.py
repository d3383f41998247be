"""Imports files that are already on this disk, and whole folders of other programs, without moving them by default.

Each file is hashed once. The result is stored with the file's device, inode, size and modification time, so that
importing it again reads nothing. CivitAI is asked once about all hashes. Files that CivitAI does not know are imported
too, with the information in sidecar files of other programs.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path

from civman.civitai import wire_models
from civman.civitai.client import CivitaiClient
from civman.domain.catalog import Blob, FileFacts, ModelFile, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.events import Notice, OnEvent, Started, Verifying
from civman.domain.file_choice import PICKLE_SUFFIXES
from civman.domain.file_names import safe_name
from civman.domain.files.header import sniff
from civman.domain.identification.identify import facts, identify
from civman.errors import CivmanError, InvalidModelFile, NetworkError, NotFound
from civman.index import Index, Record, SeenFile, Source
from civman.manage.sidecar import write_due
from civman.store.blobs import BlobStore, digest_of
from civman.store.other_digests import other_digests
from civman.store.read_header import read_first, read_header
from civman.store.trash import blob_lock
from civman.system.move_files import remove_file

MODEL_SUFFIXES = frozenset({".safetensors", ".gguf", *PICKLE_SUFFIXES})
_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", ".git", ".venv", "venv"})
_SAVE_EVERY = 64
_HASHERS = 2
_SIDECARS = (".civitai.info", ".metadata.json", ".json")


class ImportMode(StrEnum):
    """Whether imported files stay where they are, or are copied, linked or moved into the store."""

    IN_PLACE = "in place"
    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that was not imported, and the reason."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of an import: the number of files by outcome, and the files that could not be imported."""

    found: int
    taken: int
    """The number of new assets."""
    known_before: int
    on_civitai: int
    """The number of imported files that CivitAI knows."""
    duplicates: int
    """The number of files with the same bytes as another file in the import."""
    read_bytes: int
    """The number of bytes that had to be read and hashed."""
    broken: tuple[Problem, ...]


@dataclass(slots=True)
class _Found:
    """A file that is being imported."""

    path: Path
    seen: SeenFile
    facts: FileFacts = field(default_factory=FileFacts)
    model_type: ModelType = ModelType.OTHER


def import_files(
    index: Index,
    store: BlobStore,
    client: CivitaiClient | None,
    paths: Sequence[Path],
    *,
    mode: ImportMode,
    on_event: OnEvent,
    clock: Callable[[], datetime],
) -> ImportResult:
    """Import `paths` (files, or folders with everything in them) into the index.

    Without `client`, CivitAI is not asked.

    Raises: NotFound: a path does not exist. KeyboardInterrupt is passed on; the hashes computed so far are stored.
    """
    files = list(model_files(paths))
    broken: list[Problem] = []
    seen, read_bytes = _digests(index, files, broken, on_event)
    held = {sha256 for sha256, _, _ in index.blobs()}
    by_digest: dict[Sha256, _Found] = {}
    for path in files:
        known = seen.get(str(path))
        if known is not None and known.sha256 not in held and known.sha256 not in by_digest:
            by_digest[known.sha256] = _Found(path, known)
    for sha256 in list(by_digest):
        if not _examine(by_digest[sha256], broken):
            del by_digest[sha256]
    versions = _identified(index, client, by_digest, on_event, clock())
    records = []
    if mode is ImportMode.IN_PLACE:
        records = [_record(found, versions.get(sha256), store, mode, clock()) for sha256, found in by_digest.items()]
        index.record_all(records)
    else:
        for sha256, found in by_digest.items():
            # the lock keeps garbage collection from removing the blob before its row exists
            with blob_lock(store, sha256):
                records.append(_record(found, versions.get(sha256), store, mode, clock()))
                index.record_all(records[-1:])
    write_due(store, index, most=len(records))
    ours = {known.sha256 for known in seen.values()}
    return ImportResult(
        found=len(files),
        taken=len(records),
        known_before=len(ours & held),
        on_civitai=sum(record.version is not None for record in records),
        duplicates=len(seen) - len(ours),
        read_bytes=read_bytes,
        broken=tuple(broken),
    )


def model_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The model files in `paths`, including folders, each once and in a stable order. Raises: NotFound."""
    yielded: set[Path] = set()
    for start in paths:
        start = start.expanduser().absolute()
        if not start.exists():
            raise NotFound(f"`{start}` does not exist", hint="pass a model file, or a folder with model files")
        for path in [start] if start.is_file() else _below(start):
            if path not in yielded:
                yielded.add(path)
                yield path


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _IGNORED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in MODEL_SUFFIXES and not name.startswith("."):
                yield path


def _digests(
    index: Index, files: Sequence[Path], broken: list[Problem], on_event: OnEvent
) -> tuple[dict[str, SeenFile], int]:
    """Find the SHA-256 of each file: the stored one if the file is unchanged, else by reading it.

    Returns the states of the files by path, and the number of bytes read.
    """
    remembered = index.seen_files()
    seen: dict[str, SeenFile] = {}
    fresh: list[tuple[Path, os.stat_result]] = []
    for path in files:
        try:
            stats = path.stat()
        except OSError as error:
            broken.append(Problem(str(path), error.strerror or str(error)))
            continue
        known = remembered.get(str(path))
        if known is not None and _same(known, stats):
            seen[str(path)] = known
        else:
            fresh.append((path, stats))
    read_bytes = 0
    total_bytes = sum(stats.st_size for _, stats in fresh)
    unsaved: list[SeenFile] = []
    if fresh:
        on_event(Started("import", f"{len(fresh)} files", total_bytes))
    try:
        for path, stats, result in _hashed(fresh):
            if isinstance(result, CivmanError):
                broken.append(Problem(str(path), result.message))
                continue
            read_bytes += stats.st_size
            on_event(Verifying("import", read_bytes, total_bytes))
            seen[str(path)] = SeenFile(
                str(path), stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns, result
            )  # fmt: skip
            unsaved.append(seen[str(path)])
            if len(unsaved) >= _SAVE_EVERY:
                index.save_seen(unsaved)
                unsaved = []
    finally:  # also after an interruption, so that files need not be read twice
        if unsaved:
            index.save_seen(unsaved)
    return seen, read_bytes


def _hashed(
    files: Sequence[tuple[Path, os.stat_result]],
) -> Iterator[tuple[Path, os.stat_result, Sha256 | CivmanError]]:
    """Hash a few files at a time and yield each result when it is ready.

    A file that changes while it is read yields an error as its result.
    """
    waiting = iter(files)
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
        running: dict[Future[Sha256 | CivmanError], tuple[Path, os.stat_result]] = {}
        while True:
            for path, stats in islice(waiting, 2 * _HASHERS - len(running)):
                running[pool.submit(_digest, path, stats)] = path, stats
            if not running:
                return
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                yield *running.pop(future), future.result()


def _digest(path: Path, before: os.stat_result) -> Sha256 | CivmanError:
    try:
        digest = digest_of(path)
        after = path.stat()
    except CivmanError as error:
        return error
    except OSError as error:
        return NotFound(error.strerror or str(error))
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        return InvalidModelFile("it changed while it was read; another program may still be writing it")
    return digest


def _same(known: SeenFile, stats: os.stat_result) -> bool:
    now = (stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns)
    return (known.device, known.inode, known.size_bytes, known.mtime_ns) == now


def _examine(found: _Found, broken: list[Problem]) -> bool:
    """Read the file's header. Returns False, and records a problem, if the content does not match the file's suffix."""
    if found.path.suffix.lower() != ".safetensors":
        content = sniff(read_first(found.path))
        if content in ("html", "xml", "empty", "git-lfs"):
            broken.append(Problem(str(found.path), f"not a model file: its content is {content}"))
            return False
        return True
    try:
        header = read_header(found.path)
    except CivmanError as error:
        broken.append(Problem(str(found.path), error.message))
        return False
    found.facts, found.model_type = facts(header, None), identify(header).model_type
    return True


def _identified(
    index: Index, client: CivitaiClient | None, by_digest: dict[Sha256, _Found], on_event: OnEvent, now: datetime
) -> dict[Sha256, tuple[ModelVersion, ModelFile | None]]:
    """Find the version that each SHA-256 belongs to: from CivitAI, else from a sidecar file."""
    found: dict[Sha256, tuple[ModelVersion, ModelFile | None]] = {}
    if client is not None and by_digest:
        try:
            found = _asked(index, client, by_digest, now)
        except NetworkError as error:
            on_event(
                Notice(
                    "import",
                    f"CivitAI could not be asked: {error.message}; import the files again when CivitAI is reachable",
                )
            )
    for sha256, file in by_digest.items():
        if sha256 not in found:
            version = _from_sidecar(file.path, now)
            if version is not None:
                found[sha256] = version, _file_with(version, sha256)
    return found


def _asked(
    index: Index, client: CivitaiClient, by_digest: dict[Sha256, _Found], now: datetime
) -> dict[Sha256, tuple[ModelVersion, ModelFile | None]]:
    found: dict[Sha256, tuple[ModelVersion, ModelFile | None]] = {}
    ids: dict[Sha256, tuple[ModelId, VersionId]] = client.identify(by_digest)
    for page in client.models_by_ids(dict.fromkeys(model_id for model_id, _ in ids.values())):
        index.remember((page.model, page.versions), fetched_at=now, source=Source.SEARCH)
        versions = {version.id: version for version in page.versions}
        for sha256, (model_id, version_id) in ids.items():
            if model_id == page.model.id and version_id in versions:
                found[sha256] = versions[version_id], _file_with(versions[version_id], sha256)
    for sha256, (_, version_id) in ids.items():
        # the batch response omits some models, such as unlisted ones and archived ones with hidden files
        if sha256 not in found:
            try:
                version = client.version(version_id)
            except NotFound:
                continue
            found[sha256] = version, _file_with(version, sha256)
    return found


def _file_with(version: ModelVersion, sha256: Sha256) -> ModelFile | None:
    return next((file for file in version.files if file.hashes.sha256 == sha256), None)


def _from_sidecar(path: Path, now: datetime) -> ModelVersion | None:
    """The version according to another program's sidecar file, or None."""
    for ending in _SIDECARS:
        sidecar = path.with_suffix(ending)
        try:
            noted = json.loads(sidecar.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(noted, dict) and isinstance(noted.get("civitai"), dict):
            noted = noted["civitai"]
        try:
            return wire_models.version(noted, now=now, on_notice=lambda _: None)
        except CivmanError:
            continue  # a JSON file with other contents
    return None


def _record(
    found: _Found,
    known: tuple[ModelVersion, ModelFile | None] | None,
    store: BlobStore,
    mode: ImportMode,
    now: datetime,
) -> Record:
    version, file = known or (None, None)
    sha256, path = found.seen.sha256, found.path
    if mode is not ImportMode.IN_PLACE:
        path = _moved_to_store(found, store, mode)
    file_facts = found.facts
    if version is not None and path.suffix == ".safetensors":
        file_facts = facts(read_header(path), version.base_model)
    declared = file is not None
    return Record(
        blob=Blob(sha256, found.seen.size_bytes, found.path.suffix.lower(), "civitai" if declared else "civman", now),
        path=str(path),
        name=safe_name(found.path.name),
        origin="import",
        added_at=now,
        version=version,
        file=file,
        facts=file_facts,
        hashes=other_digests(path) if file is None else None,
        model_type=found.model_type if version is None else None,
    )


def _moved_to_store(found: _Found, store: BlobStore, mode: ImportMode) -> Path:
    """Bring the file into the store. The bytes there are verified before the original is deleted."""
    sha256 = found.seen.sha256
    stored = store.find(sha256) or store.take_in(
        found.path, sha256, found.path.suffix.lower(), by_link=mode is not ImportMode.COPY
    )
    if mode is ImportMode.MOVE:
        remove_file(found.path, twin=stored.path)
    return stored.path
