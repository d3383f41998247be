"""AUTOMATIC1111's HTTP API: rendering, progress and cancelling."""

import asyncio
import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman import __version__
from civman.errors import CannotRender, CivmanError, ExitCode
from civman.library import Library
from civman.serve.api_library import is_set
from civman.serve.jobs import JobKind, JobState, ServerJob
from civman.serve.render_requests import request_of
from civman.serve.sdapi_controlnet import controls_of
from civman.serve.sdapi_requests import SECRETS, further_checkpoints, render_request
from civman.serve.sdapi_state import checkpoint_in_force, chosen
from civman.serve.serving import Serving, client_of, json_body, serving

_PREVIEW_SECONDS = 5.0
"""The time in seconds for which previews are made after a client requests one. Clients poll more often."""


async def rendered(request: Request, wanted: dict[str, Any]) -> ServerJob:
    """Queue one render and wait for it; if the client disconnects, the job is cancelled.

    Raises: the job's error.
    """
    parts = serving(request)
    checked = request_of(wanted, library=parts.settings.library)
    job = parts.jobs.submit(JobKind.RENDER, client_of(request), checked.prompt, {"requests": [wanted]})
    return await finished(request, job)


async def finished(request: Request, job: ServerJob) -> ServerJob:
    """Wait for the job of this request; if the client disconnects, the job is cancelled. Raises: the job's error."""
    parts = serving(request)
    over = asyncio.ensure_future(parts.wait(job))
    while not over.done():
        await asyncio.wait([over], timeout=0.5)
        if not over.done() and await request.is_disconnected():
            parts.jobs.cancel(job.number)
    if job.state is JobState.FAILED and job.error is not None:
        error = CivmanError(job.error["message"], hint=job.error["hint"] or "")
        error.exit_code, error.code = ExitCode(job.error["exit_code"]), job.error["code"]
        raise error
    return job


def files_of(job: ServerJob) -> list[tuple[dict[str, Any], bytes]]:
    """Return the images of a finished job, each with the bytes of its file."""
    result = job.result or {"pictures": []}
    return [(made, Path(made["path"]).read_bytes()) for made in result["pictures"]]


async def txt2img(request: Request) -> Response:
    """Make images from a prompt."""
    return await _render(request, has_image=False)


async def img2img(request: Request) -> Response:
    """Make images from an image, or inpaint a part of it."""
    return await _render(request, has_image=True)


async def _render(request: Request, *, has_image: bool) -> Response:
    body, parts = await json_body(request), serving(request)
    overrides = body.get("override_settings") or {}
    if not isinstance(overrides, dict):
        raise CannotRender("`override_settings` must be an object")
    settings = {**parts.options, **overrides}
    asset = await parts.library.run(lambda library: checkpoint_in_force(library, settings))
    named = await parts.library.run(lambda library: _with_digests(library, body))
    wanted = render_request(named, f"sha256:{asset.blob.sha256}", settings, has_image=has_image)
    controls = await parts.library.run(lambda library: controls_of(library, body))
    job = await rendered(request, wanted | controls)
    if overrides and not body.get("override_settings_restore_afterwards", True):
        parts.options.update(overrides)
    made = await parts.library.run(lambda library: _with_texts(library, files_of(job)))
    echoed = {key: value for key, value in body.items() if key not in SECRETS}
    echoed |= {"init_images": None, "mask": None} if has_image else {}
    images = [base64.b64encode(data).decode() for _, data, _ in made] if body.get("send_images", True) else []
    names = {"sd_model_name": Path(asset.name).stem, "sd_model_hash": asset.blob.sha256[:10]}
    info = _info([(each, text) for each, _, text in made], names, wanted, job)
    return JSONResponse({"images": images, "parameters": echoed, "info": json.dumps(info)})


def _with_digests(library: Library, body: dict[str, Any]) -> dict[str, Any]:
    """Replace the titles of a request's refiner and hires checkpoints with refs.

    Raises: NotFound: a title matches no stored checkpoint. AmbiguousRef: it matches several.
    """
    titles = further_checkpoints(body)
    return body | {field: f"sha256:{chosen(library, title).blob.sha256}" for field, title in titles.items()}


def _with_texts(library: Library, made: list[tuple[dict[str, Any], bytes]]) -> list[tuple[dict[str, Any], bytes, str]]:
    """Add to each image the `parameters` text that its file contains."""
    described = [library.pictures.describe(Path(each["path"])).carried.parameters or "" for each, _ in made]
    return [(each, data, text) for (each, data), text in zip(made, described, strict=True)]


def _info(
    made: list[tuple[dict[str, Any], str]], names: dict[str, str], wanted: dict[str, Any], job: ServerJob
) -> dict[str, Any]:
    recipe = made[0][0]["recipe"] if made else {}
    seeds = [each["seed"] for each, _ in made]
    count = len(made)
    return {
        "prompt": wanted["prompt"], "all_prompts": [wanted["prompt"]] * count,
        "negative_prompt": wanted["negative_prompt"], "all_negative_prompts": [wanted["negative_prompt"]] * count,
        "seed": seeds[0] if seeds else -1, "all_seeds": seeds, "subseed": recipe.get("variation_seed", 0),
        "all_subseeds": [recipe.get("variation_seed", 0)] * count,
        "subseed_strength": recipe.get("variation_strength", 0.0),
        "width": recipe.get("width"), "height": recipe.get("height"), "sampler_name": recipe.get("sampler"),
        "cfg_scale": recipe.get("guidance_scale"), "steps": recipe.get("steps"), "batch_size": wanted["batch_size"],
        "restore_faces": False, "face_restoration_model": None, **names, "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "denoising_strength": wanted.get("strength"),
        "extra_generation_params": {"Schedule type": recipe.get("schedule")}, "index_of_first_image": 0,
        "infotexts": [text for _, text in made], "styles": [], "job_timestamp": _stamp(job.created_at),
        "clip_skip": recipe.get("clip_skip"), "is_using_inpainting_conditioning": False,
        "version": f"civman {__version__}",
        "interrupted": job.state is JobState.CANCELLED, "notices": (job.result or {}).get("notices", []),
        "recipe_sha256": [each["recipe_sha256"] for each, _ in made],
        "pixel_sha256": [each["pixel_sha256"] for each, _ in made],
    }  # fmt: skip


def _stamp(at: datetime | None) -> str:
    return at.strftime("%Y%m%d%H%M%S") if at else "0"


async def progress(request: Request) -> Response:
    """Return the progress of the current render; `job_count` is 0 if none is running."""
    parts = serving(request)
    told, job = _progress(parts, parts.engine.current), parts.engine.current
    if not is_set(request, "skip_current_image"):
        parts.engine.watch_for(_PREVIEW_SECONDS)
        if job is not None and not job.is_over and job.preview is not None:
            told["current_image"] = base64.b64encode(job.preview).decode()
    return JSONResponse(told)


def _progress(parts: Serving, job: ServerJob | None) -> dict[str, Any]:
    waiting = sum(not each.is_over and each.kind is JobKind.RENDER for each in parts.jobs.all())
    state: dict[str, Any] = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    }  # fmt: skip
    if job is None or job.is_over:
        if waiting:
            state |= {"job": "waiting", "job_count": waiting}
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None,
                "current_task": None}  # fmt: skip
    told = job.progress
    steps, count = told.get("steps") or 1, told.get("count") or 1
    share = min(
        0.999, (told.get("first", 1) - 1) / count + told.get("step", 0) / steps * told.get("pictures", 1) / count
    )
    elapsed = (datetime.now(UTC) - job.started_at).total_seconds() if job.started_at else 0.0
    state |= {
        "job": f"job {job.number}", "job_count": count, "job_timestamp": _stamp(job.started_at),
        "job_no": told.get("first", 1) - 1, "sampling_step": told.get("step", 0), "sampling_steps": steps,
        "interrupted": job.is_cancelling, "stopping_generation": job.is_cancelling,
    }  # fmt: skip
    left = elapsed / share - elapsed if share > 0 else 0.0
    return {"progress": max(share, 0.001), "eta_relative": round(left, 3), "state": state, "current_image": None,
            "textinfo": None, "current_task": f"job {job.number}"}  # fmt: skip


async def interrupt(request: Request) -> Response:
    """Cancel the current render, if there is one."""
    parts = serving(request)
    job = parts.engine.current
    if job is not None:
        parts.jobs.cancel(job.number)
    return JSONResponse({})


ROUTES = [
    Route("/sdapi/v1/txt2img", txt2img, methods=["POST"]), Route("/sdapi/v1/img2img", img2img, methods=["POST"]),
    Route("/sdapi/v1/progress", progress), Route("/sdapi/v1/interrupt", interrupt, methods=["POST"]),
    Route("/sdapi/v1/skip", interrupt, methods=["POST"]),
]  # fmt: skip
