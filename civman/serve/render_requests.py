"""Parses and checks render requests in JSON. Requests must not refer to files on this computer by path."""

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from civman.domain.recipes.details import FACE, box_of, detail_from
from civman.domain.recipes.faces import faces_from
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.recipes.recipe_limits import size_of
from civman.domain.recipes.ultimate import ultimate_from
from civman.domain.refs import PathRef, parse_ref
from civman.errors import InvalidRef, Refused, UsageError
from civman.manage.inspection import path_of
from civman.planning.grid_axes import Axis, axes_of
from civman.planning.plan import Conditions
from civman.planning.vary import field_of
from civman.store.partial import store_error
from civman.store.served_files import UPLOADS

_REQUEST = TypeAdapter(RenderRequest)
_FIELDS = {field.name for field in dataclasses.fields(RenderRequest)}
_WITH_PICTURES = ("controls", "references")
"""The fields of a render request that are lists of objects, each with a `picture`."""
MOST_TEXT = 64 * 1024
_MOST_PIXELS = 4096 * 4096
MOST_ENLARGED_PIXELS = 8192 * 8192
_MOST_COUNT = 100


def request_of(value: object, *, library: Path) -> RenderRequest:
    """Convert a JSON object with the fields of `RenderRequest` to a request.

    `init_image`, `mask_image` and the `picture` of each of the `controls` and `references` are image files in base64,
    which are stored in the library's `uploads` folder.

    Raises: UsageError: a field is unknown or has a wrong type. Refused: a ref is a path, or a limit of the server is
    exceeded.
    """
    if not isinstance(value, dict):
        raise UsageError("a render request is a JSON object")
    unknown = sorted(set(value) - _FIELDS)
    if unknown:
        raise UsageError(f"a render request has no field `{unknown[0]}`", hint=f"fields: {', '.join(sorted(_FIELDS))}")
    value = dict(value)
    for name in ("init_image", "mask_image"):
        if value.get(name) is not None:
            value[name] = str(_kept(value[name], name, library))
    for name in _WITH_PICTURES:
        if isinstance(value.get(name), list):
            value[name] = [
                {**each, "picture": str(_kept(each.get("picture"), "picture", library))}
                if isinstance(each, dict)
                else None
                for each in value[name]
            ]
    try:
        request = _REQUEST.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"the field `{where}` of the render request is invalid: {first['msg']}") from None
    _require_no_paths(request)
    _require_bounds(request)
    return request


def kept_value(value: dict[str, Any], request: RenderRequest) -> dict[str, Any]:
    """Return a checked request's JSON object, with the SHA-256 of each stored image in place of its base64."""
    paths = {"init_image": request.init_image, "mask_image": request.mask_image}
    kept: dict[str, Any] = {name: Path(path).stem for name, path in paths.items() if path is not None}
    for name in _WITH_PICTURES:
        if asked := getattr(request, name):
            pictures = [Path(each.picture).stem for each in asked]
            kept[name] = [{**each, "picture": picture} for each, picture in zip(value[name], pictures, strict=True)]
    return {**value, **kept}


def conditions_of(payload: dict[str, Any], device: str | None = None) -> Conditions:
    """Return the conditions for planning a job. `device`: the device to use if the payload names none."""
    allow_partial = bool(payload.get("allow_partial"))
    if device is not None and payload.get("device") in (None, device):
        return Conditions(device, allow_partial=allow_partial, is_device_there=True)
    return Conditions(payload.get("device"), allow_partial=allow_partial)


def require_name(ref: str) -> str:
    """Check that a client's ref names a model in the library or on CivitAI, not a file path. Raises: Refused."""
    is_path = isinstance(parse_ref(ref), PathRef) and bool({"/", "\\", "~"} & set(ref))
    if is_path or path_of(ref) is not None:
        raise Refused(
            f"`{ref}` is a path, and the server does not open paths that clients send",
            hint="use an id, a SHA-256, or the name of a model in the library",
        )
    return ref


def changes_of(given: object) -> list[tuple[str, str]]:
    """Check an object that maps fields to new values (as for `--set`), and convert it to pairs of strings.

    Raises: UsageError: `given` is not an object. Refused: a value is a path.
    """
    if not isinstance(given, dict):
        raise UsageError("`set` must be an object of fields and their new values")
    changes = [(str(name), _as_text(value)) for name, value in given.items()]
    for name, text in changes:
        _require_no_path_in(name, text)
    return changes


def grid_axes(given: object) -> tuple[Axis, ...]:
    """Parse the axes of a grid from strings, as for `--grid`. Raises: UsageError. Refused: a value is a path."""
    if not isinstance(given, list) or not all(isinstance(text, str) and len(text) <= MOST_TEXT for text in given):
        raise UsageError("`axes` must be a list of strings such as seed=1..4")
    axes = axes_of(given)
    for axis in axes:
        for value in axis.values:
            _require_no_path_in(axis.name, value)
    return axes


def recipe_of(value: object) -> Recipe:
    """Convert a JSON object to a recipe. Raises: UsageError (`bad-recipe`)."""
    return Recipe.from_json(json.dumps(value))


def require_recipe(recipe: Recipe) -> None:
    """Check that a recipe's images do not exceed the server's limits on size and number. Raises: Refused."""
    for width, height in recipe.drawn_sizes:
        if width * height > _MOST_PIXELS:
            raise Refused(f"{width}x{height} has more pixels than 4096x4096, the most that the server renders")
    if recipe.enlarged_input is not None:
        require_enlarged(recipe.drawn_size)
    if recipe.input_upscale is not None:
        require_enlarged(recipe.input_upscale.final_size)
    if recipe.upscale is not None:
        require_enlarged(recipe.upscale.final_size)
    if recipe.count > _MOST_COUNT:
        raise Refused(f"a job has at most {_MOST_COUNT} images")


def require_enlarged(size: tuple[int, int]) -> None:
    """Check that an image would not be enlarged beyond the server's size limit. Raises: Refused."""
    width, height = size
    if width * height > MOST_ENLARGED_PIXELS:
        raise Refused(f"{width}x{height} has more pixels than 8192x8192, the largest size to which the server enlarges")


def upload_of(text: object, library: Path) -> Path:
    """Store an image that a client sent as base64, and return its path.

    `text` may also be the SHA-256 of an image that is already stored. Raises: the errors of `image_bytes`.
    """
    return _kept(text, "image", library)


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _require_no_path_in(name: str, text: str) -> None:
    """Check that the new value of a changed field (as for `--set`) is not a path. Raises: Refused."""
    kind, _, ref = name.partition(":")
    if kind.lower() == "lora" and ref:
        require_name(ref)
    elif field_of(name) in ("checkpoint", "vae", "upscaler", "hires_checkpoint", "refiner") and text:
        require_name(text)
    elif field_of(name) in ("upscale", "tiled_upscale", "init_upscale", "face_restoration"):
        _require_no_path_before_numbers(text)
    elif field_of(name) == "ultimate_upscale" and text not in ("", "off"):
        require_name(ultimate_from(text).upscaler)
    elif field_of(name) == "details" and text not in ("", "off"):
        _require_no_mask(detail_from(text).region)
    elif field_of(name) in ("init_image", "mask_image"):
        raise Refused(f"`{name}` cannot be changed by clients: the server does not open paths that they send")


def _require_no_mask(region: str) -> None:
    """Check that the region of a detail pass is `face` or a box, not the path of a mask file. Raises: Refused."""
    if region.casefold() != FACE and box_of(region) is None:
        raise Refused(
            "the region of a detail pass must be `face` or a box X,Y,W,H: the server does not open paths that clients "
            "send"
        )


def _require_no_path_before_numbers(text: str) -> None:
    """Check that a value such as `REF:2` does not begin with a path.

    Neither the whole text nor the part before any of its colons may be a path. Raises: Refused.
    """
    places = [place for place, sign in enumerate(text) if sign == ":"]
    for head in (text, *(text[:place] for place in places if place)):
        with contextlib.suppress(InvalidRef):  # text that is not a valid ref cannot be a path either
            require_name(head)


def _require_no_paths(request: RenderRequest) -> None:
    refs = [request.checkpoint, *(each.ref for each in request.loras), *request.embeddings]
    refs += [each.ref for each in request.controls] + [each.ref for each in request.references if each.ref]
    for asked in request.details:
        _require_no_mask(asked.region)
    refs += [each.partition(":")[0] for each in request.hypernetworks]
    refs += [request.vae] if request.vae else []
    refs += [each.partition("=")[2] for each in request.parts]
    if request.hires:
        refs += [request.hires.upscaler, *(each.ref for each in request.hires.loras or ())]
        refs += [each.partition(":")[0] for each in request.hires.hypernetworks or ()]
        refs += [request.hires.checkpoint] if request.hires.checkpoint else []
    refs += [request.refiner] if request.refiner else []
    refs += [each.upscaler for each in _enlarged(request) if each]
    refs += [faces_from(request.face_restoration)[0]] if request.face_restoration else []
    for ref in refs:
        require_name(ref)
    if request.config is not None and not request.config.lstrip().startswith("{"):
        raise Refused("`config` must be JSON: the server does not open folders that clients name")


def _enlarged(request: RenderRequest) -> tuple[Any, ...]:
    """Return the upscalers for the finished image and for the input image; None for one that is not used."""
    return request.upscale, request.tiled_upscale, request.ultimate_upscale, request.init_upscale


def _require_bounds(request: RenderRequest) -> None:
    hires = request.hires
    texts = [request.prompt, request.negative_prompt, *((hires.prompt, hires.negative_prompt) if hires else ())]
    texts += [text for asked in request.details for text in (asked.prompt, asked.negative_prompt)]
    if sum(len(text or "") for text in texts) > MOST_TEXT:
        raise Refused(f"the prompts are longer than {MOST_TEXT} characters")
    if (request.width or 0) * (request.height or 0) > _MOST_PIXELS:
        raise Refused(
            f"{request.width}x{request.height} has more pixels than 4096x4096, the most that the server renders"
        )
    if request.count > _MOST_COUNT or max(request.batch_size or 1, request.slots or 1) > _MOST_COUNT:
        raise Refused(f"a job has at most {_MOST_COUNT} images")
    if hires is not None and (hires.width or 0) * (hires.height or 0) > _MOST_PIXELS:
        raise Refused("the second pass has more pixels than 4096x4096, the most that the server renders")
    if hires is not None and (hires.scale or 1) > 8:
        raise Refused("the second pass enlarges by a factor above 8, the highest that the server allows")
    for asked in request.details:
        across, down = size_of(asked.size) if asked.size else (0, 0)
        if across * down > _MOST_PIXELS:
            raise Refused("a detail pass has more pixels than 4096x4096, the most that the server renders")
    if request.upscale is not None and (request.upscale.scale or 1) > 8:
        raise Refused("the server enlarges images by a factor of at most 8")


def _kept(text: object, name: str, library: Path) -> Path:
    """Store an image sent as base64 and return its path; `text` may also be the SHA-256 of a stored image."""
    if not isinstance(text, str):
        raise UsageError(f"`{name}` must be an image file in base64")
    folder = library / UPLOADS
    if len(text) == 64 and set(text) <= set("0123456789abcdef") and (folder / f"{text}.png").is_file():
        return folder / f"{text}.png"
    data = image_bytes(text, name)
    path = folder / f"{hashlib.sha256(data).hexdigest()}.png"
    try:
        folder.mkdir(exist_ok=True)
        if not path.is_file():
            path.write_bytes(data)
    except OSError as error:
        raise store_error(error, path) from error
    return path


def image_bytes(text: str, name: str = "image") -> bytes:
    """Decode base64, with or without a `data:` prefix, to the bytes of an image file; its pixels are not decoded.

    Raises: UsageError: `text` is not base64, or the bytes are not an image. Refused: the image has too many pixels.
    """
    if text.startswith(("http:", "https:", "file:")):
        raise Refused(f"`{name}` is a URL, and the server fetches no URLs for clients; send the image in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"`{name}` is not an image file in base64") from None
    require_image(data, name)
    return data


def require_image(data: bytes, name: str = "image") -> None:
    """Check that `data` is an image of bounded size, without decoding its pixels. Raises: UsageError, Refused."""
    import io
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise Refused(f"`{name}` has more pixels than the server accepts") from None
    except Exception:  # noqa: BLE001  # Pillow raises many kinds for broken files
        raise UsageError(f"`{name}` is not a PNG, JPEG or WebP image") from None
    if width * height > 2 * _MOST_PIXELS:
        raise Refused(f"`{name}` has {width}x{height} pixels, more than the server accepts")
