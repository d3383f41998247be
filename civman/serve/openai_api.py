"""OpenAI's HTTP API for images: generations, edits, and the list of models."""

import base64
import io
import re
import time
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.errors import NotFound, UsageError
from civman.library import Library
from civman.serve.render_requests import require_image, require_name
from civman.serve.request_checks import MOST_BODY_BYTES
from civman.serve.sdapi_render import files_of, rendered
from civman.serve.sdapi_requests import number
from civman.serve.sdapi_state import checkpoint_in_force, checkpoints, chosen
from civman.serve.serving import json_body, serving

_FOREIGN = ("", "dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "default")
"""Model names that OpenAI's clients send by default; here they select the library's default checkpoint."""
_OWN = ("negative_prompt", "steps", "sampler", "schedule", "guidance_scale", "seed", "clip_skip", "loras")
"""Fields of civman's render requests that a client may send in addition to OpenAI's."""


async def generations(request: Request) -> Response:
    """Make images from a prompt. The request and the response follow OpenAI's API."""
    return await _made(request, await json_body(request), {})


async def _made(request: Request, body: dict[str, Any], start: dict[str, Any]) -> Response:
    """Render an OpenAI client's request; `start` contains the render request's fields for an input image, if any."""
    parts = serving(request)
    prompt, model = body.get("prompt"), str(body.get("model") or "")
    if not isinstance(prompt, str):
        raise UsageError("`prompt` must be a string")
    kind = body.get("response_format") or "b64_json"
    if kind not in ("b64_json", "url"):
        raise UsageError("`response_format` must be b64_json or url")
    if body.get("stream") not in (None, False, "", "false"):
        raise UsageError("`stream` is not supported")
    wanted: dict[str, Any] = {
        "prompt": prompt, "count": number(body.get("n"), "n", 1, whole=True), **_size(body.get("size")),
        **{name: body[name] for name in _OWN if body.get(name) is not None}, **start,
        "checkpoint": await parts.library.run(lambda library: _checkpoint(library, model, parts.options)),
    }  # fmt: skip
    job = await rendered(request, wanted)
    made = await parts.library.run(lambda _: files_of(job))
    base = str(request.base_url).rstrip("/")
    data = [
        {"url": f"{base}/api/v1/pictures/{each['id']}/file"} if kind == "url" else
        {"b64_json": base64.b64encode(content).decode()}
        for each, content in made
    ]  # fmt: skip
    return JSONResponse({"created": int(time.time()), "data": data})


async def edits(request: Request) -> Response:
    """Change an image, or the part of it where the mask is transparent.

    The request and the response follow OpenAI's API.
    """
    async with request.form(max_files=2, max_fields=40, max_part_size=MOST_BODY_BYTES) as form:
        body: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
        images = [value for name, value in form.multi_items() if name in ("image", "image[]")]
        masks = [value for name, value in form.multi_items() if name == "mask"]
        if len(images) != 1 or not isinstance(images[0], UploadFile):
            raise UsageError("`image` must be one image file; several are not supported")
        image = await images[0].read()
        mask = await masks[0].read() if masks and isinstance(masks[0], UploadFile) else None
    return await _made(request, body, _edited(image, mask, body))


def _edited(image: bytes, mask: bytes | None, body: dict[str, Any]) -> dict[str, Any]:
    """Return a render request's fields for an input image.

    Transparent areas are inpainted: those of the mask or, if there is no mask, those of the image itself.
    """
    from PIL import Image

    require_image(image)
    if mask is not None:
        require_image(mask, "mask")
    with Image.open(io.BytesIO(image)) as opened:
        size, start, kept = opened.size, opened.convert("RGB"), opened.convert("RGBA").getchannel("A")
    if mask is not None:
        with Image.open(io.BytesIO(mask)) as opened:
            kept = opened.convert("RGBA").getchannel("A").resize(size)
    wanted: dict[str, Any] = {"init_image": _in_base64(start)}
    if kept.getextrema() != (255, 255):
        wanted["mask_image"] = _in_base64(kept.point(lambda alpha: 255 - alpha))
    if body.get("size") in (None, "", "auto"):
        wanted |= {"width": size[0] // 8 * 8, "height": size[1] // 8 * 8}
    if body.get("strength"):
        wanted["strength"] = number(body["strength"], "strength", 0.75)
    return wanted


def _in_base64(image: Any) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


def _size(text: Any) -> dict[str, int]:
    if text in (None, "", "auto"):
        return {}
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", str(text))
    if found is None:
        raise UsageError("`size` must be width x height in pixels, such as 512x768")
    return {"width": int(found[1]), "height": int(found[2])}


def _checkpoint(library: Library, model: str, options: dict[str, Any]) -> str:
    """Find the checkpoint that `model` names: by title, file name or any ref. Raises: NotFound."""
    if model.lower() in _FOREIGN:
        return f"sha256:{checkpoint_in_force(library, options).blob.sha256}"
    try:
        return f"sha256:{chosen(library, model).blob.sha256}"
    except NotFound:
        return require_name(model)


async def models(request: Request) -> Response:
    """List the stored checkpoints. The response follows OpenAI's API."""
    found = await serving(request).library.run(checkpoints)
    return JSONResponse({"object": "list", "data": [
        {"id": asset.name, "object": "model", "created": int(asset.added_at.timestamp()), "owned_by": "civman"}
        for asset in found
    ]})  # fmt: skip


ROUTES = [
    Route("/v1/images/generations", generations, methods=["POST"]),
    Route("/v1/images/edits", edits, methods=["POST"]), Route("/v1/models", models),
]  # fmt: skip
