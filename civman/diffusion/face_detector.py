"""RetinaFace with a ResNet-50: finds faces, and the eyes, the nose and the corners of the mouth in each.

Sources: Deng et al. 2019 (RetinaFace), He et al. 2015 (ResNet). Tensor names are those of facexlib's
`detection_Resnet50_Final.pth`.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.face_layers import Tensors, batch_norm, conv, numbered

_STEPS: Final = (8, 16, 32)
_ANCHORS: Final = ((16, 32), (64, 128), (256, 512))
"""The sides in pixels of the anchor boxes at each pyramid level; `_STEPS` contains the side of each level's cells."""
_VARIANCES: Final = (0.1, 0.2)
_MEANS: Final = (104.0, 117.0, 123.0)
"""The mean values of blue, green and red, which are subtracted from the image."""
_SURE: Final = 0.97
_OVERLAP: Final = 0.4
"""The IoU limit of non-maximum suppression: among boxes that overlap more, only the most confident one is kept."""
_NARROW: Final = 64


@dataclass(frozen=True, slots=True)
class Detected:
    """The faces in an image, most confident first: boxes (N, 4) as left, top, right, bottom; landmarks (N, 5, 2)."""

    boxes: Any
    scores: Any
    landmarks: Any


class FaceDetector:
    """A loaded RetinaFace, consisting of its tensors with the names in the file."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.device = tensors["fpn.output1.0.weight"].device
        # only smaller variants of RetinaFace use leaky ReLUs
        self._slope = 0.1 if tensors["fpn.output1.0.weight"].shape[0] <= _NARROW else 0.0

    @torch.no_grad()
    def __call__(self, image: Any, sure: float = _SURE) -> Detected:
        """Find faces in a (H, W, 3) uint8 image whose channels are in the order blue, green, red."""
        device = self.device
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
        pixels = pixels - torch.tensor(_MEANS, device=device)[None, :, None, None]
        levels = self._pyramid(self._features(pixels))
        found = [self._context(level, f"ssh{number}") for number, level in enumerate(levels, 1)]
        size = (image.shape[1], image.shape[0])
        anchors = anchors_of(size).to(device)
        scores = functional.softmax(self._heads(found, "ClassHead", 2), -1)[:, 1]
        boxes, marks = self._heads(found, "BboxHead", 4), self._heads(found, "LandmarkHead", 10)
        kept = scores > sure
        return _decoded(boxes[kept], marks[kept], scores[kept], anchors[kept], size)

    def _features(self, x: Tensor) -> list[Tensor]:
        """Compute the feature maps of the ResNet's last three stages."""
        tensors, found = self._tensors, []
        x = functional.relu(batch_norm(conv(x, tensors, "body.conv1", stride=2), tensors, "body.bn1"))
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            for block in range(numbered(tensors, f"body.layer{stage}")):
                x = self._block(x, f"body.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
            found.append(x)
        return found[1:]

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        tensors, kept = self._tensors, x
        for number in (1, 2, 3):
            x = conv(x, tensors, f"{name}.conv{number}", stride=stride if number == 2 else 1)
            x = batch_norm(x, tensors, f"{name}.bn{number}")
            x = functional.relu(x) if number < 3 else x
        if f"{name}.downsample.0.weight" in tensors:
            kept = batch_norm(
                conv(kept, tensors, f"{name}.downsample.0", stride=stride), tensors, f"{name}.downsample.1"
            )
        return functional.relu(x + kept)

    def _pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        """Convert the feature maps of all stages to the same width, and add each one to the next finer one."""
        first, second, third = (self._unit(stage, f"fpn.output{number}") for number, stage in enumerate(stages, 1))
        second = self._unit(second + functional.interpolate(third, size=second.shape[-2:]), "fpn.merge2")
        first = self._unit(first + functional.interpolate(second, size=first.shape[-2:]), "fpn.merge1")
        return [first, second, third]

    def _context(self, x: Tensor, name: str) -> Tensor:
        """Concatenate convolutions with receptive fields of 3, 5 and 7 pixels."""
        five = self._unit(x, f"{name}.conv5X5_1")
        seven = self._unit(five, f"{name}.conv7X7_2")
        parts = [self._plain(x, f"{name}.conv3X3"), self._plain(five, f"{name}.conv5X5_2")]
        return functional.relu(torch.cat([*parts, self._plain(seven, f"{name}.conv7x7_3")], 1))

    def _unit(self, x: Tensor, name: str) -> Tensor:
        return functional.leaky_relu(self._plain(x, name), self._slope)

    def _plain(self, x: Tensor, name: str) -> Tensor:
        return batch_norm(conv(x, self._tensors, f"{name}.0"), self._tensors, f"{name}.1")

    def _heads(self, levels: list[Tensor], name: str, width: int) -> Tensor:
        """Predict `width` numbers for each anchor of all levels: (anchors, width)."""
        parts = [conv(level, self._tensors, f"{name}.{n}.conv1x1") for n, level in enumerate(levels)]
        return torch.cat([part.permute(0, 2, 3, 1).reshape(-1, width) for part in parts])


def anchors_of(size: tuple[int, int]) -> Tensor:
    """Return an image's anchor boxes (N, 4): centre and sides, relative to the image's `size` (width, height)."""
    width, height = size
    found = []
    for step, sides in zip(_STEPS, _ANCHORS, strict=True):
        rows, columns = -(-height // step), -(-width // step)
        down, across = torch.meshgrid(
            (torch.arange(rows, dtype=torch.float64) + 0.5) * step / height,
            (torch.arange(columns, dtype=torch.float64) + 0.5) * step / width, indexing="ij",
        )  # fmt: skip
        boxes = [
            torch.stack([across, down, torch.full_like(down, side / width), torch.full_like(down, side / height)], -1)
            for side in sides
        ]
        found.append(torch.stack(boxes, 2).reshape(-1, 4))
    return torch.cat(found).float()


def _decoded(boxes: Tensor, marks: Tensor, scores: Tensor, anchors: Tensor, size: tuple[int, int]) -> Detected:
    scale = torch.tensor(size, device=boxes.device, dtype=torch.float32)
    centres, sides = anchors[:, :2], anchors[:, 2:]
    middle = centres + boxes[:, :2] * _VARIANCES[0] * sides
    half = sides * torch.exp(boxes[:, 2:] * _VARIANCES[1]) / 2
    places = torch.cat([(middle - half) * scale, (middle + half) * scale], 1)
    points = (centres[:, None] + marks.view(-1, 5, 2) * _VARIANCES[0] * sides[:, None]) * scale
    order = torch.argsort(scores, descending=True, stable=True)
    found: list[Any] = [each[order].cpu().numpy() for each in (places, scores, points)]
    kept = _distinct(found[0])
    return Detected(found[0][kept], found[1][kept], found[2][kept])


def _distinct(boxes: Any) -> list[int]:
    """Apply non-maximum suppression: return the indices of the boxes to keep."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for number, box in enumerate(boxes):
        first, last = np.maximum(boxes[kept, :2], box[:2]), np.minimum(boxes[kept, 2:], box[2:])
        shared = np.clip(last - first, 0, None).prod(1)
        if not (shared > _OVERLAP * (areas[kept] + areas[number] - shared)).any():
            kept.append(number)
    return kept
