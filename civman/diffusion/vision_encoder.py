"""CLIP vision encoders: load one from a file in OpenCLIP's or transformers' layout, and preprocess pictures for it.

Source: Radford et al. 2021, "CLIP"; pictures are preprocessed as by CLIPImageProcessor in transformers.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from civman.diffusion.clip_text_model import Layers, norm
from civman.diffusion.component_layouts import Source, open_clip_layer
from civman.diffusion.loader import unfilled
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.pixels import Pixels
from civman.domain.vision_encoders import read_vision_encoder
from civman.errors import CannotRender, Cause

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_SPREAD: Final = (0.26862954, 0.26130258, 0.27577711)
"""The mean and the standard deviation of red, green and blue (0 to 1) that normalise CLIP's input."""
_OPEN_CLIP: Final = {
    "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias", "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}  # fmt: skip


class ClipVision(nn.Module):
    """A CLIP vision encoder, with the parameter names and results of transformers' CLIPVisionModelWithProjection."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.vision_model = _Vision(self.config)
        self.visual_projection = nn.Linear(self.config.hidden_size, self.config.projection_dim, bias=False)

    def embedding(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, side, side) to image embeddings (B, projection)."""
        model = self.vision_model
        first = model.layers(pixels, len(model.encoder.layers))[:, 0]
        projected: Tensor = self.visual_projection(model.post_layernorm(first))
        return projected

    def patches(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, side, side) to the second-to-last layer's output (B, patches + 1, width)."""
        return self.vision_model.layers(pixels, len(self.vision_model.encoder.layers) - 1)


class _Vision(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = norm(config)
        self.encoder = Layers(config, is_causal=False)
        self.post_layernorm = norm(config)

    def layers(self, pixels: Tensor, count: int) -> Tensor:
        """Return the output of the first `count` layers."""
        hidden: Tensor = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers[:count]:
            hidden = layer(hidden)
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, side, stride=side, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // side) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        whole = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return whole + self.position_embedding.weight


def load_vision_encoder(path: Path, *, device: torch.device, dtype: torch.dtype) -> ClipVision:
    """Load a CLIP vision encoder from a file in OpenCLIP's or transformers' layout.

    Raises: CannotRender (`missing-tensor`): a tensor is missing. InvalidModelFile: the file cannot be read.
    """
    weights = Weights(path)
    found = read_vision_encoder(weights.shapes)
    if found is None:
        raise CannotRender(
            f"`{path.name}` is not a CLIP vision encoder with a projection",
            hint="choose another file with --part clip-vision=REF", code=Cause.MISMATCHED_PARTS, part="clip-vision",
        )  # fmt: skip
    with unfilled():
        module = ClipVision(found.config).eval().requires_grad_(requires_grad=False)
    state = {}
    for parameter, empty in module.named_parameters():
        source = Source(parameter) if found.layout == "transformers" else _open_clip(parameter)
        if source.name not in weights.shapes:
            raise CannotRender(
                f"the CLIP vision encoder `{path.name}` lacks the tensor `{source.name}`",
                hint="the file is incomplete; download it again", code=Cause.MISSING_TENSOR, missing=[source.name],
            )  # fmt: skip
        state[parameter] = weights.read(source).reshape(empty.shape).to(device, dtype)
    module.load_state_dict(state, assign=True)
    return module


def _open_clip(parameter: str) -> Source:
    if parameter == "visual_projection.weight":
        return Source("visual.proj", is_transposed=True)
    plain = parameter.removeprefix("vision_model.")
    return open_clip_layer(plain, "visual.") if plain.startswith("encoder.") else Source(f"visual.{_OPEN_CLIP[plain]}")


def encoder_input(pixels: Pixels, side: int) -> Tensor:
    """Convert a picture (H, W, 3) uint8 to the vision encoder's input (1, 3, side, side) float32.

    The picture is resized so that its shorter side has `side` pixels, and then centre-cropped to a square.
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    short, long = sorted((height, width))
    longer = int(side * long / short)
    size = (side, longer) if width <= height else (longer, side)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    middle = torch.from_numpy(resized[top : top + side, left : left + side].copy()).permute(2, 0, 1)
    mean, spread = (torch.tensor(each, dtype=torch.float32).reshape(3, 1, 1) for each in (_MEAN, _SPREAD))
    return ((middle.to(torch.float32) / 255 - mean) / spread)[None]
