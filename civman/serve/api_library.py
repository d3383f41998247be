"""The API's routes for stored models and for the checks of `civman doctor`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.domain.catalog import Asset, Licence, ModelVersion
from civman.domain.digests import Sha256
from civman.domain.html_text import plain_text
from civman.domain.json_values import plain
from civman.domain.licence import Part, Terms, terms_of
from civman.domain.search_query import model_type_named
from civman.errors import NotFound, UsageError
from civman.index import AssetFilter, Sort
from civman.index.read_pictures import KeptPicture, PictureFilter
from civman.library import Library
from civman.manage.listed_values import asset_values, picture_value
from civman.serve.render_requests import require_name
from civman.serve.serving import serving
from civman.serve.thumbnails import LARGE, SIZE, key_of, thumbnail

MOST_ROWS = 500
_KEEP = {"cache-control": "private, max-age=31536000, immutable"}


def number_of(request: Request, name: str, default: int, most: int) -> int:
    """Return a query parameter as an integer from 0 to `most`, or `default` if it is missing. Raises: UsageError."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text) or int(text) > most:
        raise UsageError(f"`{name}` must be a number from 0 to {most}")
    return int(text)


def is_set(request: Request, name: str) -> bool:
    """Whether a query parameter is 1, true or yes."""
    return request.query_params.get(name, "").lower() in ("1", "true", "yes")


def size_of(request: Request) -> int:
    """Return the longest side in pixels of the requested thumbnail."""
    return LARGE if is_set(request, "large") else SIZE


def without_paths(value: dict[str, Any]) -> dict[str, Any]:
    """Remove the file's path from a JSON object: clients cannot open files, so they do not need it."""
    return {key: item for key, item in value.items() if key != "path"}


def picture_row(picture: KeptPicture) -> dict[str, Any]:
    """Convert a recorded image to a JSON object, with the file's name in place of its path."""
    return {**without_paths(plain(picture_value(picture))), "name": Path(picture.path).name}


async def models(request: Request) -> Response:
    """List stored model files."""
    query = request.query_params
    words = tuple(query.get("q", "").split())
    sort = query.get("sort", "")
    if sort and sort not in set(Sort):
        raise UsageError(f"unknown sort order: `{sort}`", hint=f"use one of: {', '.join(Sort)}")
    checkpoint = query.get("fits")
    limit, offset = number_of(request, "limit", 100, MOST_ROWS), number_of(request, "offset", 0, 10**9)

    def find(library: Library) -> Any:
        if ref := query.get("ref"):
            named = library.files.find(require_name(ref))
            return {"total": len(named), "offset": 0, "models": model_values(library, named), "corrections": {}}
        fits = library.files.fits(require_name(checkpoint)) if checkpoint else None
        wanted = AssetFilter(
            types=tuple(model_type_named(name) for name in query.getlist("type")),
            base_models=tuple(query.getlist("base")), architectures=tuple(query.getlist("architecture")), words=words,
            tags=tuple(query.getlist("tag")), creator=query.get("creator"), fits=fits,
            is_favourite=True if is_set(request, "favourite") else None,
            min_rating=number_of(request, "rating", 0, 5) or None,
            is_commercial=is_set(request, "commercial"), is_safe=is_set(request, "safe"),
        )  # fmt: skip
        assets = library.list(wanted, sort=Sort(sort) if sort else None, limit=limit, offset=offset)
        return {
            "total": library.files.count(wanted), "offset": offset, "models": model_values(library, assets),
            "corrections": library.files.corrections(words),
        }  # fmt: skip

    return JSONResponse(await serving(request).library.run(find))


def model_values(library: Library, assets: Sequence[Asset]) -> list[dict[str, Any]]:
    """Convert stored files to JSON objects, with facts about their preview images.

    `has_preview`: whether there is a preview image. `preview_level`: the highest content rating that it may have, as a
    bit of `Model.nsfw_level`; 0 if the rating is unknown.
    """
    versions = {asset.version_id for asset in assets if asset.version_id is not None}
    levels = library.context.index.preview_levels(versions) if versions else {}
    values = []
    for asset, value in zip(assets, asset_values(assets, library.files.absences(assets)), strict=True):
        level = levels.get(asset.version_id, 0) if asset.version_id is not None else 0
        has_preview = library.context.store.preview(asset.blob.sha256) is not None
        shown = {**value, "has_preview": has_preview, "preview_level": level}
        values.append(without_paths(plain(shown)))
    return values


async def model(request: Request) -> Response:
    """Return everything that is known about one stored file: details, licence, and images made with it."""
    sha256 = digest_of(request)

    def find(library: Library) -> Any:
        (asset,) = library.files.find(f"sha256:{sha256}")[:1]
        version = library.context.index.version(asset.version_id) if asset.version_id else None
        made = library.pictures.list(PictureFilter(digests=(sha256,)), limit=24)
        others = library.files.of_model(asset.model_id) if asset.model_id else []
        (held,) = model_values(library, [asset])
        return {
            "model": held,
            "others": model_values(library, [each for each in others if each.blob.sha256 != sha256]),
            "description": plain_text(version.model.description if version is not None else None),
            "version_description": plain_text(version.description if version is not None else None),
            "about": plain(version.model) if version is not None else None, "version": plain(version),
            "licence": licence_value(_terms(asset, version)),
            "pictures": [picture_row(each) for each in made],
        }  # fmt: skip

    return JSONResponse(await serving(request).library.run(find))


def _terms(asset: Asset, version: ModelVersion | None) -> Terms:
    """Return the licence terms of a file that is or was stored."""
    if version is None:
        return terms_of([Part(asset.name, Licence(), asset.base_model)])
    return terms_of([Part(version.model.name, version.model.licence, asset.base_model, version.model.creator)])


def licence_value(terms: Terms) -> dict[str, Any]:
    """Convert licence terms to JSON; `words` has the terms as sentences, and `reasons` the reasons for them."""
    value = plain(terms)
    assert isinstance(value, dict)
    return {**value, "words": list(terms.words), "reasons": list(terms.reasons)}


def digest_of(request: Request) -> Sha256:
    """Read the SHA-256 in the request's URL. Raises: UsageError."""
    text = request.path_params["sha256"]
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise UsageError("identify a model by its SHA-256: 64 hexadecimal digits in lower case")
    return Sha256(text)


async def model_preview(request: Request) -> Response:
    """Return the thumbnail of a stored file's preview image; with `large=1`, a larger one."""
    sha256, size = digest_of(request), size_of(request)

    def find(library: Library) -> bytes | None:
        source = library.context.store.preview(sha256)
        return thumbnail(library.context.root, source, key_of(source), size) if source is not None else None

    return image_answer(await serving(request).library.run(find), "image/webp", "the model has no preview image")


def image_answer(data: bytes | None, kind: str, otherwise: str) -> Response:
    """Send an image that browsers may cache, since the contents of its URL never change.

    Raises: NotFound: `data` is None; `otherwise` is the message.
    """
    if data is None:
        raise NotFound(otherwise)
    return Response(data, media_type=kind, headers=_KEEP)


async def doctor(request: Request) -> Response:
    """Check the installation, the library and the settings."""
    found = await serving(request).site.run(lambda library: [plain(each) for each in library.maintenance.doctor()])
    return JSONResponse({"findings": found})


ROUTES = [
    Route("/api/v1/models", models), Route("/api/v1/models/{sha256}", model),
    Route("/api/v1/models/{sha256}/preview", model_preview), Route("/api/v1/doctor", doctor),
]  # fmt: skip
