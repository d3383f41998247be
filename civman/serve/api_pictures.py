"""The API's routes for images: listing and comparing images made with this library, and reading uploaded ones."""

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from civman.domain.digests import Sha256
from civman.domain.file_names import safe_name
from civman.domain.json_values import error_value, plain
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import CivmanError, NotFound, UsageError
from civman.index.read_pictures import KeptPicture, PictureFilter
from civman.library import Library
from civman.pictures.infotext import is_infotext
from civman.planning.plan import Conditions
from civman.planning.plan_types import Planned
from civman.planning.vary import as_request
from civman.rendering.picture_report import PictureReport
from civman.serve.api_library import MOST_ROWS, image_answer, number_of, picture_row, size_of, without_paths
from civman.serve.api_plans import planned_value
from civman.serve.render_requests import conditions_of, require_image
from civman.serve.serving import serving
from civman.serve.thumbnails import thumbnail


async def pictures(request: Request) -> Response:
    """List images that were made with this library, newest first."""
    limit, offset = number_of(request, "limit", 100, MOST_ROWS), number_of(request, "offset", 0, 10**9)
    query = request.query_params
    digests = tuple(Sha256(each) for each in query.getlist("model"))
    wanted = PictureFilter(tuple(query.get("q", "").split()), digests=digests, recipe=query.get("recipe", ""))

    def find(library: Library) -> Any:
        found = library.pictures.list(wanted, limit=limit, offset=offset)
        return {
            "total": library.pictures.count(wanted), "offset": offset,
            "pictures": [picture_row(each) for each in found],
        }  # fmt: skip

    return JSONResponse(await serving(request).library.run(find))


def _kept(library: Library, number: int) -> KeptPicture:
    found = library.pictures.list(PictureFilter(number=number), limit=1)
    if not found:
        raise NotFound(f"the library has no image number {number}")
    return found[0]


async def picture(request: Request) -> Response:
    """Return one image with its recipe."""
    number = int(request.path_params["number"])

    def find(library: Library) -> Any:
        kept = _kept(library, number)
        record = plain(kept.record)
        return {**picture_row(kept), "recipe": plain(kept.record.recipe), "environment": record["environment"],
                "notes": record.get("notes", [])}  # fmt: skip

    return JSONResponse(await serving(request).library.run(find))


async def picture_file(request: Request) -> Response:
    """Send the file of an image."""
    number = int(request.path_params["number"])
    kept = await serving(request).library.run(lambda library: _kept(library, number))
    suffix = Path(kept.path).suffix.lower()
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
    if not kept.is_here or suffix not in kinds:
        raise NotFound(f"the file of image {number} no longer exists")
    return FileResponse(kept.path, media_type=kinds[suffix])


async def picture_thumb(request: Request) -> Response:
    """Return the thumbnail of an image; with `large=1`, a larger one."""
    number, size = int(request.path_params["number"]), size_of(request)

    def find(library: Library) -> bytes | None:
        kept = _kept(library, number)
        return thumbnail(library.context.root, Path(kept.path), kept.record.pixel_sha256, size)

    return image_answer(await serving(request).library.run(find), "image/webp", "the image's file no longer exists")


async def read_picture(request: Request) -> Response:
    """Read the settings in the uploaded image file and plan how to render it again; the file is not stored."""
    data = await request.body()
    require_image(data)
    name = safe_name(request.query_params.get("name", "image.png")) or "image.png"
    conditions = conditions_of({}, await serving(request).device())

    def read(library: Library) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(data)
            report = library.pictures.describe(path)
            value = plain(report)
        assert isinstance(value, dict)
        recipe = json.loads(report.record.recipe.to_json()) if report.record else None
        return {**without_paths(value), "name": name, "recipe": recipe, "redraw": _redraw(library, report, conditions)}

    return JSONResponse(await serving(request).library.run(read))


def _redraw(library: Library, report: PictureReport, conditions: Conditions) -> dict[str, Any]:
    """Return a job that renders the described image again, with its plan, or the error that prevents it."""
    if report.record is not None:
        pixels = report.record.pixel_sha256
        job = {"kind": "redraw", "recipe": json.loads(report.record.recipe.to_json()), "pixel_sha256": pixels}
    elif report.carried.parameters and is_infotext(report.carried.parameters):
        job = {"kind": "redraw", "settings": report.carried.parameters}
    else:
        return {"job": None, "plan": None, "request": None, "error": None}
    record = report.record
    if record is not None:
        return redraw_value(library, job, lambda: library.plan(record.recipe))
    return redraw_value(
        library, job, lambda: library.pictures.plan_settings(report.carried.parameters or "", conditions)
    )  # fmt: skip


def redraw_value(library: Library, job: dict[str, Any] | None, make_plan: Callable[[], Planned]) -> dict[str, Any]:
    """Return a job that renders an image again, with its plan, or the error that prevents it.

    If `job` is None, a job is made from the plan's recipe. The `request` of the result has the fields for the page's
    form; None if the form cannot express the recipe.
    """
    try:
        planned = make_plan()
        value = planned_value(library, [planned], planned.notices)
    except CivmanError as error:
        return {"job": job, "plan": None, "request": None, "error": {**error_value(error), "facts": {}}}
    drawn = job or {"kind": "redraw", "recipe": json.loads(planned.recipe.to_json())}
    return {"job": drawn, "plan": value, "request": _request(planned), "error": None}


def _request(planned: Planned) -> Any:
    """Return the non-default fields of the plan's render request; None if the request needs an input image."""
    if planned.recipe.start is not None or any(made.mask for made in planned.recipe.details):
        return None
    asked, default = as_request(planned.recipe), RenderRequest("")
    names = [field.name for field in dataclasses.fields(RenderRequest)]
    return plain({name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(default, name)})


async def compare(request: Request) -> Response:
    """Compare the pixels and recipes of two images."""
    numbers = [number_of(request, name, 0, 10**9) for name in ("a", "b")]

    def measure(library: Library) -> Any:
        from civman.pictures.image_text import pixels
        from civman.rendering.compare_pictures import distance, judge

        one, other = (_kept(library, number) for number in numbers)
        is_same = one.record.pixel_sha256 == other.record.pixel_sha256
        apart = distance(pixels(Path(one.path)), pixels(Path(other.path)))
        then, now = plain(one.record.recipe), plain(other.record.recipe)
        return {
            "verdict": judge(is_same, apart).value, "distance": plain(apart),
            "recipe_differences": {
                key: [then.get(key), now.get(key)] for key in {**then, **now} if then.get(key) != now.get(key)
            },
            "files": plain({file.sha256: file for kept in (one, other) for file in kept.record.names}),
        }  # fmt: skip

    return JSONResponse(await serving(request).library.run(measure))


async def difference(request: Request) -> Response:
    """Return an image of the differences between two images: black where equal, white at the largest difference."""
    numbers = [number_of(request, name, 0, 10**9) for name in ("a", "b")]

    def draw(library: Library) -> bytes:
        import numpy as np
        from PIL import Image

        from civman.pictures.image_text import pixels

        one, other = (pixels(Path(_kept(library, number).path)).astype(np.int32) for number in numbers)
        if one.shape != other.shape:
            raise UsageError("the images have different sizes, so there is no image of their difference")
        gap = np.abs(one - other)
        largest = max(1, int(gap.max()))
        out = io.BytesIO()
        Image.fromarray((gap * 255 // largest).astype(np.uint8)).save(out, "PNG", compress_level=1)
        return out.getvalue()

    data = await serving(request).library.run(draw)
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


ROUTES = [
    Route("/api/v1/pictures", pictures), Route("/api/v1/pictures/read", read_picture, methods=["POST"]),
    Route("/api/v1/compare", compare), Route("/api/v1/compare/image", difference),
    Route("/api/v1/pictures/{number:int}", picture), Route("/api/v1/pictures/{number:int}/file", picture_file),
    Route("/api/v1/pictures/{number:int}/thumb", picture_thumb),
]  # fmt: skip
