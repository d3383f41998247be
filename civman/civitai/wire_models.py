"""Parse models, versions and files from CivitAI's JSON, in all forms since 2023, into domain values.

Any part of a model or version that cannot be parsed is skipped and reported through `on_notice` (see `wire_reading`).
If the primary file is skipped, the version has no primary file; no other file is chosen instead.

Source: CivitAI's public REST API, version 1; responses of 2023-07 to 2026-09.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from civman.civitai import wire_values
from civman.civitai.responses import SearchPage
from civman.civitai.wire_reading import Each, Id, Maybe, Moment, Reading, Wire, read
from civman.civitai.wire_values import OnNotice
from civman.domain.catalog import (
    FileId,
    Licence,
    Model,
    ModelFile,
    ModelId,
    ModelType,
    ModelVersion,
    Preview,
    Scan,
    VersionId,
)
from civman.domain.search_query import ModelPage
from civman.errors import BadAnswer

CommercialUse = Annotated[tuple[str, ...], BeforeValidator(wire_values.commercial_use)]
Tag = Annotated[str, BeforeValidator(lambda raw: raw.get("name") if isinstance(raw, dict) else raw)]


class _Stats(Wire):
    model_config = ConfigDict(title="stats")
    download_count: Maybe[int] = None
    thumbs_up_count: Maybe[int] = None


class _FileMetadata(Wire):
    model_config = ConfigDict(title="file metadata")
    format: Maybe[str] = None
    size: Maybe[str] = None
    fp: Maybe[str] = None
    quant_type: Maybe[str] = None


class _File(Wire):
    model_config = ConfigDict(title="file")
    id: Maybe[Id] = None
    name: Maybe[str] = None
    type: Maybe[str] = None
    size_kb: Maybe[Annotated[float, Field(ge=0)]] = Field(None, alias="sizeKB")
    hashes: Maybe[dict[str, Any]] = None
    primary: Maybe[bool] = None
    metadata: Maybe[_FileMetadata] = None
    pickle_scan_result: Maybe[str] = None
    pickle_scan_message: Maybe[str] = None
    virus_scan_result: Maybe[str] = None
    virus_scan_message: Maybe[str] = None
    download_url: Maybe[str] = None

    def translated(self, tell: OnNotice, *, is_linked: bool = False) -> ModelFile:
        metadata = self.metadata or _FileMetadata.model_construct()
        number = self.id if self.id is not None or is_linked else wire_values.file_id_in(self.download_url)
        return ModelFile(
            id=FileId(number) if number is not None else None,
            name=wire_values.file_name(self.name or ""),
            type=self.type or "",
            size_bytes=wire_values.size_bytes(self.size_kb),
            hashes=wire_values.hashes(self.hashes or {}, lambda said: tell(f"file `{self.name or number}`: {said}")),
            is_primary=bool(self.primary),
            is_linked=is_linked,
            format=metadata.format,
            precision=metadata.fp,
            size_class=metadata.size,
            quant_type=metadata.quant_type,
            pickle_scan=Scan.of(self.pickle_scan_result),
            virus_scan=Scan.of(self.virus_scan_result),
            scan_message=self.pickle_scan_message or self.virus_scan_message or None,
            download_url=self.download_url,
            raw=self.raw(),
        )


class ImageShape(Wire):
    """An image of a version. The endpoint `/images` returns images with more fields."""

    model_config = ConfigDict(title="picture")
    id: Maybe[int] = None
    url: str
    nsfw_level: Any = None
    nsfw: Any = None
    width: Maybe[int] = None
    height: Maybe[int] = None
    type: Maybe[str] = None

    @property
    def media(self) -> str:
        """Type of the media: "image", "video" or "audio"."""
        return self.type or ("video" if self.url.lower().endswith((".mp4", ".webm")) else "image")

    def translated(self) -> Preview:
        """Convert the image to a domain value."""
        level = wire_values.image_level(self.nsfw_level, self.nsfw)
        return Preview(self.url, level, self.width, self.height, self.media)


class _PaidAccess(Wire):
    model_config = ConfigDict(title="paid access")
    permanent: Maybe[bool] = None
    ends_at: Maybe[Moment] = None


class _ModelOfVersion(Wire):
    model_config = ConfigDict(title="model")
    id: Maybe[Id] = None
    name: Maybe[str] = None
    type: Maybe[str] = None
    nsfw: Maybe[bool] = None
    poi: Maybe[bool] = None
    mode: Maybe[str] = None


class _Version(Wire):
    model_config = ConfigDict(title="version")
    id: Id
    model_id: Maybe[Id] = None
    name: Maybe[str] = None
    base_model: Maybe[str] = None
    base_model_type: Maybe[str] = None
    published_at: Maybe[Moment] = None
    status: Maybe[str] = None
    availability: Maybe[str] = None
    usage_control: Maybe[str] = None
    nsfw_level: Maybe[int] = None
    description: Maybe[str] = None
    trained_words: Each[str] = Field(default_factory=list)
    vae_id: Maybe[int] = None
    air: Maybe[str] = None
    paid_access: Maybe[_PaidAccess] = None
    early_access_deadline: Maybe[Moment] = None
    early_access_ends_at: Maybe[Moment] = None
    early_access_time_frame: Maybe[int] = None
    stats: Maybe[_Stats] = None
    model: Maybe[_ModelOfVersion] = None
    files: Each[_File] = Field(default_factory=list)
    images: Each[ImageShape] = Field(default_factory=list)
    download_url: Maybe[str] = None

    def translated(self, model: Model, reading: Reading) -> ModelVersion:
        places = [(file.type or "", bool(file.primary), file.download_url) for file in self.files]
        linked = wire_values.linked_places(places, has_linked_vae=self.vae_id is not None)
        paid = self.paid_access if self.paid_access and self.paid_access.received else None
        stats = self.stats or _Stats.model_construct()
        return ModelVersion(
            id=VersionId(self.id),
            model=model,
            name=self.name or "",
            base_model=self.base_model,
            files=tuple(
                file.translated(reading.tell, is_linked=place in linked) for place, file in enumerate(self.files)
            ),
            base_model_type=self.base_model_type,
            published_at=self.published_at,
            trained_words=wire_values.trained_words(self.trained_words),
            description=self.description,
            air=self.air,
            gate=wire_values.gate(
                paid_access=None if paid is None else (bool(paid.permanent), paid.ends_at),
                ends=(self.early_access_deadline, self.early_access_ends_at),
                days_after_publication=self.early_access_time_frame,
                published_at=self.published_at,
                availability=self.availability,
                now=reading.now,
            ),
            usage_control=self.usage_control,
            status=self.status,
            availability=self.availability,
            nsfw_level=self.nsfw_level or 0,
            previews=tuple(image.translated() for image in self.images),
            download_url=self.download_url,
            download_count=stats.download_count,
            thumbs_up_count=stats.thumbs_up_count,
            raw=self.raw(),
        )

    def translated_alone(self, reading: Reading) -> ModelVersion:
        told = self.model or _ModelOfVersion.model_construct()
        number = self.model_id or told.id
        if number is None:
            raise BadAnswer(
                f"CivitAI's response for version {self.id} does not contain its model's id", version_id=self.id
            )
        model = Model(
            id=ModelId(number),
            name=told.name or "",
            type=ModelType.of(told.type),
            type_raw=told.type or "",
            nsfw=bool(told.nsfw),
            real_person=bool(told.poi),
            mode=told.mode,
            is_complete=False,
            raw=told.raw(),
        )
        return self.translated(model, reading)


class _Creator(Wire):
    model_config = ConfigDict(title="creator")
    username: Maybe[str] = None


class _Model(Wire):
    model_config = ConfigDict(title="model")
    id: Id
    name: Maybe[str] = None
    type: Maybe[str] = None
    nsfw: Maybe[bool] = None
    nsfw_level: Maybe[int] = None
    poi: Maybe[bool] = None
    mode: Maybe[str] = None
    description: Maybe[str] = None
    creator: Maybe[_Creator] = None
    tags: Each[Tag] = Field(default_factory=list)
    allow_no_credit: Maybe[bool] = None
    allow_commercial_use: Maybe[CommercialUse] = None
    allow_derivatives: Maybe[bool] = None
    allow_different_license: Maybe[bool] = None
    stats: Maybe[_Stats] = None
    model_versions: Each[_Version] = Field(default_factory=list)

    def translated(self, reading: Reading) -> ModelPage:
        stats = self.stats or _Stats.model_construct()
        model = Model(
            id=ModelId(self.id),
            name=self.name or "",
            type=ModelType.of(self.type),
            type_raw=self.type or "",
            nsfw=bool(self.nsfw),
            nsfw_level=self.nsfw_level or 0,
            real_person=bool(self.poi),
            mode=self.mode,
            creator=self.creator.username if self.creator else None,
            tags=tuple(self.tags),
            description=self.description,
            licence=Licence(
                credit_required=None if self.allow_no_credit is None else not self.allow_no_credit,
                # `allowCommercialUse: []` means that nothing is allowed; `null` means unknown
                commercial_use=self.allow_commercial_use,
                derivatives_allowed=self.allow_derivatives,
                different_licence_allowed=self.allow_different_license,
            ),
            download_count=stats.download_count,
            thumbs_up_count=stats.thumbs_up_count,
            raw=self.raw(without="modelVersions"),
        )
        return ModelPage(model, tuple(version.translated(model, reading) for version in self._own(reading.tell)))

    def _own(self, tell: OnNotice) -> list[_Version]:
        for version in self.model_versions:
            if version.model_id not in (None, self.id):
                tell(f"CivitAI listed version {version.id} of another model under model {self.id}; skipped")
        return [version for version in self.model_versions if version.model_id in (None, self.id)]


class _PageMetadata(Wire):
    model_config = ConfigDict(title="page metadata")
    next_cursor: Maybe[str] = None
    next_page: Maybe[str] = None


class _ModelList(Wire):
    model_config = ConfigDict(title="page")
    items: Each[_Model]
    metadata: Maybe[_PageMetadata] = None


def page(answer: object, *, now: datetime, on_notice: OnNotice) -> ModelPage:
    """Parse a model with its versions from `GET /models/{id}` or an item of a list. Raises: BadAnswer."""
    reading = Reading(now, on_notice)
    return read(_Model, answer, reading, "a model").translated(reading)


def version(answer: object, *, now: datetime, on_notice: OnNotice) -> ModelVersion:
    """Parse a response to `GET /model-versions/{id}` or `by-hash`: a version with a short summary of its model.

    Raises: BadAnswer: it is not a version, or has no model id.
    """
    reading = Reading(now, on_notice)
    return read(_Version, answer, reading, "a model version").translated_alone(reading)


def versions(answer: object, *, now: datetime, on_notice: OnNotice) -> list[ModelVersion]:
    """Parse the versions in a response to `POST /model-versions/by-hash`; unreadable ones are skipped and reported.

    Raises: BadAnswer: the response is not an array.
    """
    if not isinstance(answer, list):
        raise BadAnswer("CivitAI's response is not a list of versions")
    found = []
    for entry in answer:
        if entry is None:
            continue
        try:
            found.append(version(entry, now=now, on_notice=on_notice))
        except BadAnswer as error:
            on_notice(f"{error.message}; left out")
    return found


def search_page(answer: object, *, now: datetime, on_notice: OnNotice) -> SearchPage:
    """Parse a page of `GET /models`; unreadable models are skipped and reported. Raises: BadAnswer."""
    reading = Reading(now, on_notice)
    got = read(_ModelList, answer, reading, "a page of models")
    metadata = got.metadata or _PageMetadata.model_construct()
    received = got.received["items"]
    if not isinstance(received, list):
        raise BadAnswer("CivitAI's response is not a page of models: `items` is not a list")
    return SearchPage(
        items=tuple(item.translated(reading) for item in got.items),
        next_cursor=metadata.next_cursor or None,
        next_page=metadata.next_page or None,
        received_count=len(received),
    )
