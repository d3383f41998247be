"""ControlNet's part of AUTOMATIC1111's HTTP API: the units of a request, and the lists of models and modules.

Field names, defaults and limits are those of the extension sd-webui-controlnet. A request for a preprocessor ("module")
or feature that civman does not have is refused with an error that names it.
"""

import re
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman.domain.architecture import Kind
from civman.domain.catalog import Asset
from civman.domain.recipes.control import MAPS, control_type, map_named
from civman.errors import AmbiguousRef, CannotRender, NotFound, UsageError
from civman.index import AssetFilter
from civman.library import Library
from civman.serve.sdapi_requests import CONTROL_SCRIPTS, number
from civman.serve.serving import serving

_MODES: Final = ("balanced", "prompt", "control")
_MODE_NAMES: Final = ("balanced", "my prompt is more important", "controlnet is more important")
_RESIZES: Final = ("just resize", "crop and resize", "resize and pad", "just resize")
_RESIZE_NAMES: Final = {
    "just resize": 0, "crop and resize": 1, "resize and fill": 2, "inner fit (scale to fit)": 1,
    "outer fit (shrink to fit)": 2, "scale to fit (inner fit)": 1, "envelope (outer fit)": 2,
}  # fmt: skip
_MODULES: Final = {
    "none": "none", "canny": "canny", "invert": "invert", "blur": "blur_gaussian", "tile": "tile_resample",
    "gray": "recolor_luminance", "xdog": "scribble_xdog",
}  # fmt: skip
"""Maps the names of civman's preprocessors to the extension's module names."""
_IP_ADAPTERS: Final = (
    "ip-adapter-auto", "ip-adapter_clip_sd15", "ip-adapter_clip_sdxl", "ip-adapter_clip_sdxl_plus_vith",
)  # fmt: skip
"""The extension's module names for IP-Adapters. civman accepts any of them: the model determines the image encoder."""
_UNUSED: Final = ("mask", "mask_image", "advanced_weighting", "effective_region_mask", "ipadapter_input", "loopback")
"""Fields of a ControlNet unit that change the image, but that civman does not support."""
_MOST_UNITS: Final = 10


def units_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the enabled ControlNet units of a request.

    Raises: UsageError: the units are malformed, or there are too many.
    """
    scripts = body.get("alwayson_scripts")
    if not isinstance(scripts, dict):
        return []
    units: list[dict[str, Any]] = []
    for name, script in scripts.items():
        arguments = script.get("args") if isinstance(script, dict) else script
        if str(name).casefold() not in CONTROL_SCRIPTS or not arguments:
            continue
        given = arguments if isinstance(arguments, list) else [arguments]
        if not all(isinstance(each, dict) or each in (False, None) for each in given):
            raise UsageError("the `args` of `controlnet` must be a list of units, each an object")
        units += [each for each in given if isinstance(each, dict) and each.get("enabled", True)]
    if len(units) > _MOST_UNITS:
        raise UsageError(f"a request has at most {_MOST_UNITS} ControlNet units, not {len(units)}")
    return units


def controls_of(library: Library, body: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Translate the ControlNet units of a request to the `controls` and `references` of a render request.

    Raises: UsageError, CannotRender: civman cannot use a value. NotFound: no stored model matches. AmbiguousRef:
    several stored models match.
    """
    draws_region = body.get("mask") and body.get("inpaint_full_res", True)
    found: dict[str, list[dict[str, Any]]] = {}
    for unit in units_of(body):
        is_reference = str(unit.get("module") or "").casefold() in _IP_ADAPTERS
        if is_reference and draws_region and _crops(unit):
            raise CannotRender(
                "civman cannot crop the reference image of an IP-Adapter to the masked area",
                hint="set `inpaint_crop_input_image` of the unit or `inpaint_full_res` of the request to false",
            )
        name, made = ("references", _reference) if is_reference else ("controls", _control)
        found.setdefault(name, []).append(made(library, unit, body))
    return found


def _crops(unit: dict[str, Any]) -> bool:
    """Whether a unit's image is cropped if only the masked area is rendered. By default it is, as in the extension."""
    return bool(unit.get("inpaint_crop_input_image", True))


def _reference(library: Library, unit: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Translate a ControlNet unit with an IP-Adapter to an entry of a render request's `references`."""
    _require_followed(unit)
    if _mode(unit.get("control_mode")) != "balanced":
        raise CannotRender("civman has no control mode for IP-Adapters", hint="leave out `control_mode`")
    return {"picture": _picture(unit, body), **_acting(library, unit)}


def _require_followed(unit: dict[str, Any]) -> None:
    """Check that civman supports every field that a unit sets. Raises: CannotRender."""
    refused = [name for name in _UNUSED if unit.get(name)]
    if str(unit.get("hr_option") or "both").casefold() not in ("both", "0", "hiresfixoption.both"):
        refused.append("hr_option")
    if refused:
        raise CannotRender(
            f"civman does not support these fields of a ControlNet unit: {', '.join(refused)}",
            hint="leave these fields out, or set them to their defaults",
        )


def _acting(library: Library, unit: dict[str, Any]) -> dict[str, Any]:
    """Return a unit's model and weight, and the fractions of the steps at which it starts and ends."""
    return {
        "ref": f"sha256:{_model(library, str(unit.get('model') or '')).blob.sha256}",
        "weight": number(unit.get("weight"), "weight", 1.0),
        "start": number(unit.get("guidance_start"), "guidance_start", 0.0),
        "end": number(unit.get("guidance_end", unit.get("guidance")), "guidance_end", 1.0),
    }


def _control(library: Library, unit: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    _require_followed(unit)
    kind = str(unit.get("union_control_type") or "")
    return {
        "picture": _picture(unit, body), **_acting(library, unit),
        "mode": _mode(unit.get("control_mode")), "resize_mode": _resize_mode(unit.get("resize_mode")),
        "control_map": _preprocessor(unit), "control_type": "" if control_type(kind) is None else kind,
        "crops": None if _crops(unit) else False,
    }  # fmt: skip


def _picture(unit: dict[str, Any], body: dict[str, Any]) -> str:
    """Return a unit's image in base64; in img2img, the start image if the unit has none."""
    given = unit.get("image") or unit.get("input_image")
    if isinstance(given, dict):
        if given.get("mask"):
            raise CannotRender("civman does not support the mask of a ControlNet unit", hint="leave out the mask")
        given = given.get("image")
    if not given:
        given = next(iter(body.get("init_images") or []), None)
    if not isinstance(given, str) or not given:
        raise UsageError(
            "a ControlNet unit has no `image`", hint="send the control image in base64, or disable the unit"
        )
    return given


def _preprocessor(unit: dict[str, Any]) -> str:
    """Return a unit's preprocessor and its thresholds in the form of `ControlRequest.control_map`.

    A threshold outside its limits is replaced with the default, as in the extension.
    """
    module = str(unit.get("module") or "none")
    name = map_named(module)
    if name is None:
        raise CannotRender(
            f"civman does not have the ControlNet module `{module}`",
            hint="send an already preprocessed image with the module `none`, or use a preprocessor that civman has: "
            + ", ".join(_MODULES.values()),
        )
    words = [name]
    for field, (usual, least, most) in zip(("threshold_a", "threshold_b"), MAPS[name], strict=False):
        given = number(unit.get(field), field, -1.0)
        words.append(f"{given if least <= given <= most else usual:g}")
    return ":".join(words)


def _mode(given: Any) -> str:
    text = str(given or 0).casefold()
    if text in _MODE_NAMES:
        return _MODES[_MODE_NAMES.index(text)]
    if text in ("0", "1", "2"):
        return _MODES[int(text)]
    raise UsageError(f"`control_mode` must be 0 to 2 or a name, not `{str(given)[:40]}`")


def _resize_mode(given: Any) -> str:
    text = str(1 if given in (None, "") else given).casefold()
    position = _RESIZE_NAMES.get(text, int(text) if text.isdecimal() else -1)
    if not 0 <= position < len(_RESIZES):
        raise UsageError(f"`resize_mode` must be 0 to 2 or a name, not `{str(given)[:40]}`")
    return _RESIZES[position]


def _title(asset: Asset) -> str:
    return f"{Path(asset.name).stem} [{asset.blob.sha256[:8]}]"


def _models(library: Library) -> list[Asset]:
    found = library.list(AssetFilter(kinds=(Kind.CONTROLNET.value, Kind.IP_ADAPTER.value)))
    return sorted(found, key=lambda asset: (asset.name.lower(), asset.blob.sha256))


def _model(library: Library, named: str) -> Asset:
    """Find a control model by its title or its file's name, with or without a hash in brackets."""
    text = named.strip()
    stem, _, digest = text.removesuffix("]").rpartition("[") if text.endswith("]") else (text, "", "")
    stem = stem.strip()
    if stem.casefold() in ("", "none"):
        raise UsageError(
            "a ControlNet unit has no `model`", hint="`/controlnet/model_list` lists the control models in the library"
        )
    wanted = {stem.casefold(), Path(re.split(r"[/\\]", stem)[-1]).stem.casefold()}
    found = [asset for asset in _models(library) if {asset.name.casefold(), Path(asset.name).stem.casefold()} & wanted]
    if len(found) > 1 and digest:
        found = [asset for asset in found if asset.blob.sha256.startswith(digest.lower())] or found
    if len(found) > 1:
        raise AmbiguousRef(
            f"`{named}` matches several control models", hint=f"use one of: {', '.join(map(_title, found))}"
        )
    if not found:
        raise NotFound(
            f"no control model in the library is called `{named}`",
            hint="`/controlnet/model_list` lists the control models in the library",
        )
    return found[0]


async def version(_: Request) -> Response:
    """Return the version of the extension's API."""
    return JSONResponse({"version": 3})


async def settings(_: Request) -> Response:
    """Return how many ControlNet units a request may have."""
    return JSONResponse({"control_net_unit_count": _MOST_UNITS})


async def model_list(request: Request) -> Response:
    """List the stored control models."""
    found = await serving(request).library.run(_models)
    return JSONResponse({"model_list": [_title(asset) for asset in found]})


async def module_list(_: Request) -> Response:
    """List the preprocessors."""
    return JSONResponse({"module_list": [*_MODULES.values(), *_IP_ADAPTERS]})


async def control_types(request: Request) -> Response:
    """List the models and preprocessors in a single group, which the extension calls "All"."""
    found = await serving(request).library.run(_models)
    return JSONResponse({"control_types": {"All": {
        "module_list": [*_MODULES.values(), *_IP_ADAPTERS], "model_list": ["None", *map(_title, found)],
        "default_option": "none", "default_model": "None",
    }}})  # fmt: skip


ROUTES = [
    Route("/controlnet/version", version), Route("/controlnet/settings", settings),
    Route("/controlnet/model_list", model_list), Route("/controlnet/module_list", module_list),
    Route("/controlnet/control_types", control_types),
]  # fmt: skip
