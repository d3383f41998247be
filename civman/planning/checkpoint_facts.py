"""Reads from a checkpoint's header what rendering depends on: model family, native size, prediction type.

Does not import torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from civman.diffusion.checkpoint_names import UNET, VAE, Config
from civman.diffusion.component_layouts import Source, own_vae_names, text_sources, unet_sources, vae_sources
from civman.diffusion.component_shapes import parameter_shapes, require_tensors, require_widths
from civman.diffusion.families.flow_family import PREFIXES
from civman.diffusion.families.registry import FLOW_FAMILIES, RENDERED, UNET_FAMILIES, Family, unet_family_of
from civman.diffusion.families.unet_family import UNetFamily
from civman.diffusion.unet_configs import component_configs, require_known_rules, require_parts, text_prefix
from civman.domain.architecture import Architecture, Kind
from civman.domain.files.weight_forms import INPUT_SCALES, MARKER, SCALES
from civman.errors import CannotRender, Cause, UsageError
from civman.planning.find_files import Found

_SIZE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")
_V_LABELS = ("SD 2.0 768", "SD 2.1 768")
"""CivitAI's labels for SD 2 checkpoints with v-prediction (768 px). The files do not contain the prediction type."""


_ODD_INPUTS = {
    5: "the model also reads a depth map", 7: "the model also reads a small picture to upscale",
    8: "the model also reads a picture to edit, like InstructPix2Pix",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts about a checkpoint that rendering depends on.

    `clip_layers`: the number of layers of the text encoder; None for families in which clip skip has no effect.
    """

    family: Family
    title: str
    native_size: int
    prediction: str
    is_zero_snr: bool
    clip_layers: int | None
    notices: tuple[str, ...]
    vae_reads_pictures: bool = True
    """Whether the VAE has an encoder; False if it has only a decoder."""
    input_channels: int = 4
    """The number of input channels of the UNet: 4, or 9 for an inpainting model."""


def read_checkpoint(
    found: Found, *, vae: Found | None = None, config: str = "", prediction: str | None = None
) -> Checkpoint:
    """Read the facts about a checkpoint from its header. `prediction` and `config` take precedence over the header.

    `vae`: another VAE to use instead of the checkpoint's own.

    Raises: CannotRender: civman cannot render this model family, a component or a tensor is missing from the file, or
        the widths of its parts do not match. InvalidModelFile: a tensor has a wrong shape.
    """
    shapes, metadata = found.header.shapes, found.header.metadata
    require_known_rules(shapes, found.inspected.name)
    _require_rendered_family(found)
    family = unet_family_of(shapes)
    configs = _configs(found, json.loads(config) if config else {}, vae)
    require_parts(family, configs, found.inspected.name)
    channels = configs["unet"]["in_channels"]
    if channels not in (4, 9):
        reason = _ODD_INPUTS.get(channels, "the additional input is of an unknown kind")
        raise CannotRender(
            f"the UNet of `{found.inspected.name}` has {channels} input channels, because {reason}; civman supports 4 "
            "and 9",
            code=Cause.ODD_INPUT,
            channels=channels,
        )
    require_widths(configs, found.inspected.name)
    left = _require_shapes(found, vae, family, configs)
    flags, label = found.identity.flags, found.inspected.label
    notices: tuple[str, ...] = ()
    if left:
        notices = (f"civman ignores {len(left)} of the UNet tensors in the file, such as `{left[0]}`",)
    is_silent = prediction is None and family.is_silent_about_prediction and "modelspec.prediction_type" not in metadata
    if prediction is None:
        prediction = "v_prediction" if "v-prediction" in flags or label in _V_LABELS else family.prediction
    if is_silent and prediction == "epsilon":
        notices = (
            *notices,
            "the file does not contain its prediction type, so epsilon is assumed (--prediction changes this)",
        )
    native = native_size(metadata)
    if native is None:
        native = family.native_size_of(prediction)
    return Checkpoint(
        family, family.title, native, prediction,
        "zero-terminal-snr" in flags,
        int(configs["text_encoder"]["num_hidden_layers"]) if family.takes_clip_skip else None, notices,
        vae_reads_pictures=not configs["vae"].get("decoder_only"), input_channels=channels,
    )  # fmt: skip


def _require_rendered_family(found: Found) -> None:
    """Refuse a transformer of a family, or in a layout, that civman recognises by its tensors but cannot render.

    Raises: CannotRender.
    """
    seen = found.identity
    transformers = {family.architecture: family for family in FLOW_FAMILIES}
    if seen.kind is not Kind.CHECKPOINT or f"{UNET}input_blocks.0.0.weight" in found.header.shapes:
        return
    if (family := transformers.get(seen.architecture)) is not None:
        names = found.header.shapes
        missing = [name for name in family.probes if not any(prefix + name in names for prefix in PREFIXES)]
        why = f"it has no tensor `{missing[0]}`" if missing else "it has tensors that those models do not have"
        raise CannotRender(
            f"`{found.inspected.name}` is a model of the family {family.title}, but not of a kind that civman renders: "
            f"{why}",
            hint="use the original single file, as CivitAI and ComfyUI have it; files in the folder `transformer` of "
            "a diffusers model have other tensors", code=Cause.UNKNOWN_FAMILY,
        )  # fmt: skip
    if seen.architecture not in (*RENDERED, Architecture.UNKNOWN):
        raise CannotRender(
            f"`{found.inspected.name}` is a model of the family {seen.architecture}, which civman does not render",
            hint="civman renders " + ", ".join([
                *(family.title for family in UNET_FAMILIES), *(family.title for family in FLOW_FAMILIES),
            ]), code=Cause.UNKNOWN_FAMILY,
        )  # fmt: skip


def differing_config(found: Found, folder: Path) -> str:
    """Return, as canonical JSON, the values in config files that differ from those that the checkpoint's shapes imply.

    The files are `<component>/config.json` in `folder`. The text is empty if no value differs. Raises: UsageError
    (`bad-config`): the files do not exist or cannot be read. CannotRender: as in `read_checkpoint`.
    """
    files = [(name, folder.expanduser() / name / "config.json") for name in
             ("unet", "vae", "text_encoder", "text_encoder_2")]  # fmt: skip
    known = _configs(found, {})
    stated: dict[str, Config] = {}
    try:
        for name, file in files:
            if file.is_file():
                said = json.loads(file.read_text("utf-8"))
                own = known.get(name, {})
                different = {
                    key: said[key]
                    for key in own
                    if key in said and said[key] != own[key] and not key.endswith("_token_id")
                }
                stated |= {name: different} if different else {}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read `{file}`: {error}", code=Cause.BAD_CONFIG) from error
    if not any(file.is_file() for _, file in files):
        raise UsageError(
            f"`{folder}` contains no config.json of a model component",
            hint="pass a folder with files such as unet/config.json",
            code=Cause.BAD_CONFIG,
        )
    return json.dumps(stated, sort_keys=True, separators=(",", ":")) if stated else ""


def _configs(found: Found, stated: Mapping[str, Config], vae: Found | None = None) -> dict[str, Any]:
    shapes = found.header.shapes
    own, names = _vae_names(found, vae)
    of_vae = {plain: own.header.shapes[actual] for plain, actual in names.items()}
    return component_configs(unet_family_of(shapes), shapes, of_vae, found.header.metadata, stated)


def _vae_names(found: Found, vae: Found | None) -> tuple[Found, dict[str, str]]:
    """Return the file that contains the VAE, and a mapping from original VAE tensor names to the names in that file."""
    if vae is not None:
        return vae, own_vae_names(vae.header.shapes, vae.inspected.name)
    return found, {name.removeprefix(VAE): name for name in found.header.shapes if name.startswith(VAE)}


def _require_shapes(found: Found, vae: Found | None, family: UNetFamily, configs: Mapping[str, Config]) -> list[str]:
    """Check that the files have all tensors that the components need, in the right shapes.

    Returns the names of the UNet's tensors that are not used.

    Raises: CannotRender, InvalidModelFile.
    """
    shapes, encoders = found.header.shapes, family.text_encoders
    left: list[str] = []
    for component, config in configs.items():
        wanted, file = parameter_shapes(component, config), found
        if component == "unet":
            sources = unet_sources(wanted, config)
            used = {source.name for source in sources.values()}
            left = sorted(name for name in shapes if name.startswith(UNET) and name not in used)
        elif component == "vae":
            file, names = _vae_names(found, vae)
            plain = vae_sources(wanted, config, "")
            sources = {each: Source(names.get(source.name, source.name)) for each, source in plain.items()}
        else:
            usual = encoders[component]
            sources = text_sources(wanted, usual["layout"], text_prefix(usual, shapes) or "", shapes)
        require_tensors(component, wanted, sources, file.header.shapes, file.inspected.name)
    if not family.is_xl and (odd := [name for name in left if name.startswith(f"{UNET}label_emb.")]):
        raise CannotRender(
            f"the UNet of `{found.inspected.name}` has an additional input, like those of unCLIP and "
                    f"upscaling models (`{odd[0]}`), which civman does not support",
            hint="choose another checkpoint of this model family", code=Cause.ODD_INPUT,
        )  # fmt: skip
    return [name for name in left if not name.endswith((*SCALES, *INPUT_SCALES, MARKER))]


def native_size(metadata: Mapping[str, str], multiple: int = 8) -> int | None:
    """Return the native size: the side in pixels of a square with as many pixels as the resolution in the metadata.

    None if the metadata contains no resolution.
    """
    said = _SIZE.fullmatch(metadata.get("modelspec.resolution", "").strip())
    return (int((int(said[1]) * int(said[2])) ** 0.5) // multiple * multiple or None) if said else None
