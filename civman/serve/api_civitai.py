"""The API's routes for CivitAI: its search, its models, and the images that it shows for them."""

import asyncio
import hashlib
from io import BytesIO
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.civitai.responses import Picture
from civman.domain.catalog import ModelVersion, Preview
from civman.domain.json_values import plain
from civman.domain.search_query import SearchQuery, base_model_named, model_type_named, period_named, sort_named
from civman.errors import NotFound
from civman.library import Library
from civman.manage.listed_values import asset_values
from civman.manage.search_fits import label_of, support_of
from civman.planning.redraw import redraw
from civman.serve.api_library import image_answer, is_set, number_of, without_paths
from civman.serve.render_requests import require_name
from civman.serve.serving import Serving, serving
from civman.serve.thumbnails import kept_thumbnail, thumbnail

_MOST_PREVIEWS = 20_000


def _version(parts: Serving, version: ModelVersion) -> dict[str, Any]:
    """A version as JSON; each of its still images has a `thumb`, the address of a thumbnail of it on this server."""
    value: dict[str, Any] = plain(version)
    for shown, preview in zip(value["previews"], version.previews, strict=True):
        shown["thumb"] = _thumb(parts, preview)
    return value


def _thumb(parts: Serving, preview: Preview) -> str | None:
    """The address of a thumbnail of a still image on CivitAI, which this server then shows; None for videos."""
    if preview.media != "image":
        return None
    key = hashlib.sha256(preview.url.encode()).hexdigest()
    parts.previews.pop(key, None)
    parts.previews[key] = preview
    while len(parts.previews) > _MOST_PREVIEWS:
        del parts.previews[next(iter(parts.previews))]
    return f"/api/v1/civitai/previews/{key}"


async def search(request: Request) -> Response:
    """Search CivitAI."""
    query, parts = request.query_params, serving(request)
    limit = number_of(request, "limit", 20, 100)
    wanted = SearchQuery(
        query.get("q", ""), types=tuple(model_type_named(name) for name in query.getlist("type")),
        base_models=tuple(base_model_named(name) for name in query.getlist("base")), tag=query.get("tag"),
        username=query.get("creator"), sort=sort_named(query["sort"]) if query.get("sort") else None,
        period=period_named(query.get("period", "all-time")), nsfw=is_set(request, "nsfw"), limit=limit,
    )  # fmt: skip
    checkpoint, against = query.get("fits"), query.get("against") or query.get("fits")

    def find(library: Library) -> Any:
        pages = library.search(wanted, fits=require_name(checkpoint) if checkpoint else None)
        label = label_of(library.inspect(require_name(against))) if against else None
        found = []
        held = library.files.model_ids()
        for page in pages:
            versions = [_version(parts, each) for each in page.versions]
            for shown, version in zip(versions, page.versions, strict=True):
                shown["support"] = support_of(version, label, page.model.type).value if label else None
            found.append({"model": plain(page.model), "versions": versions, "is_here": page.model.id in held})
            if len(found) >= limit:
                break
        return {"models": found}

    return JSONResponse(await parts.site.run(find))


async def site_model(request: Request) -> Response:
    """What CivitAI says about a model or version."""
    parts = serving(request)
    ref = require_name(request.query_params.get("ref", ""))

    def find(library: Library) -> Any:
        shown = library.show(ref)
        resolved = shown.resolved
        held = asset_values(shown.assets, library.files.absences(shown.assets))
        return {
            "model": plain(resolved.page.model) if resolved else None,
            "version": _version(parts, resolved.version) if resolved else None,
            "versions": [_version(parts, each) for each in resolved.page.versions] if resolved else [],
            "held": [without_paths(plain(each)) for each in held],
        }  # fmt: skip

    return JSONResponse(await parts.site.run(find))


async def images(request: Request) -> Response:
    """Images on CivitAI that were made with a version, with their settings and whether civman can draw them again."""
    parts = serving(request)
    version, limit = number_of(request, "version", 0, 2**31 - 1), number_of(request, "limit", 20, 100)

    def find(library: Library) -> Any:
        return {"images": [_image(parts, each) for each in library.pictures.examples(version, limit=limit)]}

    return JSONResponse(await parts.site.run(find))


def _image(parts: Serving, image: Picture) -> dict[str, Any]:
    thumb = _thumb(parts, Preview(image.url, image.nsfw_level, image.width, image.height, image.media))
    again = redraw({"id": image.id, "meta": dict(image.meta), "baseModel": image.base_model}) if image.meta else None
    value = plain(image)
    assert isinstance(value, dict)
    drawable = again.drawable.value if again else None
    return {**value, "thumb": thumb, "redraw": {"drawable": drawable, "reasons": again.reasons if again else []}}


async def preview_thumb(request: Request) -> Response:
    """The thumbnail of an image that CivitAI shows; only for images in an answer of this server."""
    parts, key = serving(request), request.path_params["key"]
    shown = parts.previews.get(key)
    if shown is None:
        raise NotFound("this image was in no answer of the server", hint="search again")
    root = parts.settings.library

    def fetch() -> bytes | None:
        found = kept_thumbnail(root, key)
        if found is not None:
            return found
        with Library(parts.settings) as library:
            return thumbnail(root, BytesIO(library.downloads.preview_bytes(shown)), key)

    loop = asyncio.get_running_loop()
    return image_answer(await loop.run_in_executor(parts.images, fetch), "image/webp", "the image cannot be shown")


ROUTES = [
    Route("/api/v1/civitai/search", search), Route("/api/v1/civitai/model", site_model),
    Route("/api/v1/civitai/images", images), Route("/api/v1/civitai/previews/{key}", preview_thumb),
]  # fmt: skip
