"""The API's routes for CivitAI: its search, its models, and the images that it shows for them."""

import asyncio
import hashlib
import json
import re
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.civitai.responses import Picture
from civman.domain.access import Permits, gate_of, gate_words
from civman.domain.base_models import Support
from civman.domain.catalog import ModelFile, ModelType, ModelVersion, Preview
from civman.domain.file_choice import choose_file, describe, is_pickle, version_ref
from civman.domain.html_text import plain_text
from civman.domain.json_values import plain
from civman.domain.licence import Part, licence_words, terms_of
from civman.domain.printed_refs import file_ref
from civman.domain.search_query import (
    ModelPage,
    Period,
    SearchQuery,
    Sort,
    base_model_named,
    known_base_models,
    model_type_named,
    period_named,
    sort_named,
)
from civman.errors import NotFound, UsageError
from civman.library import Library
from civman.manage.search_fits import label_of, support_of
from civman.planning.redraw import redraw
from civman.serve.api_library import image_answer, is_set, licence_value, model_values, number_of, size_of
from civman.serve.api_pictures import redraw_value
from civman.serve.render_requests import conditions_of, require_name
from civman.serve.serving import Serving, serving
from civman.serve.thumbnails import kept_thumbnail, thumbnail

_MOST_PREVIEWS = 20_000
_PAGE = 40


def _label(library: Library, checkpoint: str | None) -> str | None:
    """Return the base model label of a checkpoint; None if `checkpoint` is not given."""
    return label_of(library.inspect(require_name(checkpoint))) if checkpoint else None


def _version(parts: Serving, library: Library, version: ModelVersion, label: str | None) -> dict[str, Any]:
    """Convert a model version to JSON: adds its ref, its access restrictions and its compatibility with a checkpoint.

    `label` is the checkpoint's base model label, from which compatibility is judged. Each still image gets a `thumb`,
    the URL of its thumbnail on this server.
    """
    value: dict[str, Any] = plain(version)
    del value["model"]
    value["ref"] = version_ref(version)
    value["access"] = _access(library, version)
    value["support"] = support_of(version, label, version.model.type) if label else None
    value["default_file"] = choose_file(version).id if version.files else None
    for shown, preview in zip(value["previews"], version.previews, strict=True):
        shown["thumb"] = _thumb(parts, preview)
        number = re.search(r"/(\d{1,10})(?:\.\w+)?$", urlsplit(preview.url).path)
        shown["id"] = int(number[1]) if number else None
    return value


def _thumb(parts: Serving, preview: Preview) -> str | None:
    """Return the URL of this server's thumbnail of an image on CivitAI; None for videos."""
    if preview.media != "image":
        return None
    key = hashlib.sha256(preview.url.encode()).hexdigest()
    parts.previews.pop(key, None)
    parts.previews[key] = preview
    while len(parts.previews) > _MOST_PREVIEWS:
        del parts.previews[next(iter(parts.previews))]
    return f"/api/v1/civitai/previews/{key}"


def _access(library: Library, version: ModelVersion) -> str:
    now = library.context.clock()
    if version.usage_control not in (None, "Download"):
        return "cannot be downloaded"
    return gate_words(version, now) if gate_of(version, now) is not None else ""


async def search(request: Request) -> Response:
    """Search CivitAI; a request with a higher `offset` continues the same search.

    `against` names a checkpoint: the response then includes how well each version fits it.
    """
    query, parts = request.query_params, serving(request)
    limit, offset = number_of(request, "limit", 20, 100), number_of(request, "offset", 0, 10_000)
    wanted = SearchQuery(
        query.get("q", ""), types=tuple(model_type_named(name) for name in query.getlist("type")),
        base_models=tuple(base_model_named(name) for name in query.getlist("base")), tag=query.get("tag"),
        username=query.get("creator"), sort=sort_named(query["sort"]) if query.get("sort") else None,
        period=period_named(query.get("period", "all-time")), nsfw=is_set(request, "nsfw"), limit=None,
        early_access=is_set(request, "early_access"), page_size=max(1, min(_PAGE, limit)),
    )  # fmt: skip
    fits, checkpoint = query.get("fits"), query.get("against") or query.get("fits")
    key = json.dumps([plain(wanted), fits])

    def find(library: Library) -> Any:
        label = _label(library, checkpoint)
        found, more = parts.searches.results(
            key, lambda: library.search(wanted, fits=require_name(fits) if fits else None), offset, limit
        )
        held = library.files.model_ids()
        return {
            "models": [_found(parts, library, page, label, is_here=page.model.id in held) for page in found],
            "offset": offset, "more": more,
        }  # fmt: skip

    return JSONResponse(await parts.site.run(find))


def _found(parts: Serving, library: Library, page: ModelPage, label: str | None, *, is_here: bool) -> dict[str, Any]:
    chosen = _chosen(library, page, label)
    model = plain(page.model)
    del model["description"]
    return {
        "model": model, "versions": [_version(parts, library, each, label) for each in page.versions],
        "chosen": chosen.id if chosen else None, "is_here": is_here,
    }  # fmt: skip


def _chosen(library: Library, page: ModelPage, label: str | None) -> ModelVersion | None:
    """Choose the version to show: the first that fits the checkpoint by its label, or the default one if none does."""
    default = page.default_version(library.context.clock())
    if label is None or default is None:
        return default
    for level in (Support.FULL, Support.PARTIAL):
        versions = [default, *page.versions]
        fitting = (each for each in versions if support_of(each, label, page.model.type) is level)
        if (found := next(fitting, None)) is not None:
            return found
    return default


async def filters(_: Request) -> Response:
    """List the values that CivitAI's search accepts for its filters."""
    return JSONResponse({
        "type": [kind.value for kind in ModelType], "base": list(known_base_models()),
        "sort": [each.value for each in Sort], "period": [each.value for each in Period],
    })  # fmt: skip


async def site_model(request: Request) -> Response:
    """Describe a model or version on CivitAI: versions, files, licence, images, and which of its files are stored."""
    parts = serving(request)
    ref, checkpoint = require_name(request.query_params.get("ref", "")), request.query_params.get("against")

    def find(library: Library) -> Any:
        label = _label(library, checkpoint)
        shown = library.show(ref)
        resolved = shown.resolved
        versions = resolved.page.versions if resolved else ()
        model = resolved.page.model if resolved else shown.model
        held = model_values(library, shown.assets)
        return {
            "model": plain(model), "description": plain_text(model.description if model else None),
            "licence_words": licence_words(model.licence) if model else "",
            "version": _version(parts, library, resolved.version, label) if resolved else None,
            "versions": [_whole(parts, library, each, label) for each in versions],
            "held": held, "is_saved_copy": bool(resolved and resolved.is_saved_copy),
        }  # fmt: skip

    return JSONResponse(await parts.site.run(find))


def _whole(parts: Serving, library: Library, version: ModelVersion, label: str | None) -> dict[str, Any]:
    """Convert a version to JSON, with its description as text, its licence, and the warnings about each file."""
    value = _version(parts, library, version, label)
    value["description"] = plain_text(version.description)
    model = version.model
    value["licence"] = licence_value(terms_of([Part(model.name, model.licence, version.base_model, model.creator)]))
    for shown, file in zip(value["files"], version.files, strict=True):
        shown.update(_file(version, file))
    return value


def _file(version: ModelVersion, file: ModelFile) -> dict[str, Any]:
    scans = sorted({scan.value for scan in (file.pickle_scan, file.virus_scan)} & {"Danger", "Error", "Pending"})
    warnings = [f"scan: {', '.join(scans)}"] * bool(scans) + ["pickle"] * is_pickle(file)
    return {"ref": file_ref(version, file), "words": describe(file), "warnings": warnings}


async def plan_download(request: Request) -> Response:
    """Describe a download as `civman download --dry-run` does: whether the file is stored, its size, and notices."""
    query, parts = request.query_params, serving(request)
    ref, file = require_name(query.get("ref", "")), query.get("file")

    def find(library: Library) -> Any:
        from civman.download.job import Job

        planned = library.downloads.plan_or_find(ref, file=file, permits=Permits())
        if isinstance(planned, Job):
            sha256 = planned.file.hashes.sha256
            return {
                "ref": file_ref(planned.version, planned.file), "name": planned.name, "is_here": planned.is_stored,
                "size_bytes": planned.file.size_bytes, "sha256": sha256, "notices": list(planned.notices),
            }  # fmt: skip
        asset = planned.asset
        if asset is None:
            raise planned.error or NotFound(f"no file was found for `{ref}`")
        return {
            "ref": asset.ref, "name": asset.name, "is_here": True, "size_bytes": asset.blob.size_bytes,
            "sha256": asset.blob.sha256, "notices": [],
        }  # fmt: skip

    return JSONResponse(await parts.site.run(find))


async def site_image(request: Request) -> Response:
    """Return the settings that CivitAI shows for an image, and the model versions named in them."""
    number = int(request.path_params["number"])
    if not 0 < number < 2**31:
        raise UsageError("the id of an image on CivitAI must be a number from 1 to 2147483647")

    def find(library: Library) -> Any:
        found = library.context.client.image(number)
        return {
            "id": found.id, "width": found.width, "height": found.height, "nsfw_level": found.nsfw_level,
            "username": found.username, "base_model": found.base_model, "meta": plain(found.meta),
            "version_ids": plain(found.version_ids),
        }  # fmt: skip

    return JSONResponse(await serving(request).site.run(find))


def _image_number(request: Request) -> int:
    number = int(request.path_params["number"])
    if not 0 < number < 2**31:
        raise UsageError("the id of an image on CivitAI must be a number from 1 to 2147483647")
    return number


async def redraw_image(request: Request) -> Response:
    """Plan how to render an image on CivitAI again, from the settings that CivitAI shows; nothing is downloaded."""
    number, parts = _image_number(request), serving(request)
    conditions = conditions_of({}, await parts.device())

    def plan(library: Library) -> Any:
        url = f"https://civitai.com/images/{number}"
        found = library.pictures.fetch_image(url, with_original=False)
        assert found is not None, "`fetch_image` returns None only if its argument is not the URL of an image"
        return redraw_value(library, None, lambda: library.pictures.plan_settings(found, conditions))

    return JSONResponse(await parts.site.run(plan))


async def images(request: Request) -> Response:
    """List images on CivitAI made with a model version, each with its settings and whether civman can render it."""
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
    """Return the thumbnail of an image on CivitAI that an earlier response listed; with `large=1`, a larger one."""
    parts, key, size = serving(request), request.path_params["key"], size_of(request)
    shown = parts.previews.get(key)
    if shown is None:
        raise NotFound(
            "no recent response of this server listed this image",
            hint="repeat the search, then request the image again",
        )
    root = parts.settings.library

    def fetch() -> bytes | None:
        found = kept_thumbnail(root, key, size)
        if found is not None:
            return found
        with Library(parts.settings) as library:
            return thumbnail(root, BytesIO(library.downloads.preview_bytes(shown)), key, size)

    loop = asyncio.get_running_loop()
    return image_answer(await loop.run_in_executor(parts.images, fetch), "image/webp", "the image cannot be shown")


ROUTES = [
    Route("/api/v1/civitai/search", search), Route("/api/v1/civitai/filters", filters),
    Route("/api/v1/civitai/model", site_model), Route("/api/v1/civitai/plan", plan_download),
    Route("/api/v1/civitai/images", images), Route("/api/v1/civitai/images/{number:int}", site_image),
    Route("/api/v1/civitai/images/{number:int}/redraw", redraw_image),
    Route("/api/v1/civitai/previews/{key}", preview_thumb),
]  # fmt: skip
