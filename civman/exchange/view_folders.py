"""Determine the kind of a file, and the folder in which a program expects files of this kind.

The folders are listed in view_folders.json. Source: the programs' defaults (ComfyUI `folder_paths`, A1111 and Forge
`models/` and `embeddings/`, SwarmUI `Paths` settings); InvokeAI scans any folder and identifies files itself.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

from civman.domain.catalog import Asset, ModelType
from civman.domain.file_suffixes import MODEL_SUFFIXES
from civman.errors import UsageError


class Slot(StrEnum):
    """A kind of file for which a program has a folder."""

    CHECKPOINT = "checkpoint"
    DIFFUSION_MODEL = "diffusion-model"
    """A checkpoint without text encoder and VAE."""
    ADAPTER = "adapter"
    VAE = "vae"
    EMBEDDING = "embedding"
    CONTROLNET = "controlnet"
    UPSCALER = "upscaler"
    TEXT_ENCODER = "text-encoder"
    CLIP_VISION = "clip-vision"
    HYPERNETWORK = "hypernetwork"
    MOTION_MODULE = "motion-module"
    IP_ADAPTER = "ip-adapter"


class Companion(StrEnum):
    """A kind of small file that a program reads next to a model."""

    CIVITAI_INFO = "civitai-info"
    PREVIEW = "preview"
    WEBUI_JSON = "webui-json"
    SWARM_JSON = "swarm-json"
    CONFIG = "config"
    """The model's own config file, without which some checkpoints are loaded wrongly. Views for every program include
    it.
    """


@dataclass(frozen=True, slots=True)
class Layout:
    """A program's folder layout. `place` describes which folder of the program the view should be."""

    name: str
    place: str
    folders: dict[Slot, str]
    companions: tuple[Companion, ...]


_BY_KIND = {slot.value: slot for slot in Slot}
_BY_TYPE = {
    ModelType.CHECKPOINT: Slot.CHECKPOINT,
    ModelType.LORA: Slot.ADAPTER,
    ModelType.LOCON: Slot.ADAPTER,
    ModelType.DORA: Slot.ADAPTER,
    ModelType.EMBEDDING: Slot.EMBEDDING,
    ModelType.HYPERNETWORK: Slot.HYPERNETWORK,
    ModelType.CONTROLNET: Slot.CONTROLNET,
    ModelType.UPSCALER: Slot.UPSCALER,
    ModelType.MOTION_MODULE: Slot.MOTION_MODULE,
    ModelType.VAE: Slot.VAE,
    ModelType.TEXT_ENCODER: Slot.TEXT_ENCODER,
    ModelType.CLIP: Slot.TEXT_ENCODER,
    ModelType.UNET: Slot.DIFFUSION_MODEL,
    ModelType.CLIP_VISION: Slot.CLIP_VISION,
}


def layouts() -> dict[str, Layout]:
    """All layouts by name."""
    raw = json.loads(files("civman.exchange").joinpath("view_folders.json").read_text(encoding="utf-8"))
    return {
        name: Layout(
            name,
            facts["place"],
            {Slot(slot): folder for slot, folder in facts["folders"].items()},
            tuple(Companion(companion) for companion in facts["companions"]),
        )
        for name, facts in raw.items()
    }


def layout_named(name: str) -> Layout:
    """The layout with this name. Raises: UsageError."""
    known = layouts()
    try:
        return known[name.lower()]
    except KeyError:
        raise UsageError(f"`{name}` is not a layout", hint=f"choose one of: {', '.join(known)}") from None


def slot_of(asset: Asset) -> Slot | None:
    """Determine a file's kind from its tensors, else from CivitAI's type; None if programs have no folder for it."""
    if asset.blob.suffix not in MODEL_SUFFIXES:
        return None
    slot = _BY_KIND.get(asset.facts.kind) or _BY_TYPE.get(asset.type)
    is_bare = {"no-text-encoder", "no-vae"} <= set(asset.facts.flags)
    if slot is Slot.CHECKPOINT and (is_bare or asset.blob.suffix == ".gguf"):
        return Slot.DIFFUSION_MODEL
    return slot
