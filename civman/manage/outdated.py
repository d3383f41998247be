"""Compares stored models with CivitAI: newer versions, replaced files, deleted models. Downloads no files.

A version is newer if it was published later (or created later, if there is no publication date). Its position on the
model's page does not count, since creators order the page as they like. One request covers a hundred models.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from civman.civitai.client import CivitaiClient
from civman.domain.base_models import label_key
from civman.domain.catalog import Asset, FileId, ModelFile, ModelId, ModelVersion, VersionId
from civman.domain.file_choice import choose_file
from civman.domain.html_text import first_line
from civman.domain.printed_refs import file_ref
from civman.domain.replaced_upstream import Replaced, replaced
from civman.domain.search_query import ModelPage
from civman.errors import NotFound
from civman.index import Index, Source

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Loss(StrEnum):
    """Why CivitAI no longer offers a stored model or version."""

    MODEL_DELETED = "model-deleted"
    VERSION_DELETED = "version-deleted"
    ARCHIVED = "archived"
    TAKEN_DOWN = "taken-down"
    UNCLEAR = "unclear"
    """The model's page lists no versions at the moment: CivitAI's caches lag behind after an update."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A newer version of a stored model.

    `ref` refers to its version and file; `is_gated` and `ends_at`: whether it is in early access, and until when.
    Fields that start with `held_` describe the stored version.
    """

    ref: str
    model_id: ModelId
    model_name: str
    held_version_id: VersionId
    held_version_name: str
    held_base_model: str | None
    held_size_bytes: int
    version_id: VersionId
    version_name: str
    base_model: str | None
    published_at: datetime | None
    file_id: FileId | None
    file_name: str
    size_bytes: int | None
    description: str
    """The first line of the new version's description; empty if the stored version has the same description."""
    is_gated: bool = False
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A stored model or version that CivitAI no longer offers. `assets`: the number of stored files, which are kept."""

    loss: Loss
    model_id: ModelId
    model_name: str
    version_id: VersionId | None
    version_name: str
    assets: int


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Everything that has changed on CivitAI for the stored files.

    `unknown`: the number of files that were never on CivitAI.
    """

    offers: tuple[Offer, ...] = ()
    early_access: tuple[Offer, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    lost: tuple[Lost, ...] = ()
    models: int = 0
    unknown: int = 0
    same_bytes: int = 0
    """The number of newer versions that are not offered because the library already has files with the same bytes."""

    @property
    def total_bytes(self) -> int:
        """The size in bytes of what an update would download. Files without a declared size count as 0."""
        sizes = [*(offer.size_bytes for offer in self.offers), *(each.size_bytes for each in self.replaced)]
        return sum(size or 0 for size in sizes)

    @property
    def refs(self) -> tuple[str, ...]:
        """The refs that an update would download."""
        refs = [*(offer.ref for offer in self.offers), *(each.ref for each in self.replaced)]
        return tuple(dict.fromkeys(refs))


def find_updates(
    index: Index, client: CivitaiClient, assets: Iterable[Asset], *, any_base: bool, clock: Callable[[], datetime]
) -> UpdateReport:
    """Compare `assets` with CivitAI, and store CivitAI's responses in the index.

    `any_base`: versions for another base model also count as newer. Raises: NetworkError.
    """
    return _Comparison(index, client, any_base=any_base, clock=clock).of(assets)


class _Comparison:
    def __init__(self, index: Index, client: CivitaiClient, *, any_base: bool, clock: Callable[[], datetime]) -> None:
        self._index, self._client, self._any_base, self._clock = index, client, any_base, clock
        self._offers: list[Offer] = []
        self._early: list[Offer] = []
        self._replaced: list[Replaced] = []
        self._lost: list[Lost] = []
        self._same: set[VersionId] = set()

    def of(self, assets: Iterable[Asset]) -> UpdateReport:
        by_model: dict[ModelId, list[Asset]] = {}
        unknown = 0
        for asset in assets:
            if asset.model_id is None:
                unknown += 1
            else:
                by_model.setdefault(asset.model_id, []).append(asset)
        for model_id, page in self._pages(by_model):
            if page is None:
                self._lose(Loss.MODEL_DELETED, by_model[model_id])
            else:
                self._compare(page, by_model[model_id])
        by_name = sorted(by_model, key=lambda model_id: by_model[model_id][0].model_name.casefold())
        place = {model_id: number for number, model_id in enumerate(by_name)}
        return UpdateReport(
            tuple(sorted(self._offers, key=lambda offer: place[offer.model_id])),
            tuple(sorted(self._early, key=lambda offer: place[offer.model_id])),
            tuple(sorted(self._replaced, key=lambda each: (place[each.model_id], each.version_id, each.file_name))),
            tuple(sorted(self._lost, key=lambda each: (place[each.model_id], each.version_id or 0))),
            len(by_model),
            unknown,
            len(self._same),
        )

    def _pages(self, wanted: Iterable[ModelId]) -> Iterator[tuple[ModelId, ModelPage | None]]:
        """Request each model's page: one batch request, then a request for each model missing from its response."""
        missing = dict.fromkeys(wanted)
        for page in self._client.models_by_ids(list(missing)):
            if page.model.id in missing and page.versions:
                del missing[page.model.id]
                self._index.remember((page.model, page.versions), fetched_at=self._clock(), source=Source.SEARCH)
                yield page.model.id, page
        for model_id in missing:
            try:
                page = self._client.model(model_id)
            except NotFound as error:
                self._index.mark_model_gone(model_id, status=_status(error), at=self._clock())
                yield model_id, None
            else:
                self._index.remember((page.model, page.versions), fetched_at=self._clock(), source=Source.MODEL)
                yield model_id, page

    def _compare(self, page: ModelPage, assets: Sequence[Asset]) -> None:
        listed = {version.id: version for version in page.versions}
        if page.model.mode in ("Archived", "TakenDown"):
            self._lose(Loss.ARCHIVED if page.model.mode == "Archived" else Loss.TAKEN_DOWN, assets)
        elif not listed:
            self._lose(Loss.UNCLEAR, assets)
            return
        for version_id in sorted({asset.version_id for asset in assets if asset.version_id is not None}):
            of_version = [asset for asset in assets if asset.version_id == version_id]
            if version_id in listed:
                self._replaced += replaced(listed[version_id], of_version)
            elif listed and self._is_gone(version_id):
                self._lose(Loss.VERSION_DELETED, of_version, version_id)
        if page.model.mode is None:
            for group in self._by_base(assets):
                self._compare_versions(page, group)

    def _is_gone(self, version_id: VersionId) -> bool:
        try:
            self._client.version(version_id)
        except NotFound as error:
            self._index.mark_version_gone(version_id, status=_status(error), at=self._clock())
            return True
        return False

    def _by_base(self, assets: Sequence[Asset]) -> Iterator[list[Asset]]:
        if self._any_base:
            yield list(assets)
            return
        groups: dict[str, list[Asset]] = {}
        for asset in assets:
            groups.setdefault(label_key(asset.base_model or ""), []).append(asset)
        yield from groups.values()

    def _compare_versions(self, page: ModelPage, assets: Sequence[Asset]) -> None:
        dates = {version.id: _date(version) for version in page.versions}
        held = {asset.version_id for asset in assets if asset.version_id is not None}
        for version_id in held - dates.keys():
            saved = self._index.version(version_id)
            dates[version_id] = _date(saved) if saved is not None else _EPOCH
        if not held:
            return
        newest = max(held, key=lambda version_id: (dates[version_id], version_id))
        asset = next(asset for asset in assets if asset.version_id == newest)
        base = label_key(asset.base_model or "")
        newer = [
            version
            for version in page.versions
            if (dates[version.id], version.id) > (dates[newest], newest)
            and version.files
            and version.is_published(self._clock())
            and version.usage_control in (None, "Download")
            and (self._any_base or label_key(version.base_model or "") == base)
            and not self._holds(version)
        ]
        newer.sort(key=lambda version: (dates[version.id], version.id))
        free = [version for version in newer if version.gate is None]
        if free:
            self._offers.append(self._offer(free[-1], asset))
        self._early += [self._offer(version, asset) for version in newer if version.gate is not None]

    def _holds(self, version: ModelVersion) -> bool:
        """Whether the library already has the bytes of the version's file, under any version or name."""
        sha256 = choose_file(version).hashes.sha256
        if sha256 is None or self._index.find_sha256(sha256) is None:
            return False
        self._same.add(version.id)
        return True

    def _offer(self, version: ModelVersion, asset: Asset) -> Offer:
        held = self._index.version(asset.version_id) if asset.version_id is not None else None
        file = _alike(version, held, asset)
        said, before = first_line(version.description), first_line(held.description if held is not None else None)
        return Offer(
            ref=file_ref(version, file),
            model_id=version.model.id,
            model_name=version.model.name,
            held_version_id=asset.version_id or version.id,
            held_version_name=asset.version_name,
            held_base_model=asset.base_model,
            held_size_bytes=asset.blob.size_bytes,
            version_id=version.id,
            version_name=version.name,
            base_model=version.base_model,
            published_at=version.published_at,
            file_id=file.id,
            file_name=file.name,
            size_bytes=file.size_bytes,
            description=said if said != before else "",
            is_gated=version.gate is not None,
            ends_at=version.gate.ends_at if version.gate is not None else None,
        )

    def _lose(self, loss: Loss, assets: Sequence[Asset], version_id: VersionId | None = None) -> None:
        first = assets[0]
        name = first.version_name if version_id is not None else ""
        self._lost.append(Lost(loss, first.model_id or ModelId(0), first.model_name, version_id, name, len(assets)))


def _alike(version: ModelVersion, held: ModelVersion | None, asset: Asset) -> ModelFile:
    """Choose the file of `version` with the same type, format and precision as the stored file.

    If there is not exactly one, choose the file that a download would choose.
    """
    own = next((file for file in held.files if file.id == asset.file_id), None) if held is not None else None
    if own is not None:
        alike = [file for file in version.files if _character(file) == _character(own)]
        if len(alike) == 1:
            return alike[0]
    return choose_file(version)


def _character(file: ModelFile) -> tuple[str | None, ...]:
    return file.type, file.suffix, file.format, file.precision, file.size_class, file.quant_type


def _date(version: ModelVersion) -> datetime:
    if version.published_at is not None:
        return version.published_at
    created = json.loads(version.raw).get("createdAt")
    try:
        return datetime.fromisoformat(str(created)).astimezone(UTC)
    except ValueError:
        return _EPOCH


def _status(error: NotFound) -> int:
    status = error.facts.get("status")
    return status if isinstance(status, int) else 404
