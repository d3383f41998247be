"""Imports files that are already on this disk, and whole folders of other programs, without moving them by default.

Each file is hashed once. The hash is stored with the file's device, inode, size and modification time, so that another
import does not read the file again. CivitAI is asked once about all hashes. Files that CivitAI does not know are
imported too, with the information in other programs' metadata files.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from civman.civitai.client import CivitaiClient
from civman.domain.architecture import Identity
from civman.domain.catalog import NOTHING_SAID, Blob, FileFacts, ModelType
from civman.domain.digests import Hashes, Sha256
from civman.domain.events import Notice, OnEvent
from civman.domain.file_names import safe_name
from civman.domain.file_suffixes import SAFETENSORS_SUFFIXES
from civman.domain.files.gguf import MAGIC as GGUF_MAGIC
from civman.domain.files.header import Header, Sniffed, sniff
from civman.domain.identification.claims import Claims, claims
from civman.domain.identification.identify import facts_of, identify
from civman.errors import CivmanError, InvalidModelFile
from civman.index import Index, Record, SeenFile
from civman.manage.hash_files import hash_files
from civman.manage.identify_files import (
    FoundBy,
    Identification,
    Identified,
    Unidentified,
    ask_civitai,
)
from civman.manage.inspection import facts_of_file
from civman.manage.move_companions import move_companions
from civman.manage.places import rehome
from civman.manage.program_metadata import ProgramMetadata, joined, read_metadata, read_preview
from civman.manage.scan_folders import LeftOut, scan_folders
from civman.manage.sidecar import write_due
from civman.manage.take_files import ImportMode, Kept, Problem, Taking
from civman.store.blobs import BlobStore
from civman.store.other_digests import other_digests
from civman.store.read_header import read_first, read_gguf, read_header, read_tokenizer
from civman.store.read_pickle import looks_like_pickle, read_or_refusal
from civman.store.trash import blob_lock

_ROTATION = 150
_PREVIEW_WRITERS = 8


__all__ = ["ImportMode", "ImportResult", "Kept", "LeftOut", "Problem", "import_files"]


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of an import: the number of files by outcome, and the files that could not be imported.

    `entries` is the sum of `found` and the counts in `left_out`. `found` is the sum of `taken`, `known_before`,
    `duplicates` and the number of `broken` files.
    """

    entries: int
    """The number of all files and links that were found."""
    found: int
    """The number of model files that were found."""
    taken: int
    """The number of new assets."""
    known_before: int
    on_civitai: int
    """The number of imported files that CivitAI knows."""
    identified_later: int
    """The number of files that were in the library before, without a known version, and are identified now."""
    same_tensors: int
    """The number of files with the same tensors as a file on CivitAI, but another header."""
    noted: int
    """The number of files to which notes, tags or trigger words from other programs were added."""
    previews: int
    """The number of files whose preview image, found next to them, was stored."""
    companions: int
    """The number of companion files (metadata files, previews, configs) that were moved with their models."""
    notes_refused: tuple[Problem, ...]
    """Metadata files of other programs that are not used, because they are damaged or belong to another file."""
    unanswered: tuple[Problem, ...]
    """Files about which CivitAI could not be asked; the next import asks again."""
    duplicates: int
    """The number of files with the same bytes as another file in the import."""
    rehomed: int
    """The number of files in the library that were no longer at their path and were found at a different one."""
    read_bytes: int
    """The number of bytes that had to be read and hashed."""
    broken: tuple[Problem, ...]
    left_out: tuple[LeftOut, ...]
    """The entries that are not model files, grouped by reason."""
    kept: tuple[Kept, ...]
    """Files that were copied although they should have been moved; the originals are still there."""


@dataclass(slots=True)
class _Found:
    """A file that is being imported."""

    path: Path
    seen: SeenFile
    identity: Identity | None = None
    said: Claims | None = None
    hashes: Hashes | None = None

    @property
    def model_type(self) -> ModelType:
        """The model type that the file's tensors show; OTHER if they cannot be read."""
        return self.identity.model_type if self.identity is not None else ModelType.OTHER

    def identify(self, header: Header) -> None:
        """Identify the model from the file's header."""
        self.said = claims(header.metadata)
        self.identity = identify(header, self.said)

    def facts(self, base_model: str | None) -> FileFacts:
        """What the index stores about the file; `base_model` is CivitAI's label."""
        if self.identity is None or self.said is None:
            return FileFacts()
        return facts_of(self.identity, self.said, base_model)

    def autov3(self) -> str | None:
        """The digest of the tensors alone, computed on first use; None if it is not a safetensors file."""
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
    scan = scan_folders(paths, store.root)
    hashed = hash_files(index, scan.files, on_event)
    seen = hashed.seen
    broken = [Problem(str(path), reason) for path, reason in hashed.unreadable]
    held = {sha256 for sha256, _, _ in index.blobs()}
    rehomed = rehome(index, store, seen)
    by_digest: dict[Sha256, _Found] = {}
    for path in scan.files:
        known = seen.get(str(path))
        if known is not None and known.sha256 not in held and known.sha256 not in by_digest:
            by_digest[known.sha256] = _Found(path, known)
    places: dict[Sha256, list[Path]] = {}
    for path in scan.files:
        if str(path) in seen:
            places.setdefault(seen[str(path)].sha256, []).append(path)
    for sha256, found in list(by_digest.items()):
        if not _examine(found, broken, on_event):
            del by_digest[sha256]
            broken += [replace(broken[-1], path=str(path)) for path in places[sha256] if path != found.path]
            del places[sha256]
    ours = places.keys()
    taking = Taking(index, store, mode, hashed, scan.links)
    if mode is not ImportMode.IN_PLACE:
        taking.require_space(by_digest.keys() | ours & held)
    identified, beside = _identified(index, client, by_digest, places, on_event, clock())
    versions = identified.found
    records = []
    companions = 0
    if mode is ImportMode.IN_PLACE:
        records = [_record(found, versions.get(sha256), found.path, clock()) for sha256, found in by_digest.items()]
        index.record_all(records)
        previews = _keep_previews(store, {sha256: places[sha256] for sha256 in by_digest if sha256 in places})
    else:
        previews = _keep_previews(store, {sha256: places[sha256] for sha256 in by_digest if sha256 in places})
        for sha256, found in by_digest.items():
            with taking.into_store(sha256) as path:
                records.append(_record(found, versions.get(sha256), path, clock()))
                index.record_all(records[-1:])
        taking.take_known(ours & held)
        if mode is ImportMode.MOVE:
            companions, kept = move_companions(store, places)
            taking.kept += kept
    later = _identified_later(index, identified, by_digest)
    index.record_all(later)
    noted = _keep_words(index, beside)
    write_due(store, index, most=len(index.sidecars_due()))
    return ImportResult(
        entries=scan.entries,
        found=len(scan.files),
        taken=len(records),
        known_before=len(ours & held),
        on_civitai=sum(record.version is not None for record in records),
        identified_later=len(later),
        same_tensors=sum(found.by is FoundBy.TENSORS for found in versions.values()),
        noted=noted,
        previews=previews,
        companions=companions,
        notes_refused=tuple(Problem(each.path, each.message) for said in beside.values() for each in said.refused),
        unanswered=tuple(Problem(said.path, said.message) for said in identified.unanswered),
        duplicates=sum(len(same) - 1 for same in places.values()),
        rehomed=len(rehomed),
        read_bytes=hashed.read_bytes,
        broken=tuple(broken),
        left_out=scan.left_out,
        kept=tuple(taking.kept),
    )


def _examine(found: _Found, broken: list[Problem], on_event: OnEvent) -> bool:
    """Read the file's header. If the content does not match the file's suffix, record a problem and return False."""
    if found.path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        first = read_first(found.path)
        content = sniff(first)
        if content in ("html", "xml", "empty", "git-lfs", "json"):
            broken.append(Problem(str(found.path), f"not a model file: its content is {content}"))
            return False
        if found.path.suffix.lower() == ".gguf" and not first.startswith(GGUF_MAGIC):
            broken.append(Problem(str(found.path), "not a GGUF file: it does not begin with `GGUF`"))
            return False
        if content is Sniffed.TOKENIZER:
            return _identify(found, broken, read_tokenizer)
        header = None
        if content is Sniffed.GGUF:
            header = _header_of_gguf(found.path, on_event)
        elif looks_like_pickle(found.path):
            header = _header_of_pickle(found.path, on_event)
        if header is not None:
            found.identify(header)
        return True
    return _identify(found, broken, read_header)


def _identify(found: _Found, broken: list[Problem], read: Callable[[Path], Header]) -> bool:
    try:
        header = read(found.path)
    except CivmanError as error:
        broken.append(Problem(str(found.path), error.message))
        return False
    found.identify(header)
    return True


def _header_of_gguf(path: Path, on_event: OnEvent) -> Header | None:
    """Return the header of a GGUF file; None, with a notice, if it cannot be read."""
    try:
        return read_gguf(path).as_header
    except InvalidModelFile as error:
        on_event(Notice("import", f"{error.message}; the file is listed, but civman cannot use it"))
        return None


def _header_of_pickle(path: Path, on_event: OnEvent) -> Header | None:
    """Return the header of a pickle's safetensors copy; None, with a notice, if civman refuses to read the pickle."""
    found = read_or_refusal(path, path.name)
    if isinstance(found, CivmanError):
        on_event(Notice("import", f"{found.message}; the file is listed, but civman cannot use it"))
        return None
    return found.header


def _identified(
    index: Index,
    client: CivitaiClient | None,
    by_digest: Mapping[Sha256, _Found],
    places: Mapping[Sha256, Sequence[Path]],
    on_event: OnEvent,
    now: datetime,
) -> tuple[Identified, dict[Sha256, ProgramMetadata]]:
    """Identify the new files, and those of the library that were not identified before.

    CivitAI is asked about all of them in one batch. Also returns the contents of other programs' metadata files, which
    may identify files that CivitAI does not know. `places`: the paths of this import's files by digest.
    """
    identified = Identified()
    held = [(sha256, Path(path)) for sha256, path in index.unidentified() if sha256 not in by_digest]
    # compute missing tensor digests only for files of this import; for other files of the library, use the index
    digests = {
        sha256: partial(_held_autov3, index, sha256, path if sha256 in places else None) for sha256, path in held
    }
    if client is not None:
        files = [Unidentified(sha256, found.path, found.autov3) for sha256, found in by_digest.items()]
        # start at a different file each day, because one import looks up the tensors of only a few files
        start = now.toordinal() * _ROTATION % (len(held) or 1)
        files += [Unidentified(sha256, path, digests[sha256]) for sha256, path in held[start:] + held[:start]]
        if files:
            identified = ask_civitai(index, client, files, on_event, now)
    beside = {}
    for sha256, autov3 in ({sha256: found.autov3 for sha256, found in by_digest.items()} | digests).items():
        if sha256 not in places:
            continue
        said = beside[sha256] = read_metadata(places[sha256], sha256, autov3, now=now)
        if said.version is not None and sha256 not in identified.found:
            identified.found[sha256] = Identification(said.version, said.file, FoundBy.NOTE)
    return identified, beside


def _held_autov3(index: Index, sha256: Sha256, path: Path | None) -> str | None:
    """Return the digest of a stored file's tensors, computed if the index does not have it and `path` exists."""
    known = index.hashes(sha256)
    if known.autov3 is None and path is not None and path.suffix.lower() in SAFETENSORS_SUFFIXES and path.is_file():
        known = other_digests(path, whole=True)
        index.save_hashes({sha256: known})
    return known.autov3


def _identified_later(index: Index, identified: Identified, by_digest: Mapping[Sha256, _Found]) -> list[Record]:
    """Create the records of files that were in the library without a version and are identified now."""
    records = []
    for sha256, found in identified.found.items():
        if sha256 in by_digest:
            continue
        for asset in index.referrers(sha256)[:1]:
            known = asset.facts
            # if the file is currently unavailable, keep what an earlier import read from it
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


def _keep_words(index: Index, beside: Mapping[Sha256, ProgramMetadata]) -> int:
    """Save annotations from other programs' metadata files; the user's own are kept. Returns how many files changed."""
    changes = []
    for sha256, said in beside.items():
        for asset in index.referrers(sha256)[:1] if said.own != NOTHING_SAID else ():
            own = joined(asset.own, said.own)
            if own != asset.own:
                changes.append((asset, own))
    index.annotate_all(changes)
    return len(changes)


def _keep_previews(store: BlobStore, places: Mapping[Sha256, Sequence[Path]]) -> int:
    """Copy the preview images next to new files into the store. Returns their number."""

    def keep(sha256: Sha256) -> bool:
        if store.preview(sha256) is not None or (found := read_preview(places[sha256])) is None:
            return False
        data, suffix = found
        with blob_lock(store, sha256):
            store.write_preview(sha256, data, suffix)
        return True

    with ThreadPoolExecutor(_PREVIEW_WRITERS, thread_name_prefix="preview") as pool:
        return sum(pool.map(keep, places))


def _record(found: _Found, known: Identification | None, path: Path, now: datetime) -> Record:
    version, file = (known.version, known.file) if known is not None else (None, None)
    sha256 = found.seen.sha256
    declared = file is not None and known is not None and known.by is FoundBy.SHA256
    return Record(
        blob=Blob(sha256, found.seen.size_bytes, found.path.suffix.lower(), "civitai" if declared else "civman", now),
        path=str(path),
        name=safe_name(found.path.name),
        origin="import",
        added_at=now,
        version=version,
        file=file,
        facts=found.facts(version.base_model if version is not None else None),
        hashes=(found.hashes or other_digests(path)) if file is None else None,
        model_type=found.model_type if version is None else None,
    )
