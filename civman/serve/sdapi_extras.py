"""AUTOMATIC1111's HTTP API: enlarging images, with the library's upscaler models or with a resampling filter."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.errors import CannotRender, UsageError
from civman.serve.jobs import JobKind
from civman.serve.render_requests import image_bytes, require_enlarged, require_name, upload_of
from civman.serve.sdapi_render import finished
from civman.serve.sdapi_requests import number
from civman.serve.serving import Serving, client_of, json_body, serving

_PLAIN = ("none", "lanczos", "nearest")
_MOST_IMAGES = 8
_OTHERS = ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility")


async def extra_single_image(request: Request) -> Response:
    """Enlarge an image."""
    body = await json_body(request)
    (made,) = await _enlarged(request, body, [str(body.get("image") or "")])
    return JSONResponse({"html_info": "", "image": made})


async def extra_batch_images(request: Request) -> Response:
    """Enlarge several images."""
    body = await json_body(request)
    given = body.get("imageList")
    if not isinstance(given, list) or len(given) > _MOST_IMAGES:
        raise UsageError(f"`imageList` must be a list of at most {_MOST_IMAGES} images")
    texts = [str(each.get("data") or "") if isinstance(each, dict) else "" for each in given]
    return JSONResponse({"html_info": "", "images": await _enlarged(request, body, texts) if texts else []})


async def _enlarged(request: Request, body: dict[str, Any], texts: list[str]) -> list[str]:
    """Enlarge images in base64. Raises: UsageError, CannotRender: a second upscaler or a face fix is requested."""
    for name in _OTHERS:
        if number(body.get(name), name, 0.0):
            raise CannotRender(f"civman does not support the field `{name}`")
    upscaler, parts = str(body.get("upscaler_1") or "None"), serving(request)
    if upscaler.lower() in _PLAIN:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(parts.images, lambda: [_filtered(text, upscaler, body) for text in texts])
    return await _by_model(request, parts, require_name(upscaler), body, texts)


async def _by_model(
    request: Request, parts: Serving, upscaler: str, body: dict[str, Any], texts: list[str]
) -> list[str]:
    """Enlarge images in base64 with an upscaler model, with a job for each image."""
    from PIL import Image

    root, made = parts.settings.library, []
    for text in texts:
        path = upload_of(text, root)
        with Image.open(path) as image:
            scale, size = _wanted(body, image.size)
        # `multiple` 8: round the size to multiples of 8, as A1111 does
        payload = {"files": [str(path)], "upscaler": upscaler, "scale": scale, "size": size, "multiple": 8}
        job = parts.jobs.submit(JobKind.UPSCALE, client_of(request), f"upscale with {upscaler}", payload)
        done = await finished(request, job)
        made += [Path(each["path"]).read_bytes() for each in (done.result or {"pictures": []})["pictures"]]
    return [base64.b64encode(data).decode() for data in made]


def _wanted(body: dict[str, Any], size: tuple[int, int]) -> tuple[float | None, str | None]:
    """Return the factor by which to enlarge an image of `size`, or the size "WxH" to enlarge and crop it to.

    Raises: UsageError.
    """
    if number(body.get("resize_mode"), "resize_mode", 0, whole=True) != 1:
        return number(body.get("upscaling_resize"), "upscaling_resize", 2.0), None
    sides = [number(body.get(f"upscaling_resize_{side}"), f"upscaling_resize_{side}", 512, whole=True) for side in "wh"]
    if min(sides) < 1:
        raise UsageError(f"an image cannot be enlarged to {sides[0]}x{sides[1]}")
    if body.get("upscaling_crop", True):
        return None, f"{sides[0]}x{sides[1]}"
    return max(wanted / side for wanted, side in zip(sides, size, strict=True)), None


def _filtered(text: str, upscaler: str, body: dict[str, Any]) -> str:
    """Enlarge an image in base64 with the filter Nearest, or with Lanczos for any other name, including "None"."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image_bytes(text))) as opened:
        image = opened.convert("RGB")
    scale, size = _wanted(body, image.size)
    way = Image.Resampling.NEAREST if upscaler.lower() == "nearest" else Image.Resampling.LANCZOS
    if size is not None:
        width, height = map(int, size.split("x"))
    else:
        width, height = (round(side * (scale or 1)) for side in image.size)
    if width < 1 or height < 1:
        raise UsageError(f"an image cannot be enlarged to {width}x{height}")
    require_enlarged((width, height))
    made = ImageOps.fit(image, (width, height), way) if size is not None else image.resize((width, height), way)
    out = io.BytesIO()
    made.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


ROUTES = [
    Route("/sdapi/v1/extra-single-image", extra_single_image, methods=["POST"]),
    Route("/sdapi/v1/extra-batch-images", extra_batch_images, methods=["POST"]),
]
