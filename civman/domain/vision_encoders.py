"""Reads the layout and dimensions of a CLIP vision encoder from a file's header.

Two layouts are in use: that of transformers (`vision_model.`) and that of OpenCLIP (`visual.`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]

_TITLES: Final = {(1280, 1024): "ViT-H/14", (1664, 1280): "ViT-bigG/14", (1024, 768): "ViT-L/14", (768, 512): "ViT-B"}
"""Maps (width, projection width) of an encoder to its usual name."""
_HEADS: Final = {1664: 16, 1280: 16}
"""Maps widths to the number of attention heads, for encoders whose heads are not 64 wide. Source: OpenCLIP's configs.
"""
_QUICK: Final = (768, 1024)
"""The widths of OpenAI's encoders, which use QuickGELU: GELU approximated with a sigmoid."""
_LAYER: Final = {
    "transformers": re.compile(r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.weight"),
    "open_clip": re.compile(r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.weight"),
}


@dataclass(frozen=True, slots=True)
class VisionEncoder:
    """The dimensions of a CLIP vision encoder. `layout` is "transformers" or "open_clip"."""

    layout: str
    width: int
    projection: int
    layers: int
    inner: int
    patch: int
    image_size: int

    @property
    def title(self) -> str:
        """The encoder's usual name; if it has none, its widths."""
        return _TITLES.get((self.width, self.projection), f"of width {self.width}, projecting to {self.projection}")

    @property
    def slug(self) -> str:
        """The encoder's usual name as a variant, such as "vit-h"; "" if it has none."""
        return _TITLES.get((self.width, self.projection), "").casefold().partition("/")[0]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of transformers' CLIPVisionConfig."""
        is_quick = self.layout == "transformers" and self.width in _QUICK
        return {
            "hidden_size": self.width, "projection_dim": self.projection, "num_hidden_layers": self.layers,
            "intermediate_size": self.inner, "patch_size": self.patch, "image_size": self.image_size,
            "num_attention_heads": _HEADS.get(self.width, max(self.width // 64, 1)),
            "hidden_act": "quick_gelu" if is_quick else "gelu", "layer_norm_eps": 1e-5,
        }  # fmt: skip


def read_vision_encoder(shapes: Shapes) -> VisionEncoder | None:
    """Read the dimensions of a CLIP vision encoder; None if the tensors do not make up an encoder with a projection."""
    is_open = "visual.conv1.weight" in shapes
    names = (
        ("visual.conv1.weight", "visual.positional_embedding", "visual.class_embedding", "visual.proj")
        if is_open
        else (
            "vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight",
            "vision_model.embeddings.class_embedding", "visual_projection.weight",
        )
    )  # fmt: skip
    patches, places, first, projection = (shapes.get(name, ()) for name in names)
    layout = "open_clip" if is_open else "transformers"
    layers = {int(match[1]): shapes[name] for name in shapes if (match := _LAYER[layout].fullmatch(name))}
    if (
        len(patches) != 4
        or len(places) != 2
        or len(projection) != 2
        or not first
        or sorted(layers) != [*range(len(layers))]
    ):
        return None
    side = isqrt(max(places[0] - 1, 0))
    if not layers or side * side != places[0] - 1:
        return None
    return VisionEncoder(
        layout, patches[0], projection[1 if is_open else 0], len(layers), layers[0][0], patches[2], side * patches[2]
    )


def title_for(*, projection: int | None = None, width: int | None = None) -> str:
    """Return an encoder's usual name, looked up by its projection width or by the width of its hidden states."""
    if projection is not None:
        return next(
            (title for (_, size), title in _TITLES.items() if size == projection), f"projecting to {projection}"
        )
    return next((title for (size, _), title in _TITLES.items() if size == width), f"{width} wide")
