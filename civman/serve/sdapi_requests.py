"""Translates requests of AUTOMATIC1111's HTTP API to civman's render requests.

Field names and defaults are those of `modules/api` of AUTOMATIC1111's web UI and Forge. Unknown fields are accepted,
since clients send their whole forms; a known feature that civman does not support is refused with an error that names
it.
"""

import re
from typing import Any

from civman.errors import CannotRender, UsageError
from civman.serve.render_requests import image_bytes

_SAMPLING = {"eta": "eta", "s_churn": "s_churn", "s_tmin": "s_tmin", "s_noise": "s_noise"}
_FILLS = ("fill", "original", "latent noise", "latent nothing")
_RESIZES = ("just resize", "crop and resize", "resize and fill", "just resize (latent upscale)")
_CLIP_SKIP = "CLIP_stop_at_last_layers"
_AUTOMATIC = ("", "automatic", "use same scheduler", "none")
CONTROL_SCRIPTS = ("controlnet", "sd forge controlnet")
"""The names of the ControlNet extension in `alwayson_scripts`, in A1111 and in Forge, in lower case."""
SECRETS = ("auth", "url", "username", "password")
"""Names of request fields that may contain secrets; responses do not repeat them."""


def number(value: Any, name: str, default: float, *, whole: bool = False) -> Any:
    """Convert a field to a number; it may be a string, and if it is missing, `default` is used. Raises: UsageError."""
    if value is None or value == "":
        return int(default) if whole else default
    if isinstance(value, bool):
        return int(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"`{name}` must be a number, not `{str(value)[:40]}`") from None
    if found != found or abs(found) > 1e18:
        raise UsageError(f"`{name}` must be a number, not `{value}`")
    return round(found) if whole else found


def render_request(
    body: dict[str, Any], checkpoint: str, settings: dict[str, Any], *, has_image: bool
) -> dict[str, Any]:
    """Translate a txt2img or, with `has_image`, an img2img request to the fields of a render request.

    `settings` are the server's options, overridden by the request's `override_settings`. Raises: UsageError,
    CannotRender (`no-such-feature`): a value that civman cannot use.
    """
    _require_possible(body)
    batch, rounds = (number(body.get(name), name, 1, whole=True) for name in ("batch_size", "n_iter"))
    seed = number(body.get("seed"), "seed", -1, whole=True)
    wanted: dict[str, Any] = {
        "checkpoint": checkpoint, "prompt": str(body.get("prompt") or ""),
        "negative_prompt": str(body.get("negative_prompt") or ""),
        "sampler": str(body.get("sampler_name") or body.get("sampler_index") or "Euler"),
        "steps": number(body.get("steps"), "steps", 50, whole=True),
        "guidance_scale": number(body.get("cfg_scale"), "cfg_scale", 7.0),
        "width": number(body.get("width"), "width", 512, whole=True),
        "height": number(body.get("height"), "height", 512, whole=True),
        "seed": seed if seed >= 0 else None, "count": batch * rounds, "batch_size": batch,
        "clip_skip": number(settings.get(_CLIP_SKIP), _CLIP_SKIP, 1, whole=True) or None,
    }  # fmt: skip
    schedule = str(body.get("scheduler") or "")
    if schedule.lower() not in _AUTOMATIC:
        wanted["schedule"] = schedule
    strength = number(body.get("subseed_strength"), "subseed_strength", 0.0)
    if strength:
        subseed = number(body.get("subseed"), "subseed", -1, whole=True)
        wanted |= {"variation_strength": strength, "variation_seed": subseed if subseed >= 0 else None}
    across, down = (number(body.get(f"seed_resize_from_{side}"), "seed_resize_from", 0, whole=True) for side in "wh")
    if across > 0 and down > 0:
        wanted["seed_resize"] = f"{across}x{down}"
    for theirs, ours in _SAMPLING.items():
        if body.get(theirs) is not None:
            wanted[ours] = number(body[theirs], theirs, 0.0)
    if number(body.get("s_tmax"), "s_tmax", 0.0) > 0:
        wanted["s_tmax"] = number(body["s_tmax"], "s_tmax", 0.0)
    vae = str(settings.get("sd_vae") or "")
    if vae.lower() not in ("", "automatic", "none"):
        wanted["vae"] = vae
    delta = number(settings.get("eta_noise_seed_delta"), "eta_noise_seed_delta", 0, whole=True)
    if delta:
        wanted["eta_seed_delta"] = delta
    return wanted | _refiner(body, settings) | (_start(body) if has_image else _second_pass(body))


def _second_pass(body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("enable_hr"):
        return {}
    width, height = (number(body.get(f"hr_resize_{side}"), "hr_resize", 0, whole=True) for side in "xy")
    size = {"width": width or None, "height": height or None} if width or height else {
        "scale": number(body.get("hr_scale"), "hr_scale", 2.0),
    }  # fmt: skip
    return {"hires": {
        **size, "steps": number(body.get("hr_second_pass_steps"), "hr_second_pass_steps", 0, whole=True) or None,
        "strength": number(body.get("denoising_strength"), "denoising_strength", 0.7),
        "upscaler": str(body.get("hr_upscaler") or "latent"),
        "prompt": str(body.get("hr_prompt") or "") or None,
        "negative_prompt": str(body.get("hr_negative_prompt") or "") or None,
        "checkpoint": _own(body, "hr_checkpoint_name"), "sampler": _own(body, "hr_sampler_name"),
        "schedule": _own(body, "hr_scheduler"),
    }}  # fmt: skip


def _own(body: dict[str, Any], name: str) -> str | None:
    """Return a field of the request; None if it is empty or means "the same as in the first pass"."""
    value = str(body.get(name) or "").strip()
    return None if value.casefold() in _AUTOMATIC or re.match(r"(?i)use same", value) else value


def further_checkpoints(body: dict[str, Any]) -> dict[str, str]:
    """Return the titles of the refiner's and the second pass's checkpoints, by the request fields that name them."""
    fields = ["refiner_checkpoint", *(["hr_checkpoint_name"] if body.get("enable_hr") else [])]
    return {field: title for field in fields if (title := _own(body, field)) is not None}


def _refiner(body: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    refiner = _own(body, "refiner_checkpoint")
    if refiner is None:
        return {}
    found: dict[str, Any] = {
        "refiner": refiner, "refiner_at": number(body.get("refiner_switch_at"), "refiner_switch_at", 0.8),
        "refiner_by_steps": bool(settings.get("refiner_switch_by_sample_steps")),
    }  # fmt: skip
    if body.get("enable_hr"):
        found["refiner_passes"] = str(settings.get("hires_fix_refiner_pass") or "second pass").partition(" ")[0]
    return found


def _start(body: dict[str, Any]) -> dict[str, Any]:
    images = body.get("init_images") or []
    if not isinstance(images, list) or not images or not all(isinstance(each, str) for each in images):
        raise UsageError("`init_images` must be a list of images in base64")
    if len(images) > 1:
        raise CannotRender("civman can start from only one image, but `init_images` has several")
    start: dict[str, Any] = {
        "init_image": images[0], "strength": number(body.get("denoising_strength"), "denoising_strength", 0.75),
        "resize_mode": _choice(body, "resize_mode", _RESIZES, 0),
    }  # fmt: skip
    multiplier = number(body.get("initial_noise_multiplier"), "initial_noise_multiplier", 1.0)
    if multiplier != 1:
        start["noise_multiplier"] = multiplier
    if not body.get("mask"):
        return start
    if number(body.get("inpainting_mask_invert"), "inpainting_mask_invert", 0, whole=True):
        start["mask_image"] = _inverted(str(body["mask"]))
    else:
        start["mask_image"] = str(body["mask"])
    return start | {
        "mask_blur": number(body.get("mask_blur"), "mask_blur", 4, whole=True),
        "masked_content": _choice(body, "inpainting_fill", _FILLS, 0),
        "only_masked": bool(body.get("inpaint_full_res", True)),
        "padding": number(body.get("inpaint_full_res_padding"), "inpaint_full_res_padding", 0, whole=True),
    }  # fmt: skip


def _choice(body: dict[str, Any], name: str, among: tuple[str, ...], default: int) -> str:
    position: int = number(body.get(name), name, default, whole=True)
    if not 0 <= position < len(among):
        raise UsageError(f"`{name}` must be 0 to {len(among) - 1}")
    return among[position]


def _inverted(text: str) -> str:
    import base64
    import io

    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image_bytes(text, "mask"))) as mask:
        out = io.BytesIO()
        ImageOps.invert(mask.convert("L")).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


def _require_possible(body: dict[str, Any]) -> None:
    """Check that civman has every feature that the request needs. Raises: CannotRender, with the missing features."""
    scripts = body.get("alwayson_scripts") or {}
    asked = (
        [name for name in scripts if not _is_off(scripts[name]) and str(name).casefold() not in CONTROL_SCRIPTS]
        if isinstance(scripts, dict)
        else ["?"]
    )
    asked += [name for name in ("restore_faces", "tiling") if body.get(name)]
    asked += [f"script {body['script_name']}"] if body.get("script_name") else []
    asked += [f"style {name}" for name in body.get("styles") or [] if name not in (None, "None", "")]
    if asked:
        raise CannotRender(
            f"civman does not support these parts of the request: {', '.join(map(str, asked))}",
            hint="leave these fields out, or set them to their defaults",
        )


def _is_off(script: Any) -> bool:
    """Whether a script in the request is off: it has no arguments, or only False, None and disabled units."""
    arguments = script.get("args") if isinstance(script, dict) else script
    if not arguments:
        return True
    return isinstance(arguments, list) and all(
        each in (False, None) or (isinstance(each, dict) and not each.get("enabled", True)) for each in arguments
    )
