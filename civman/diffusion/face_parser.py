"""ParseNet: labels each pixel of an aligned face as skin, an eye, hair, a hat, background and so on.

Source: Chen et al. 2020 (PSFR-GAN). Tensor names are those of facexlib's `parsing_parsenet.pth`.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.face_layers import Tensors, batch_norm, doubled, numbered

OUTSIDE: Final = (0, 14, 16, 17, 18)
"""The classes that are not blended as part of a face: background, neck, clothes, hair, hat."""
_SLOPE: Final = 0.2


class FaceParser:
    """A loaded ParseNet, consisting of its tensors with the names in the file."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    @torch.no_grad()
    def __call__(self, face: Tensor) -> Any:
        """Classify the pixels of a face (1, 3, H, W) in -1 … 1; return the class indices (H, W)."""
        scores = self.scores(face)
        return scores.argmax(1)[0].cpu().numpy()

    @torch.no_grad()
    def scores(self, face: Tensor) -> Tensor:
        """Compute the score of each class for each pixel: (1, classes, H, W)."""
        tensors = self._tensors
        x = self._conv(face, "encoder.0")
        for number in range(1, numbered(tensors, "encoder")):
            x = self._block(x, f"encoder.{number}", down=True)
        kept = x
        for number in range(numbered(tensors, "body")):
            x = self._block(x, f"body.{number}")
        x = kept + x
        for number in range(numbered(tensors, "decoder")):
            x = self._block(x, f"decoder.{number}", up=True)
        return self._conv(x, "out_mask_conv")

    def _block(self, x: Tensor, name: str, *, down: bool = False, up: bool = False) -> Tensor:
        """Apply a residual block of two convolutions.

        To halve the size, the second one has a stride; to double it, the input is enlarged first.
        """
        kept = x
        if f"{name}.shortcut_func.conv2d.weight" in self._tensors:
            kept = self._conv(doubled(x, "nearest") if up else x, f"{name}.shortcut_func", stride=2 if down else 1)
        x = self._conv(doubled(x, "nearest") if up else x, f"{name}.conv1")
        x = functional.leaky_relu(x, _SLOPE)
        return kept + self._conv(x, f"{name}.conv2", stride=2 if down else 1)

    def _conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """Apply a convolution with reflection padding, and batch norm if the file has it."""
        weight, bias = self._tensors[f"{name}.conv2d.weight"], self._tensors.get(f"{name}.conv2d.bias")
        around = weight.shape[-1] // 2
        x = functional.conv2d(functional.pad(x, [around] * 4, mode="reflect"), weight, bias, stride)
        return batch_norm(x, self._tensors, f"{name}.norm.norm") if f"{name}.norm.norm.weight" in self._tensors else x
