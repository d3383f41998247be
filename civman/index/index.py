"""The library's memory: what CivitAI said, which bytes are held, and what they are.

Reading goes through SQLite's own module and costs milliseconds; the first write of a process imports SQLAlchemy and
SQLModel (0.5 to 1.3 s). Opening creates or upgrades the database where needed.
"""

from collections.abc import Iterable, Iterator
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
from civman.domain.refs import HashKind, NameRef, parse_ref
from civman.errors import InvalidRef, NotFound, UsageError
from civman.index import read_assets, read_catalog, read_maintenance
from civman.index.database import Reader
from civman.index.full_text_query import Understood, understand
from civman.index.index_types import (
    EVERYTHING,
    UNREAD,
    AssetFilter,
    HeldFile,
    Record,
    SeenFile,
    Share,
    Snapshot,
    Sort,
    Source,
)
from civman.index.open_database import prepare

if TYPE_CHECKING:
    from civman.domain.recipes.record import Record as PictureRecord
    from civman.index.read_pictures import KeptPicture, PictureFilter
    from civman.index.transactions import Writer

Page = tuple[Model, tuple[ModelVersion, ...]]


class Index:
    """One library's database. A context manager, for one thread at a time. All methods may raise LibraryError."""

    def __init__(self, path: Path) -> None:
        """Opens what `prepare` left; use `Index.open`."""
        self._path = path
        self._reader = Reader(path)
        self._asked: tuple[object, Understood] = ((), Understood())
        """The words last looked up, with the state of the database, and what they mean: listing asks three times."""

    @classmethod
    def open(cls, path: Path) -> "Index":
        """The index in the file `path`, created or upgraded first where needed.

        Raises: NewerLibrary: a newer civman wrote it. LibraryError: SQLite cannot use it.
        """
        prepare(path)
        return cls(path)

    def close(self) -> None:
        """Gives the file back."""
        self._reader.close()
        if "_writer" in self.__dict__:
            self._writer.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What is held

    def assets(
        self,
        wanted: AssetFilter = EVERYTHING,
        *,
        sort: Sort | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Asset]:
        """Assets that pass the filter; without `sort` the best match first, newest first where no words are given."""
        asked = self.understood(wanted.words)
        return read_assets.select(self._reader, wanted, asked, sort=sort, limit=limit, offset=offset)

    def understood(self, words: Iterable[str]) -> Understood:
        """How words are looked for here: with `corrections` where nothing is written as they are."""
        state = (tuple(words), self._reader.one("PRAGMA data_version"))
        if self._asked[0] != state:
            self._asked = state, understand(self._reader, state[0])
        return self._asked[1]

    def count(self, wanted: AssetFilter = EVERYTHING) -> int:
        """How many assets pass the filter."""
        return read_assets.count(self._reader, wanted, self.understood(wanted.words))

    def find_sha256(self, sha256: Sha256) -> Asset | None:
        """The newest asset with these bytes."""
        return next(iter(self.referrers(sha256)), None)

    def find_by_digest(self, digest: str, kind: HashKind | None = None) -> list[Asset]:
        """Assets with a digest of that kind, or of any kind; the beginning of a SHA-256 is enough."""
        return read_assets.by_digest(self._reader, digest, kind)

    def find_by_version(self, version_id: VersionId) -> list[Asset]:
        """The files held of a version, newest first."""
        return read_assets.where(self._reader, "a.version_id = ?", [version_id])

    def find_by_model(self, model_id: ModelId) -> list[Asset]:
        """The files held of a model's versions, newest first."""
        return read_assets.where(self._reader, "a.model_id = ?", [model_id])

    def find_by_file(self, file_id: FileId) -> list[Asset]:
        """The assets that are CivitAI's file `file_id`; a shared file may be held as part of several versions."""
        return read_assets.where(self._reader, "a.file_key IN (SELECT key FROM file WHERE file_id = ?)", [file_id])

    def find_by_name(self, name: str) -> list[Asset]:
        """What `name` may mean: by alias, file name, model name, beginning, part; the first that finds any decides."""
        return read_assets.by_name(self._reader, name)

    def referrers(self, sha256: Sha256) -> list[Asset]:
        """All assets with these bytes, newest first. Once it is empty, nothing speaks for keeping them."""
        return read_assets.where(self._reader, "a.blob_sha256 = ?", [sha256])

    def blobs(self) -> Iterator[tuple[Sha256, int, str]]:
        """Digest, size in bytes and suffix of all that is held."""
        yield from self._reader.all("SELECT sha256, size_bytes, suffix FROM blob ORDER BY sha256")

    def held_files(self, digests: Iterable[Sha256] | None = None) -> list[HeldFile]:
        """The file of each blob, with what it looked like when last proven; all of them, or of `digests`."""
        return read_maintenance.held_files(self._reader, digests)

    def pins(self) -> dict[Sha256, tuple[str, ...]]:
        """Why bytes must stay, by digest; also of bytes that are not here."""
        return read_maintenance.pins(self._reader)

    def shares(self, group: str) -> list[Share]:
        """How many files and bytes by "type", "base_model", "architecture" or "used", the largest first."""
        return read_maintenance.shares(self._reader, group)

    def sidecars_due(self, sha256: Sha256 | None = None) -> list[tuple[Sha256, str]]:
        """Blobs whose rows are newer than what is kept beside them, each with the token for `sidecar_kept`."""
        return read_maintenance.sidecars_due(self._reader, sha256)

    def hashes(self, sha256: Sha256) -> Hashes:
        """The further digests of a blob."""
        return read_maintenance.hashes(self._reader, sha256)

    def seen_files(self, paths: Iterable[str] | None = None) -> dict[str, SeenFile]:
        """What is known of files outside the store, by path; all of them, or of `paths` those that are known."""
        return read_catalog.seen_files(self._reader, paths)

    # Pictures that were made

    def pictures(
        self, wanted: "PictureFilter | None" = None, *, limit: int | None = None, offset: int = 0
    ) -> "list[KeptPicture]":
        """Pictures that pass the filter, newest first; all of them without one."""
        from civman.index import read_pictures  # with the recipe 0.02 s, which listing files need not spend

        return read_pictures.select(self._reader, wanted or read_pictures.PictureFilter(), limit=limit, offset=offset)

    def count_pictures(self, wanted: "PictureFilter") -> int:
        """How many pictures pass the filter."""
        from civman.index import read_pictures

        return read_pictures.count(self._reader, wanted)

    def picture_paths(self) -> set[str]:
        """Where the files of all pictures were put, absolute."""
        from civman.index import read_pictures

        return read_pictures.paths(self._reader)

    def pictures_with(self, digests: Iterable[Sha256]) -> int:
        """How many pictures were made with one of these files."""
        from civman.index import read_pictures

        return read_pictures.made_with(self._reader, digests)

    def record_pictures(self, made: "Iterable[tuple[Path, PictureRecord]]", at: datetime) -> list[int]:
        """Writes pictures that were made and where their files are; gives their numbers, in order."""
        from civman.index import write_pictures

        with self._writer.transaction() as connection:
            return write_pictures.record(connection, made, at=at, folder=self._reader.folder)

    def forget_pictures(self, numbers: Iterable[int]) -> int:
        """Takes pictures' rows away; their files stay. Gives how many there were."""
        from civman.index import write_pictures

        with self._writer.transaction() as connection:
            return write_pictures.forget(connection, numbers)

    # What CivitAI said

    def version(self, version_id: VersionId) -> ModelVersion | None:
        """A version as last remembered, with its files, previews and model."""
        return read_catalog.version(self._reader, version_id)

    def model(self, model_id: ModelId) -> Page | None:
        """A model and its versions: in the creator's order, then those that the page no longer lists, newest first."""
        return read_catalog.model(self._reader, model_id)

    def snapshot_of_model(self, model_id: ModelId) -> Snapshot | None:
        """When the model was last fetched, from where, and whether CivitAI still has it."""
        return read_catalog.snapshot(self._reader, "model", model_id)

    def snapshot_of_version(self, version_id: VersionId) -> Snapshot | None:
        """As `snapshot_of_model`, for a version."""
        return read_catalog.snapshot(self._reader, "version", version_id)

    # Writing

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
        """Writes a file that is held, and gives it as an asset; see `Record` for the parts.

        The same blob, version and file again updates. A version that is not yet known is remembered along with it;
        one that is stays as it is (`remember` renews it).
        """
        item = Record(blob, path, name, origin, added_at, version, file, facts, hashes, model_type)
        number = self._record([item])[0]
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def record_all(self, records: Iterable[Record]) -> int:
        """As `record` for many, in one transaction; gives how many there were."""
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
        """Saves what CivitAI said of a version, or of a model and its versions. Poorer answers never wipe richer."""
        from civman.index import write_catalog

        model, versions = (page.model, (page,)) if isinstance(page, ModelVersion) else page
        with self._writer.transaction() as connection:
            write_catalog.remember(connection, model, versions, fetched_at=fetched_at, source=source)

    def mark_model_gone(self, model_id: ModelId, *, status: int, at: datetime) -> bool:
        """Notes that CivitAI answered `status` (404, 410) for a model. What was saved stays. False: nothing was."""
        return self._mark_gone("model", model_id, status, at)

    def mark_version_gone(self, version_id: VersionId, *, status: int, at: datetime) -> bool:
        """As `mark_model_gone`, for a version."""
        return self._mark_gone("version", version_id, status, at)

    def _mark_gone(self, table: str, number: int, status: int, at: datetime) -> bool:
        from civman.index import write_catalog

        with self._writer.transaction() as connection:
            return write_catalog.mark_gone(connection, table, number, status=status, at=at)

    def set_alias(self, asset: Asset, alias: str | None) -> Asset:
        """Gives the asset a name of the user's own; None takes it away.

        Raises: UsageError: the alias reads as something else or belongs to another asset. NotFound.
        """
        from civman.index import write_assets

        if alias is not None:
            _require_name(alias)
        with self._writer.transaction() as connection:
            number = write_assets.asset_id(connection, asset)
            if number is None:
                raise NotFound(f"not in the library: {asset.name}", name=asset.name)
            if alias is not None and write_assets.alias_owner(connection, alias) not in (None, number):
                hint = f"take it from the other one first: `civman edit {alias} --no-alias`"
                raise UsageError(
                    f"the alias belongs to another file: {alias}", code="alias-taken", hint=hint, alias=alias
                )
            write_assets.set_alias(connection, number, alias)
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def annotate(self, asset: Asset, own: Own) -> Asset:
        """Writes what the user says of an asset, all of it. Raises: NotFound."""
        from civman.index import write_assets, write_notes

        with self._writer.transaction() as connection:
            number = write_assets.asset_id(connection, asset)
            if number is None:
                raise NotFound(f"not in the library: {asset.name}", name=asset.name)
            write_notes.annotate(connection, number, own)
        return read_assets.where(self._reader, "a.id = ?", [number])[0]

    def pin(self, sha256: Sha256, reason: str, at: datetime) -> None:
        """Writes that these bytes must stay: "user", or "recipe <id>" for what needs them to be drawn again."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.pin(connection, sha256, reason, at)

    def unpin(self, sha256: Sha256, reason: str) -> None:
        """Takes a reason to stay away."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.unpin(connection, sha256, reason)

    def sidecar_kept(self, due: Iterable[tuple[Sha256, str]]) -> None:
        """Notes that sidecars were written, unless a row has changed since the token was read."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.sidecar_kept(connection, due)

    @property
    def has_written(self) -> bool:
        """Whether this index has opened its write side."""
        return "_writer" in self.__dict__

    def forget_seen(self, paths: Iterable[str]) -> None:
        """Takes away what is known of files that are no more."""
        from civman.index import write_notes

        with self._writer.transaction() as connection:
            write_notes.forget_seen(connection, paths)

    def refill_search(self) -> None:
        """Makes the full-text table again from the rows."""
        from civman.index import search_rows

        with self._writer.transaction() as connection:
            search_rows.refill(connection)

    def forget(self, asset: Asset) -> bool:
        """Removes the asset, and its blob's row with the last asset. False: it was not there."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.forget(connection, asset)

    def update_facts(self, sha256: Sha256, facts: FileFacts, *, model_type: ModelType | None = None) -> bool:
        """Writes what the file shows of itself; the type only for assets without a version. False: no such blob."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.update_facts(connection, sha256, facts, model_type)

    def set_verified(self, sha256: Sha256, at: datetime) -> bool:
        """Writes when the bytes were last read and found right. False: no such blob."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            return write_assets.set_verified(connection, sha256, at)

    def save_proofs(self, files: Iterable[SeenFile], at: datetime) -> None:
        """Writes that these files were read just now and are what their digests say, and how they look."""
        from civman.index import write_assets

        proven = list(files)
        with self._writer.transaction() as connection:
            write_assets.save_seen(connection, proven)
            write_assets.set_all_verified(connection, [file.sha256 for file in proven], at)

    def mark_used(self, digests: Iterable[Sha256], at: datetime) -> None:
        """Writes when files were last put to use."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            write_assets.mark_used(connection, digests, at)

    def save_seen(self, files: Iterable[SeenFile]) -> None:
        """Writes what files outside the store hashed to."""
        from civman.index import write_assets

        with self._writer.transaction() as connection:
            write_assets.save_seen(connection, list(files))


def _require_name(alias: str) -> None:
    try:
        readable = parse_ref(alias) == NameRef(alias)
    except InvalidRef:
        readable = False
    if not readable:
        hint = "choose a word that is no number, hash, address or path"
        raise UsageError(f"cannot be an alias: {alias!r}", code="bad-alias", hint=hint, alias=alias)
