"""Reads from an IP-Adapter's header which kind it is, which image features it needs, and which UNets it fits.

A file has an image projection (`image_proj.`) and, for each cross-attention layer of a UNet, the layers that compute
keys and values from image tokens (`ip_adapter.1.to_k_ip.weight`). The tensors of the projection have the names of
IP-Adapter's authors or those of diffusers.

Source: Ye et al. 2023, "IP-Adapter", and the layouts of the authors' files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from civman.domain.vision_encoders import VisionEncoder, title_for
from civman.errors import CannotRender, Cause

Shapes = Mapping[str, tuple[int, ...]]

_PROJECTION: Final = "image_proj."
_KEY: Final = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")
_RENAMED: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^image_embeds\.", "proj."), (r"^ff\.net\.0\.proj\.", "proj.0."), (r"^ff\.net\.2\.", "proj.2."),
        (r"^layers\.(\d+)\.ln0\.", r"layers.\1.0.norm1."), (r"^layers\.(\d+)\.ln1\.", r"layers.\1.0.norm2."),
        (r"^layers\.(\d+)\.attn\.to_out\.0\.", r"layers.\1.0.to_out."), (r"^layers\.(\d+)\.attn\.", r"layers.\1.0."),
        (r"^layers\.(\d+)\.ff\.0\.", r"layers.\1.1.0."), (r"^layers\.(\d+)\.ff\.1\.net\.0\.proj\.", r"layers.\1.1.1."),
        (r"^layers\.(\d+)\.ff\.1\.net\.2\.", r"layers.\1.1.3."),
    )
)  # fmt: skip
"""Maps diffusers' names of modules to the names that IP-Adapter's authors use."""
_FACE_WIDTH: Final = 512
"""The width of insightface's face embeddings."""
_OF_FACES: Final = {
    "faceid": "FaceID", "faceid-plus": "FaceID Plus", "instantid": "InstantID",
}  # fmt: skip
_ATTENTION: Final = re.compile(
    r"(?:model\.diffusion_model\.)?(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:\d+\.)?"
    r"transformer_blocks\.(\d+)\.attn2\.to_k\.weight"
)
_ORDER: Final = ("input_blocks", "output_blocks", "middle_block")
"""The parts of a UNet in the order in which an IP-Adapter numbers their attention layers."""


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """An IP-Adapter that civman can use."""

    kind: str
    """The kind of IP-Adapter: "plain", "plus" or "full-face"."""
    width: int
    """The width of the image tokens, equal to the width of the text tokens in the UNet's cross-attention."""
    input_width: int
    """The width of the features that the IP-Adapter reads from the image encoder."""
    projection: Mapping[str, str] = field(repr=False)
    """Maps the original name of each tensor of the image projection to its name in the file."""
    layers: tuple[int, ...] = field(repr=False)
    """The numbers of the attention layers in the tensor names, in the order of the UNet's layers."""

    @property
    def reads_embedding(self) -> bool:
        """Whether the IP-Adapter reads the encoder's image embedding instead of the hidden states of all patches."""
        return self.kind == "plain"

    @property
    def encoder_title(self) -> str:
        """The usual name of the CLIP vision encoder that the IP-Adapter needs."""
        size = {"projection" if self.reads_embedding else "width": self.input_width}
        return f"CLIP vision encoder {title_for(**size)}"

    def takes(self, encoder: VisionEncoder) -> bool:
        """Whether the IP-Adapter was made for a vision encoder with the widths of `encoder`."""
        return self.input_width == (encoder.projection if self.reads_embedding else encoder.width)

    def keys(self, number: int) -> tuple[str, str]:
        """Return the names of the key tensor and the value tensor for attention layer `number`."""
        return f"ip_adapter.{number}.to_k_ip.weight", f"ip_adapter.{number}.to_v_ip.weight"


def ip_adapter_kind(shapes: Shapes) -> str:
    """Return the kind of an IP-Adapter; "" if the tensors are not those of an IP-Adapter.

    The kinds are "plain", "plus", "full-face", "faceid", "faceid-plus" and "instantid".
    """
    named = _named(shapes)
    if any(name.startswith("perceiver_resampler.") for name in named):
        return "faceid-plus"
    if "latents" in named:
        return "instantid" if shapes.get(named.get("proj_in.weight", ""), ())[-1:] == (_FACE_WIDTH,) else "plus"
    if "proj.0.weight" in named:
        return "full-face" if "proj.3.weight" in named else "faceid" if "norm.weight" in named else ""
    return "plain" if "proj.weight" in named and "norm.weight" in named else ""


def read_ip_adapter(shapes: Shapes, name: str) -> IpAdapter:
    """Parse an IP-Adapter's tensor names and shapes. `name`: the file's name, for messages.

    Raises: CannotRender: civman does not support this kind (`unknown-family`), or a tensor is missing
    (`missing-tensor`).
    """
    kind, named = ip_adapter_kind(shapes), _named(shapes)
    if kind in _OF_FACES:
        raise CannotRender(
            f"civman cannot use `{name}`: {_OF_FACES[kind]} adapters need the face embeddings that insightface "
            "computes, but the published models of insightface are for non-commercial research only",
            hint="choose IP-Adapter plus-face or full-face, which do not need insightface",
            code=Cause.UNKNOWN_FAMILY,
        )  # fmt: skip
    layers = tuple(sorted(int(match[1]) for each in shapes if (match := _KEY.fullmatch(each))))
    if not kind or not layers:
        raise CannotRender(
            f"civman cannot use `{name}`: it lacks the image projection or the attention layers of an IP-Adapter for "
            "SD 1 or SDXL",
            hint="choose an IP-Adapter for SD 1 or SDXL: plain, light, plus, plus-face or full-face",
            code=Cause.UNKNOWN_FAMILY,
        )  # fmt: skip
    first, last = {
        "plain": ("proj.weight", "norm.weight"), "plus": ("proj_in.weight", "norm_out.weight"),
        "full-face": ("proj.0.weight", "proj.3.weight"),
    }[kind]  # fmt: skip
    needed = [*_needed(kind, named), *(f"ip_adapter.{number}.to_v_ip.weight" for number in layers)]
    missing = [each for each in needed if each not in named and each not in shapes]
    if missing:
        raise CannotRender(
            f"the IP-Adapter `{name}` lacks the tensor `{missing[0]}`",
            hint="the file is incomplete; download it again",
            code=Cause.MISSING_TENSOR, missing=missing,
        )  # fmt: skip
    return IpAdapter(kind, shapes[named[last]][0], shapes[named[first]][1], named, layers)


def unusable(shapes: Shapes, name: str) -> str:
    """Return why civman cannot render with an IP-Adapter on any checkpoint; "" if it can."""
    try:
        read_ip_adapter(shapes, name)
    except CannotRender as error:
        return error.message
    return ""


def _needed(kind: str, named: Mapping[str, str]) -> list[str]:
    if kind == "plain":
        return [f"{module}.{leaf}" for module in ("proj", "norm") for leaf in ("weight", "bias")]
    if kind == "full-face":
        return [f"proj.{number}.{leaf}" for number in (0, 2, 3) for leaf in ("weight", "bias")]
    outer = [f"{module}.{leaf}" for module in ("proj_in", "proj_out", "norm_out") for leaf in ("weight", "bias")]
    blocks = sorted({int(name.split(".")[1]) for name in named if name.startswith("layers.")})
    inner = []
    for block in range(max(blocks, default=0) + 1):
        joined = f"layers.{block}.0.to_kv.weight" in named
        heads = ("to_q", "to_kv", "to_out") if joined else ("to_q", "to_k", "to_v", "to_out")
        inner += [f"layers.{block}.0.{module}.weight" for module in heads]
        inner += [
            f"layers.{block}.{norm}.{leaf}" for norm in ("0.norm1", "0.norm2", "1.0") for leaf in ("weight", "bias")
        ]
        inner += [f"layers.{block}.1.{number}.weight" for number in (1, 3)]
    return [*outer, *inner]


def _named(shapes: Shapes) -> dict[str, str]:
    """Map the original name of each tensor of the image projection, without its prefix, to its name in the file.

    The original names are those in the files of IP-Adapter's authors.
    """
    found = {}
    for name in shapes:
        if name.startswith(_PROJECTION):
            plain = name.removeprefix(_PROJECTION)
            for pattern, new in _RENAMED:
                plain = pattern.sub(new, plain)
            found[plain] = name
    if f"{_PROJECTION}ff.net.0.proj.weight" in shapes:
        # with diffusers' names, full-face and FaceID adapters differ only in the number of tokens
        out, norm = (shapes.get(found.get(name, ""), (0,))[0] for name in ("proj.2.weight", "norm.weight"))
        if out == norm:
            found |= {
                f"proj.3.{leaf}": found.pop(f"norm.{leaf}") for leaf in ("weight", "bias") if f"norm.{leaf}" in found
            }
    return found


def cross_attention(checkpoint: Shapes) -> list[tuple[int, ...]]:
    """The shapes of the key projections in a UNet's cross-attention (original layout), in IP-Adapter's order."""
    found = {}
    for name, shape in checkpoint.items():
        if match := _ATTENTION.fullmatch(name):
            found[_ORDER.index(match[1]), int(match[2]), int(match[3])] = shape
    return [found[place] for place in sorted(found)]


def attention_problem(checkpoint: Shapes, adapter: Shapes) -> str:
    """Return why an IP-Adapter does not fit a UNet, judged by the shapes of all cross-attention layers; "" if it fits.

    The result is also "" if the checkpoint has no cross-attention in the original layout.
    """
    ours = cross_attention(checkpoint)
    numbers = sorted(int(match[1]) for each in adapter if (match := _KEY.fullmatch(each)))
    theirs = [tuple(adapter[f"ip_adapter.{number}.to_k_ip.weight"]) for number in numbers]
    if not ours or ours == theirs:
        return ""
    if len(ours) != len(theirs):
        return f"the IP-Adapter was made for {len(theirs)} cross-attention layers, but the checkpoint has {len(ours)}"
    place = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    return (
        f"cross-attention layer {place + 1} has the shape {_shown(theirs[place])} in the adapter, "
        f"but {_shown(ours[place])} in the checkpoint"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
