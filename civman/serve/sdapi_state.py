"""AUTOMATIC1111's HTTP API: models, options, lists of names, and reading an image's settings."""

import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from civman import __version__
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.samplers import SAMPLERS
from civman.domain.catalog import Asset, ModelType
from civman.errors import AmbiguousRef, NotFound, UsageError
from civman.index import AssetFilter
from civman.library import Library
from civman.serve.render_requests import image_bytes
from civman.serve.serving import json_body, serving

_LATENT = ("Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
           "Latent (nearest-exact)")  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "eta_noise_seed_delta": 0, "samples_format": "png",
    "inpainting_mask_weight": 1.0, "img2img_color_correction": False, "face_restoration_model": None,
    "show_progress_every_n_steps": 10, "live_previews_enable": True, "sd_lora": "None",
}  # fmt: skip


def title(asset: Asset) -> str:
    """Return a checkpoint's title for A1111's clients: its file name and the first ten digits of its SHA-256."""
    return f"{asset.name} [{asset.blob.sha256[:10]}]"


def checkpoints(library: Library) -> list[Asset]:
    """Return the stored checkpoints, sorted by name."""
    found = library.list(AssetFilter(types=(ModelType.CHECKPOINT,)))
    return sorted(found, key=lambda asset: (asset.name.lower(), asset.blob.sha256))


def chosen(library: Library, named: str) -> Asset:
    """Find a checkpoint by title, file name, stem, hash or path, or else by a part of its title if only one matches.

    Raises: NotFound, AmbiguousRef.
    """
    everything = checkpoints(library)
    text = named.strip()
    wanted = text.lower()
    for means in (
        lambda asset: wanted == title(asset).lower(),
        lambda asset: wanted in (asset.name.lower(), Path(asset.name).stem.lower()),
        lambda asset: len(wanted) in (8, 10, 64) and asset.blob.sha256.startswith(wanted),
        lambda asset: Path(re.split(r"[/\\]", text)[-1]).name.lower() == asset.name.lower(),
        lambda asset: wanted in title(asset).lower(),
    ):
        found = [asset for asset in everything if means(asset)]
        if len(found) == 1:
            return found[0]
        if found:
            raise AmbiguousRef(
                f"`{text}` matches several checkpoints", hint=f"use one of: {', '.join(map(title, found[:8]))}",
            )  # fmt: skip
    raise NotFound(
        f"no checkpoint in the library is called `{text}`",
        hint="`civman list --type Checkpoint` lists the checkpoints in the library",
    )


def checkpoint_in_force(library: Library, settings: dict[str, Any]) -> Asset:
    """Return the checkpoint to render with: the one in `settings`, the library's default, or the first by name.

    Raises: NotFound: there is no checkpoint.
    """
    named = settings.get("sd_model_checkpoint")
    if named:
        return chosen(library, str(named))
    everything = checkpoints(library)
    try:
        ref = library.pictures.default_checkpoint().ref
        (asset,) = [each for each in library.files.find(ref) if each in everything][:1]
    except (UsageError, NotFound, ValueError):
        if not everything:
            raise NotFound(
                "the library has no checkpoint", hint="add a checkpoint with `civman download` or `civman import`"
            ) from None
        return everything[0]
    return asset


async def get_options(request: Request) -> Response:
    """Return the current options."""
    parts = serving(request)

    def find(library: Library) -> dict[str, Any]:
        try:
            asset = checkpoint_in_force(library, parts.options)
        except NotFound:
            return {**_DEFAULTS, **parts.options, "sd_model_checkpoint": None, "sd_checkpoint_hash": None}
        return {
            **_DEFAULTS, **parts.options, "sd_model_checkpoint": title(asset), "sd_checkpoint_hash": asset.blob.sha256,
        }  # fmt: skip

    return JSONResponse(await parts.library.run(find))


async def set_options(request: Request) -> Response:
    """Change options. If they name a checkpoint that is not stored, the request fails and nothing changes."""
    parts, given = serving(request), await json_body(request)
    if len(str(given)) > 1_000_000:
        raise UsageError("the options have more than 1,000,000 characters")

    def change(library: Library) -> None:
        if given.get("sd_model_checkpoint"):
            given["sd_model_checkpoint"] = title(chosen(library, str(given["sd_model_checkpoint"])))
        given.pop("sd_checkpoint_hash", None)
        parts.options.update({str(key): value for key, value in given.items()})

    await parts.library.run(change)
    return JSONResponse(None)


async def sd_models(request: Request) -> Response:
    """List the stored checkpoints."""
    found = await serving(request).library.run(checkpoints)
    return JSONResponse([
        {"title": title(asset), "model_name": Path(asset.name).stem, "hash": asset.blob.sha256[:10],
         "sha256": asset.blob.sha256, "filename": asset.path, "config": None}
        for asset in found
    ])  # fmt: skip


async def loras(request: Request) -> Response:
    """List the stored LoRAs and other adapters."""
    kinds = (ModelType.LORA, ModelType.LOCON, ModelType.DORA)
    found = await serving(request).library.run(lambda library: library.list(AssetFilter(types=kinds)))
    return JSONResponse([
        {"name": Path(asset.name).stem, "alias": asset.alias or Path(asset.name).stem, "path": asset.path,
         "metadata": {"trigger_words": list(asset.trigger_words)}}
        for asset in found
    ])  # fmt: skip


async def embeddings(request: Request) -> Response:
    """List the stored embeddings."""
    wanted = AssetFilter(types=(ModelType.EMBEDDING,))
    found = await serving(request).library.run(lambda library: library.list(wanted))
    value = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return JSONResponse({"loaded": {Path(asset.name).stem: value for asset in found}, "skipped": {}})


async def sd_vae(request: Request) -> Response:
    """List the stored VAEs."""
    wanted = AssetFilter(types=(ModelType.VAE,))
    found = await serving(request).library.run(lambda library: library.list(wanted))
    return JSONResponse([{"model_name": asset.name, "filename": asset.path} for asset in found])


async def samplers(_: Request) -> Response:
    """List the samplers."""
    return JSONResponse([{"name": each.name, "aliases": [], "options": {}} for each in SAMPLERS])


async def schedulers(_: Request) -> Response:
    """List the noise schedules."""
    automatic = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0,
                 "need_inner_model": False}  # fmt: skip
    return JSONResponse([
        automatic,
        *({**automatic, "name": each.value.lower().replace(" ", "_"), "label": each.value} for each in Schedule),
    ])  # fmt: skip


async def upscalers(request: Request) -> Response:
    """List the upscalers: two built-in ones, and the stored models."""
    wanted = AssetFilter(types=(ModelType.UPSCALER,))
    found = await serving(request).library.run(lambda library: library.list(wanted))
    own = [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in ("None", "Lanczos", "Nearest")
    ]
    return JSONResponse([
        *own,
        *({"name": Path(asset.name).stem, "model_name": asset.name, "model_path": asset.path, "model_url": None,
           "scale": 4} for asset in found),
    ])  # fmt: skip


async def latent_upscale_modes(_: Request) -> Response:
    """List the methods for upscaling latents."""
    return JSONResponse([{"name": name} for name in _LATENT])


async def png_info(request: Request) -> Response:
    """Read the settings in an image."""
    import tempfile

    data = image_bytes(str((await json_body(request)).get("image") or ""))

    def read(library: Library) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image")
            path.write_bytes(data)
            report = library.pictures.describe(path)
        text = report.carried.parameters or ""
        return {"info": text, "items": {"parameters": text} if text else {}, "parameters": {}}

    return JSONResponse(await serving(request).library.run(read))


async def memory(request: Request) -> Response:
    """Return the approximate memory in bytes that the loaded models need."""
    kept = serving(request).engine.kept
    return JSONResponse({"ram": {"used": kept[1]}, "cuda": {"error": "not measured"}})


async def empty_list(_: Request) -> Response:
    """Return an empty list, for kinds of models and extensions that civman does not have."""
    return JSONResponse([])


async def nothing(_: Request) -> Response:
    """Do nothing: there is no list to refresh, because civman reads the library again for every request."""
    return JSONResponse(None)


async def scripts(_: Request) -> Response:
    """Return an empty list of scripts, because civman has no scripts."""
    return JSONResponse({"txt2img": [], "img2img": []})


async def cmd_flags(_: Request) -> Response:
    """Return the command-line flags of A1111 that clients check."""
    return JSONResponse({"api": True, "api_auth": None, "nowebui": True, "civman": __version__})


async def unload(request: Request) -> Response:
    """Unload all models to free their memory, unless a render is running."""
    serving(request).engine.unload()
    return JSONResponse({})


async def not_offered(_: Request) -> Response:
    """Refuse a request to describe an image (A1111's interrogate): civman has no such feature."""
    detail = "civman does not describe images"
    return JSONResponse({"error": "NotImplemented", "detail": detail, "body": "", "errors": detail}, 501)


async def config(_: Request) -> Response:
    """Return the configuration that Gradio's clients request when they start."""
    return JSONResponse({"version": __version__, "mode": "blocks", "components": [], "dependencies": []})


_V1 = "/sdapi/v1"
ROUTES = [
    Route(f"{_V1}/options", get_options, methods=["GET"]), Route(f"{_V1}/options", set_options, methods=["POST"]),
    Route(f"{_V1}/sd-models", sd_models), Route(f"{_V1}/loras", loras), Route(f"{_V1}/embeddings", embeddings),
    Route(f"{_V1}/sd-vae", sd_vae), Route(f"{_V1}/sd-modules", sd_vae), Route(f"{_V1}/samplers", samplers),
    Route(f"{_V1}/schedulers", schedulers), Route(f"{_V1}/upscalers", upscalers),
    Route(f"{_V1}/latent-upscale-modes", latent_upscale_modes), Route(f"{_V1}/png-info", png_info, methods=["POST"]),
    Route(f"{_V1}/memory", memory),
    *(Route(f"{_V1}/{name}", empty_list)
      for name in ("prompt-styles", "face-restorers", "hypernetworks", "realesrgan-models", "script-info")),
    *(Route(f"{_V1}/{name}", nothing, methods=["POST"])
      for name in ("refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings", "reload-checkpoint")),
    Route(f"{_V1}/unload-checkpoint", unload, methods=["POST"]), Route(f"{_V1}/scripts", scripts),
    Route(f"{_V1}/cmd-flags", cmd_flags), Route(f"{_V1}/interrogate", not_offered, methods=["POST"]),
    Route("/config", config),
]  # fmt: skip
