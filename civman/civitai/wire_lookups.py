"""Parse accounts, published images, tensor lists and other lookups from CivitAI's JSON into values of `responses`.

Source: CivitAI's public REST API, version 1; responses of 2024 to 2026-08.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from civman.civitai import wire_values
from civman.civitai.responses import Account, Glance, Picture
from civman.civitai.wire_models import ImageShape
from civman.civitai.wire_reading import Each, Id, Maybe, Moment, Reading, Wire, read
from civman.civitai.wire_values import OnNotice
from civman.domain.catalog import FileId, ModelFile, ModelId, VersionId
from civman.domain.digests import Sha256, sha256_from
from civman.errors import BadAnswer


class _Image(ImageShape):
    browsing_level: Maybe[int] = None
    username: Maybe[str] = None
    base_model: Maybe[str] = None
    model_version_ids: Each[Id] = Field(default_factory=list)
    meta: Maybe[dict[str, Any]] = None


class _ImageList(Wire):
    model_config = ConfigDict(title="page")
    items: Each[_Image]


class _Account(Wire):
    model_config = ConfigDict(title="account")
    id: Id
    username: Maybe[str] = None
    tier: Maybe[str] = None
    status: Maybe[str] = None
    is_member: Maybe[bool] = None


class _Mini(Wire):
    model_config = ConfigDict(title="file")
    air: Maybe[str] = None
    version_name: Maybe[str] = None
    model_name: Maybe[str] = None
    base_model: Maybe[str] = None
    availability: Maybe[str] = None
    published_at: Maybe[Moment] = None
    early_access_ends_at: Maybe[Moment] = None
    size: Maybe[Annotated[float, Field(ge=0)]] = None
    file_type: Maybe[str] = None
    file_name: str
    hashes: Maybe[dict[str, Any]] = None
    download_urls: Each[str] = Field(default_factory=list)
    format: Maybe[str] = None


class _Tensor(Wire):
    model_config = ConfigDict(title="tensor")
    name: str
    dtype: str
    shape: list[Annotated[int, Field(strict=True, ge=0)]]


class _Tensors(Wire):
    model_config = ConfigDict(title="tensor list")
    tensors: list[_Tensor]


class _Identity(Wire):
    model_config = ConfigDict(title="identity")
    model_version_id: Id
    model_id: Id
    hash: str


class _IdentityList(Wire):
    items: Each[_Identity]


def pictures(answer: object, *, now: datetime, on_notice: OnNotice) -> tuple[Picture, ...]:
    """Parse the images in a response to `GET /images`. Raises: BadAnswer: the response has an unexpected structure."""
    got = read(_ImageList, answer, Reading(now, on_notice), "a page of pictures")
    return tuple(
        Picture(
            id=image.id,
            url=image.url,
            width=image.width,
            height=image.height,
            nsfw_level=image.browsing_level or wire_values.image_level(image.nsfw_level, image.nsfw),
            media=image.media,
            username=image.username,
            base_model=image.base_model,
            version_ids=tuple(VersionId(number) for number in image.model_version_ids),
            meta=_unwrapped(image.meta),
        )
        for image in got.items
        if image.id is not None
    )


def _unwrapped(meta: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the generation data, without the `{"id": …, "meta": {…}}` that some endpoints wrap it in."""
    if meta is not None and set(meta) <= {"id", "meta"} and "meta" in meta:
        inner = meta["meta"]
        return inner if isinstance(inner, dict) else None
    return meta


def account(answer: object, *, now: datetime, on_notice: OnNotice) -> Account:
    """Parse the account in a response to `GET /me`. Raises: BadAnswer."""
    got = read(_Account, answer, Reading(now, on_notice), "an account")
    return Account(got.id, got.username or "", got.tier, bool(got.is_member), got.status)


def glance(answer: object, file_id: FileId | None, *, now: datetime, on_notice: OnNotice) -> Glance:
    """Parse the file in a response to `GET /model-versions/mini/{id}`, which contains no ids. Raises: BadAnswer."""
    got = read(_Mini, answer, Reading(now, on_notice), "a file")
    file = ModelFile(
        id=file_id,
        name=got.file_name,
        type=got.file_type or "",
        size_bytes=wire_values.size_bytes(got.size),
        hashes=wire_values.hashes(got.hashes or {}, lambda said: on_notice(f"file `{got.file_name}`: {said}")),
        format=got.format,
        download_url=next(iter(got.download_urls), None),
        raw=got.raw(),
    )
    gate = wire_values.gate(
        paid_access=None,
        ends=(got.early_access_ends_at,),
        days_after_publication=None,
        published_at=got.published_at,
        availability=got.availability,
        now=now,
    )
    return Glance(file, got.air, got.model_name or "", got.version_name or "", got.base_model, got.published_at, gate)


def tensors(answer: object, *, now: datetime, on_notice: OnNotice) -> list[tuple[str, str, tuple[int, ...]]]:
    """Parse each tensor's name, dtype and shape from `GET /model-files/{id}/tensor-metadata`.

    Raises: BadAnswer: an entry cannot be parsed. It is not skipped, because an incomplete list would describe a
    different file.
    """
    got = read(_Tensors, answer, Reading(now, on_notice), "a list of tensors")
    return [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in got.tensors]


def identities(answer: object, *, now: datetime, on_notice: OnNotice) -> list[tuple[Sha256, ModelId, VersionId]]:
    """Parse the digests, model ids and version ids in a response to `POST /model-versions/by-hash/ids`.

    Raises: BadAnswer: the response is not an array.
    """
    if not isinstance(answer, list):
        raise BadAnswer("CivitAI's response is not a list of versions by hash")
    got = read(_IdentityList, {"items": answer}, Reading(now, on_notice), "a list of versions by hash")
    found = []
    for entry in got.items:
        try:
            found.append((sha256_from(entry.hash), ModelId(entry.model_id), VersionId(entry.model_version_id)))
        except ValueError:
            on_notice(f"CivitAI listed version {entry.model_version_id} with an invalid SHA-256; the entry was skipped")
    return found


def enums(answer: object) -> dict[str, tuple[str, ...]]:
    """Parse the allowed values of `GET /enums`, by name. Raises: BadAnswer."""
    try:
        return TypeAdapter(dict[str, tuple[str, ...]]).validate_python(answer)
    except ValidationError:
        raise BadAnswer("CivitAI's response is not a table of valid values") from None
