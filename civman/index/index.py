"""The library's index: CivitAI metadata, which files are stored, and what they contain.

Reads and writes use the standard `sqlite3` module and take milliseconds. Opening the index creates or upgrades the
database if needed, which imports SQLAlchemy and SQLModel (0.5 to 1.3 s).
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from civman.domain.catalog import (
    Asset,
    Blob,
    FileFacts,
    FileId,
    Model,
    ModelFile,
    ModelId,
    ModelType,
    ModelVersion,
    Own,
    VersionId,
)
from civman.domain.digests import Hashes, Sha256
from civman.domain.refs import HashKind
from civman.errors import Cause, NotFound, UsageError
from civman.index import read_assets, read_catalog, read_maintenance
from civman.index.database import Reader
from civman.index.full_text_query import Understood, understand
from civman.index.index_types import (
    EVERYTHING,
    UNREAD,
    AssetFilter,
    Fits,
    HeldFile,
    Record,
    SeenFile,
    Share,
    Snapshot,
    Sort,
    Source,
    Undigested,
)
from civman.index.open_database import prepare

if TYPE_CHECKING:
    from civman.domain.recipes.record import AnyRecord as PictureRecord
    from civman.index.read_pictures import KeptPicture, PictureFilter
    from civman.index.transactions import Writer

Page = tuple[Model, tuple[ModelVersion, ...]]


class Index:
    """One library's database, for one thread at a time; a context manager. Every method may raise LibraryError."""

    def __init__(self, path: Path) -> None:
        """Do not call this directly: `Index.open` also creates or upgrades the database."""
        self._path = path
        self._reader = Reader(path)
        self._asked: tuple[object, Understood] = ((), Understood())
        """The last parsed query and the database state at that time; `civman list` needs the same query three times."""

    @property
    def folder(self) -> Path:
        """The library's folder, which contains the database."""
        return self._path.parent

    @classmethod
    def open(cls, path: Path) -> "Index":
        """Open the index in the file `path`, creating or upgrading it first if needed.

        Raises: NewerLibrary: a newer civman wrote it. LibraryError: SQLite cannot use it.
        """
        prepare(path)
        return cls(path)

    def close(self) -> None:
        """Close the database."""
        self._reader.close()
        if "_writer" in self.__dict__:
            self._writer.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Stored files

    def assets(
        self,
        wanted: AssetFilter = EVERYTHING,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Asset]:
        """Assets that match the filter. Default order: best match first, or newest first without search words."""
        asked = self.understood(wanted.words)
        return read_assets.select(self._reader, wanted, asked, sort=sort, limit=limit, offset=offset)

    def understood(self, words: Iterable[str]) -> Understood:
        """Parse search words. `corrections` lists replacements for words that occur nowhere in the library."""
        state = (tuple(words), self._reader.one("PRAGMA data_version"))
        if self._asked[0] != state:
            self._asked = state, understand(self._reader, state[0])
        return self._asked[1]

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """The number of assets that match the filter."""
        return read_assets.count(self._reader, wanted, self.understood(wanted.words))

    def find_sha256(self, sha256: Sha256) -> Asset | None:
        """The newest asset whose file has this SHA-256, or None."""
        return next(iter(self.referrers(sha256)), None)

    def find_by_digest(self, digest: str, kind: HashKind | None = None) -> list[Asset]:
        """Assets with this digest, of the given kind or of any kind. A prefix of a SHA-256 is enough."""
        return read_assets.by_digest(self._reader, digest, kind)

    def find_by_version(self, version_id: VersionId) -> list[Asset]:
        """The stored files of a version, newest first."""
        return read_assets.where(self._reader, "a.version_id = ?", [version_id])

    def find_by_model(self, model_id: ModelId) -> list[Asset]:
        """The stored files of all versions of a model, newest first."""
        return read_assets.where(self._reader, "a.model_id = ?", [model_id])

    def find_by_file(self, file_id: FileId) -> list[Asset]:
        """The assets for CivitAI's file `file_id`; a file may belong to several versions."""
        return read_assets.where(self._reader, "a.file_key IN (SELECT key FROM file WHERE file_id = ?)", [file_id])

    def find_by_name(self, name: str) -> list[Asset]:
        """Assets that `name` may refer to.

        The name is compared with aliases, file names, model names, the names that trainers stored in the files, and
        prefixes and parts of names, in this order.
        """
        return read_assets.by_name(self._reader, name)

    def referrers(self, sha256: Sha256) -> list[Asset]:
        """All assets whose file has this SHA-256, newest first. A file without assets is no longer needed."""
        return read_assets.where(self._reader, "a.blob_sha256 = ?", [sha256])

    def blobs(self) -> Iterator[tuple[Sha256, int, str]]:
        """SHA-256, size in bytes and file extension of every stored file."""
        yield from self._reader.all("SELECT sha256, size_bytes, suffix FROM blob ORDER BY sha256")

    def held_files(self, digests: Iterable[Sha256] | None = None) -> list[HeldFile]:
        """The file of each blob, or only of those in `digests`, with its stat information at the last verification."""
        return read_maintenance.held_files(self._reader, digests)

    def without_verdict(self, fits: Fits) -> list[Asset]:
        """Assets, except checkpoints, whose compatibility with the checkpoint of `fits` has not been saved yet."""
        return read_assets.without_verdict(self._reader, fits)

    def save_verdicts(self, fits: Fits, verdicts: Iterable[tuple[Asset, str]]) -> None:
        """Save how compatible these assets are with the checkpoint of `fits`."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.save_verdicts(connection, fits, verdicts)

    def pins(self) -> dict[Sha256, tuple[str, ...]]:
        """Map a file's SHA-256 to the reasons why it must be kept. Includes files that are not in the library."""
        return read_maintenance.pins(self._reader)

    def shares(self, group: str) -> list[Share]:
        """Count files and bytes by "type", "base_model", "architecture", "used" or "tag", largest group first."""
        return read_maintenance.shares(self._reader, group)

    def sidecars_due(self, sha256: Sha256 | None = None) -> list[tuple[Sha256, str]]:
        """Blobs whose rows are newer than their sidecar file, each with the token that `sidecar_kept` needs."""
        return read_maintenance.sidecars_due(self._reader, sha256)

    def hashes(self, sha256: Sha256) -> Hashes:
        """The digests of a blob: SHA-256, AutoV1, AutoV3, CRC32 and BLAKE3, as far as they are known."""
        return read_maintenance.hashes(self._reader, sha256)

    def without_digests(self) -> list[Undigested]:
        """Files for which AutoV1, AutoV3, CRC32 or BLAKE3 has not been computed yet, smallest first."""
        return read_maintenance.without_digests(self._reader)

    def unidentified(self) -> list[tuple[Sha256, str]]:
        """SHA-256 and path of each file for which CivitAI has not confirmed any version."""
        return read_maintenance.unidentified(self._reader)

    def places(self, digests: Iterable[Sha256]) -> list[SeenFile]:
        """All paths at which files with these digests were read, with the stat information saved then; newest last."""
        return read_maintenance.places(self._reader, digests)

    def seen_files(self, paths: Iterable[str] | None = None) -> dict[str, SeenFile]:
        """Map the paths of files outside the store to their saved SHA-256 and stat information; None: all paths."""
        return read_catalog.seen_files(self._reader, paths)

    # Recorded images

    def pictures(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "list[KeptPicture]":
        """Images that match the filter, newest first; all of them without a filter."""
        # imported on first use: the import loads the recipe types (0.02 s), which listing files does not need
        from civman.index import read_pictures

        return read_pictures.select(self._reader, wanted or read_pictures.PictureFilter(), limit=limit, offset=offset)

    def count_pictures(self, wanted: "PictureFilter") -> int:
        """The number of images that match the filter."""
        from civman.index import read_pictures

        return read_pictures.count(self._reader, wanted)

    def picture_paths(self) -> set[str]:
        """The absolute paths of all recorded images."""
        from civman.index import read_pictures

        return read_pictures.paths(self._reader)

    def seeds_of(self, recipes: Iterable[str]) -> list[tuple[str, str, int | None]]:
        """For each image made with these recipes: the recipe's SHA-256, the path and the seed (None if upscaled)."""
        from civman.index import read_pictures

        return read_pictures.seeds_of(self._reader, recipes)

    def pictures_with(self, digests: Iterable[Sha256]) -> int:
        """The number of images that were made with one of these files."""
        from civman.index import read_pictures

        return read_pictures.made_with(self._reader, digests)

    def record_pictures(self, made: "Iterable[tuple[Path, PictureRecord]]", at: datetime) -> list[int]:
        """Record images and where they were saved. Returns their ids in the same order."""
        from civman.index import write_pictures

        with self._writer.transaction() as connection:
            return write_pictures.record(connection, made, at=at, folder=self._reader.folder)

    def forget_pictures(self, numbers: Iterable[int]) -> int:
        """Remove the rows of these images; their files stay on disk. Returns the number removed."""
        from civman.index import write_pictures

        with self._writer.transaction() as connection:
            return write_pictures.forget(connection, numbers)

    # CivitAI metadata

    def version(self, version_id: VersionId) -> ModelVersion | None:
        """Return a version with its files, previews and model, as it was last saved."""
        return read_catalog.version(self._reader, version_id)

    def preview_levels(self, version_ids: Iterable[VersionId]) -> dict[VersionId, int]:
        """The content rating of the first image of each version."""
        return read_catalog.preview_levels(self._reader, version_ids)

    def model(self, model_id: ModelId) -> Page | None:
        """A model and its versions; None if the index has no such model.

        The versions on the model's page come first, in the creator's order; the remaining ones follow, newest first.
        """
        return read_catalog.model(self._reader, model_id)

    def snapshot_of_model(self, model_id: ModelId) -> Snapshot | None:
        """When and from where the model was last fetched, and whether CivitAI still has it."""
        return read_catalog.snapshot(self._reader, "model", model_id)

    def snapshot_of_version(self, version_id: VersionId) -> Snapshot | None:
        """When and from where the version was last fetched, and whether CivitAI still has it."""
        return read_catalog.snapshot(self._reader, "version", version_id)

    @cached_property
    def _writer(self) -> "Writer":
        from civman.index.transactions import Writer

        return Writer(self._path)

    def record(
        self,
        *,
        blob: Blob,
        path: str,
        name: str,
        origin: str,
        version: ModelVersion | None,
        file: ModelFile | None,
        added_at: datetime,
        facts: FileFacts = UNREAD,
        hashes: Hashes | None = None,
        model_type: ModelType | None = None,
    ) -> Asset:
        """Add a stored file to the index and return it as an asset; see `Record` for the fields.

        Recording the same blob, version and file again updates the entry. An unknown version is added; an existing one
        is left unchanged (`remember` refreshes it).
        """
        item = Record(blob, path, name, origin, added_at, version, file, facts, hashes, model_type)
        number = self._record([item])[0]
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def record_all(self, records: Iterable[Record]) -> int:
        """Add many stored files in one transaction. Returns the number of records."""
        return len(self._record(list(records)))

    def _record(self, records: list[Record]) -> list[int]:
        from civman.index import write_assets

        chunks = (records[start : start + write_assets.CHUNK] for start in range(0, len(records), write_assets.CHUNK))
        with self._writer.transaction() as connection:
            return [
                number
                for chunk in chunks
                for number in write_assets.record(connection, chunk, folder=self._reader.folder)
            ]

    def remember(self, page: ModelVersion | Page, *, fetched_at: datetime, source: Source) -> None:
        """Save what CivitAI returned for a version, or for a model and its versions.

        Less complete data never replaces more complete data.
        """
        model, versions = (page.model, (page,)) if isinstance(page, ModelVersion) else page
        self.remember_all([(model, versions)], fetched_at=fetched_at, source=source)

    def remember_all(self, pages: Iterable[Page], *, fetched_at: datetime, source: Source) -> None:
        """Save what CivitAI returned for many models, in one transaction."""
        from civman.index import write_catalog

        with self._writer.transaction() as connection:
            for model, versions in pages:
                write_catalog.remember(connection, model, versions, fetched_at=fetched_at, source=source)

    def mark_model_gone(self, model_id: ModelId, *, status: int, at: datetime) -> bool:
        """Record that CivitAI returned `status` (404 or 410) for a model. Saved data stays.

        Returns whether the model was known.
        """
        return self._mark_gone("model", model_id, status, at)

    def mark_version_gone(self, version_id: VersionId, *, status: int, at: datetime) -> bool:
        """Record that CivitAI returned `status` (404 or 410) for a version. Returns whether the version was known."""
        return self._mark_gone("version", version_id, status, at)

    def _mark_gone(self, table: str, number: int, status: int, at: datetime) -> bool:
        from civman.index import write_catalog

        with self._writer.transaction() as connection:
            return write_catalog.mark_gone(connection, table, number, status=status, at=at)

    def set_alias(self, asset: Asset, alias: str | None) -> Asset:
        """Give the asset an alias; None removes it.

        Raises: UsageError: the alias could be read as another kind of ref, or belongs to another asset. NotFound.
        """
        from civman.index import write_assets

        if alias is not None:
            write_assets.require_name(alias)
        with self._writer.transaction() as connection:
            number = write_assets.asset_id(connection, asset)
            if number is None:
                raise NotFound(f"not in the library: {asset.name}", name=asset.name)
            if alias is not None and write_assets.alias_owner(connection, alias) not in (None, number):
                hint = f"remove the alias from the other file first: `civman edit {alias} --no-alias`"
                raise UsageError(
                    f"another file already has the alias: {alias}", code=Cause.ALIAS_TAKEN, hint=hint, alias=alias
                )
            write_assets.set_alias(connection, number, alias)
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def annotate(self, asset: Asset, own: Own) -> Asset:
        """Replace all of the user's annotations of an asset. Raises: NotFound."""
        from civman.index import write_assets, write_notes

        with self._writer.transaction() as connection:
            number = write_assets.asset_id(connection, asset)
            if number is None:
                raise NotFound(f"not in the library: {asset.name}", name=asset.name)
            write_notes.annotate(connection, number, own)
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def annotate_all(self, changes: Iterable[tuple[Asset, Own]]) -> None:
        """Replace the user's annotations of many assets in one transaction; assets that are gone are skipped."""
        from civman.index import write_assets, write_notes

        changed = list(changes)
        with self._writer.transaction() as connection:
            for asset, own in changed:
                number = write_assets.asset_id(connection, asset)
                if number is not None:
                    write_notes.annotate(connection, number, own)

    def pin(self, sha256: Sha256, reason: str, at: datetime) -> None:
        """Record why these bytes must be kept: "user", or "recipe <id>" for a recipe that needs them."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.pin(connection, sha256, reason, at)

    def unpin(self, sha256: Sha256, reason: str) -> None:
        """Remove one reason why these bytes must be kept."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.unpin(connection, sha256, reason)

    def sidecar_kept(self, due: Iterable[tuple[Sha256, str]]) -> None:
        """Record that sidecar files were written. Has no effect if the rows have changed since their token was read."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.sidecar_kept(connection, due)

    @property
    def has_written(self) -> bool:
        """Whether this index has been written to since it was opened."""
        return "_writer" in self.__dict__

    def forget_seen(self, paths: Iterable[str]) -> None:
        """Remove the saved digests of files that no longer exist."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.forget_seen(connection, paths)

    def refill_search(self) -> None:
        """Rebuild the full-text table from the rows."""
        from civman.index import search_rows

        with self._writer.transaction() as connection:
            search_rows.refill(connection)

    def forget(self, asset: Asset) -> bool:
        """Remove the asset, and the blob's row if no other asset refers to it. Returns whether the asset existed."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.forget(connection, asset)

    def update_facts(self, sha256: Sha256, facts: FileFacts, *, model_type: ModelType | None = None) -> bool:
        """Save what the file's header shows. `model_type` is set only on assets without a version.

        Returns whether the blob exists.
        """
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.update_facts(connection, sha256, facts, model_type)

    def save_hashes(self, found: Mapping[Sha256, Hashes]) -> None:
        """Save the AutoV1, AutoV3, CRC32 and BLAKE3 digests of blobs, by SHA-256; a digest of None is not saved."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            for sha256, hashes in found.items():
                write_assets.save_hashes(connection, sha256, hashes)

    def rehome(self, moves: Iterable[tuple[Sha256, str, str]]) -> None:
        """Record new paths of files, given as (SHA-256, old path, new path). Assets are renamed with their files."""
        from civman.index import write_places

        with self._writer.transaction() as connection:
            write_places.rehome(connection, moves, folder=self._reader.folder)

    def set_verified(self, sha256: Sha256, at: datetime) -> bool:
        """Record when the file's contents were last verified. Returns whether the blob exists."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.set_verified(connection, sha256, at)

    def save_proofs(self, files: Iterable[SeenFile], at: datetime) -> None:
        """Record that these files were just read and match their digests, with their stat information."""
        from civman.index import write_assets

        proven = list(files)
        with self._writer.transaction() as connection:
            write_assets.save_seen(connection, proven)
            write_assets.set_all_verified(connection, [file.sha256 for file in proven], at)

    def mark_used(self, digests: Iterable[Sha256], at: datetime) -> None:
        """Record when files were last used."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            write_assets.mark_used(connection, digests, at)

    def save_seen(self, files: Iterable[SeenFile]) -> None:
        """Save the digests of files outside the store."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            write_assets.save_seen(connection, list(files))
