"""Imports files that are already on this disk, and whole folders of other programs, without moving them by default.

Each file is hashed once. The result is stored with the file's device, inode, size and modification time, so that
importing it again reads nothing. CivitAI is asked once about all hashes. Files that CivitAI does not know are imported
too, with the information in sidecar files of other programs.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path

from civman.civitai.client import CivitaiClient
from civman.domain.catalog import NOTHING_SAID, Blob, FileFacts, ModelType
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import OnEvent, Started, Verifying
from civman.domain.file_choice import PICKLE_SUFFIXES
from civman.domain.file_names import safe_name
from civman.domain.files.header import sniff
from civman.domain.identification.identify import facts, identify
from civman.domain.plurals import counted
from civman.errors import CivmanError, InvalidModelFile, NotFound
from civman.index import Index, Record, SeenFile
from civman.manage.identify_files import (
    FoundBy,
    Identification,
    Identified,
    Unidentified,
    ask_civitai,
)
from civman.manage.inspection import facts_of_file
from civman.manage.program_notes import Beside, joined, notes_beside, preview_beside
from civman.manage.sidecar import write_due
from civman.store.blobs import BlobStore, digest_of
from civman.store.other_digests import other_digests
from civman.store.read_header import read_first, read_header
from civman.store.trash import blob_lock
from civman.system.move_files import remove_file

SAFETENSORS_SUFFIXES = frozenset({".safetensors"})
MODEL_SUFFIXES = frozenset({".safetensors", ".gguf", *PICKLE_SUFFIXES})
_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", ".git", ".venv", "venv"})
_SAVE_EVERY = 64
_HASHERS = 2
_ROTATION = 150
_PREVIEW_WRITERS = 8


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
    identified_later: int
    """The number of files that were in the library before without a version, and are identified now."""
    same_tensors: int
    """The number of files with the same tensors as a file on CivitAI, but another header."""
    noted: int
    """The number of files that got notes, tags or trigger words from other programs."""
    previews: int
    """The number of files that got a preview image that was beside them."""
    notes_refused: tuple[Problem, ...]
    """Notes of other programs that are not used, because they are damaged or about another file."""
    unanswered: tuple[Problem, ...]
    """Files about which CivitAI could not be asked; the next import asks again."""
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
    hashes: Hashes | None = None

    def autov3(self) -> str | None:
        """The digest of the tensors alone, computed on first use; None if it is no safetensors file."""
        if self.hashes is None and self.path.suffix.lower() in SAFETENSORS_SUFFIXES:
            self.hashes = other_digests(self.path, whole=True)
        return self.hashes.autov3 if self.hashes is not None else None


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
    places: dict[Sha256, list[Path]] = {}
    for path in files:
        if str(path) in seen:
            places.setdefault(seen[str(path)].sha256, []).append(path)
    ours = places.keys()
    identified, beside = _identified(index, client, by_digest, places, on_event, clock())
    versions = identified.found
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
    later = _identified_later(index, identified, by_digest)
    index.record_all(later)
    noted = _keep_words(index, beside)
    previews = _keep_previews(store, {sha256: places[sha256] for sha256 in by_digest if sha256 in places})
    write_due(store, index, most=len(index.sidecars_due()))
    return ImportResult(
        found=len(files),
        taken=len(records),
        known_before=len(ours & held),
        on_civitai=sum(record.version is not None for record in records),
        identified_later=len(later),
        same_tensors=sum(found.by is FoundBy.TENSORS for found in versions.values()),
        noted=noted,
        previews=previews,
        notes_refused=tuple(Problem(each.path, each.message) for said in beside.values() for each in said.refused),
        unanswered=tuple(Problem(said.path, said.message) for said in identified.unanswered),
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
        on_event(Started("import", counted(len(fresh), "file"), total_bytes))
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
    index: Index,
    client: CivitaiClient | None,
    by_digest: Mapping[Sha256, _Found],
    places: Mapping[Sha256, Sequence[Path]],
    on_event: OnEvent,
    now: datetime,
) -> tuple[Identified, dict[Sha256, Beside]]:
    """Identify the new files, and those of the library that were not identified before.

    CivitAI is asked in one batch; what it does not know is looked for in the notes of other programs. `places` are the
    paths of the files of this import by digest. Returns what the notes say, too.
    """
    identified = Identified()
    held = [(sha256, Path(path)) for sha256, path in index.unidentified() if sha256 not in by_digest]
    # the tensors of files outside this import are not digested
    digests = {
        sha256: partial(_held_autov3, index, sha256, path if sha256 in places else None) for sha256, path in held
    }
    if client is not None:
        files = [Unidentified(sha256, found.path, found.autov3) for sha256, found in by_digest.items()]
        # the tensors of a few files are asked about in one import, and other ones on another day
        start = now.toordinal() * _ROTATION % (len(held) or 1)
        files += [Unidentified(sha256, path, digests[sha256]) for sha256, path in held[start:] + held[:start]]
        if files:
            identified = ask_civitai(index, client, files, on_event, now)
    beside = {}
    for sha256, autov3 in ({sha256: found.autov3 for sha256, found in by_digest.items()} | digests).items():
        if sha256 not in places:
            continue
        said = beside[sha256] = notes_beside(places[sha256], sha256, autov3, now=now)
        if said.version is not None and sha256 not in identified.found:
            identified.found[sha256] = Identification(said.version, said.file, FoundBy.NOTE)
    return identified, beside


def _held_autov3(index: Index, sha256: Sha256, path: Path | None) -> str | None:
    """The digest of the tensors of a file in the library, computed if the index does not have it and `path` exists."""
    known = index.hashes(sha256)
    if known.autov3 is None and path is not None and path.suffix.lower() in SAFETENSORS_SUFFIXES and path.is_file():
        known = other_digests(path, whole=True)
        index.save_hashes(sha256, known)
    return known.autov3


def _identified_later(index: Index, identified: Identified, by_digest: Mapping[Sha256, _Found]) -> list[Record]:
    """The records of files that were in the library without a version and are identified now."""
    records = []
    for sha256, found in identified.found.items():
        if sha256 in by_digest:
            continue
        for asset in index.referrers(sha256)[:1]:
            known = asset.facts
            # if the file is away at the moment, what was read from it before is kept
            with contextlib.suppress(CivmanError, OSError):
                known = facts_of_file(Path(asset.path), found.version.base_model)
            records.append(
                Record(
                    blob=replace(
                        asset.blob, declared_by="civitai" if found.by is FoundBy.SHA256 else asset.blob.declared_by
                    ),
                    path=asset.path,
                    name=asset.name,
                    origin=asset.origin,
                    added_at=asset.added_at,
                    version=found.version,
                    file=found.file,
                    facts=known,
                )
            )
    return records


def _keep_words(index: Index, beside: Mapping[Sha256, Beside]) -> int:
    """Save the user's words from notes; words that the library has already stay. Returns the number of files."""
    changes = []
    for sha256, said in beside.items():
        for asset in index.referrers(sha256)[:1] if said.own != NOTHING_SAID else ():
            own = joined(asset.own, said.own)
            if own != asset.own:
                changes.append((asset, own))
    index.annotate_all(changes)
    return len(changes)


def _keep_previews(store: BlobStore, places: Mapping[Sha256, Sequence[Path]]) -> int:
    """Copy the preview images beside new files into the store. Returns their number."""

    def keep(sha256: Sha256) -> bool:
        if store.preview(sha256) is not None or (found := preview_beside(places[sha256])) is None:
            return False
        data, suffix = found
        with blob_lock(store, sha256):
            store.write_preview(sha256, data, suffix)
        return True

    with ThreadPoolExecutor(_PREVIEW_WRITERS, thread_name_prefix="preview") as pool:
        return sum(pool.map(keep, places))


def _record(
    found: _Found,
    known: Identification | None,
    store: BlobStore,
    mode: ImportMode,
    now: datetime,
) -> Record:
    version, file = (known.version, known.file) if known is not None else (None, None)
    sha256, path = found.seen.sha256, found.path
    if mode is not ImportMode.IN_PLACE:
        path = _moved_to_store(found, store, mode)
    file_facts = found.facts
    if version is not None and path.suffix == ".safetensors":
        file_facts = facts(read_header(path), version.base_model)
    declared = file is not None and known is not None and known.by is FoundBy.SHA256
    return Record(
        blob=Blob(sha256, found.seen.size_bytes, found.path.suffix.lower(), "civitai" if declared else "civman", now),
        path=str(path),
        name=safe_name(found.path.name),
        origin="import",
        added_at=now,
        version=version,
        file=file,
        facts=file_facts,
        hashes=(found.hashes or other_digests(path)) if file is None else None,
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
