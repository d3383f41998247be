"""Small face models with tensors by formula, and what the published networks make of them.

`tests/fixtures/face_models.json` has the names and shapes of each network's tensors and samples of its output, made by
`tests/fixtures/make_face_models.py` with facexlib and CodeFormer's network.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE_NAMES = {"gfpgan": "GFPGANv1.4.pth", "codeformer": "codeformer-v0.1.0.pth",
         "retinaface": "detection_Resnet50_Final.pth", "parsenet": "parsing_parsenet.pth"}  # fmt: skip
"""Kind of model → the name of its published file."""
FIXTURE = Path(__file__).parent / "fixtures" / "face_models.json"


def fixture() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIXTURE.read_text())
    return found


def wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor by formula: variances are positive, weights keep the size of what passes through them."""
    count = math.prod(shape)
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + sum(map(ord, name)) % 97)
    if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")) or (
        len(shape) == 1 and name.endswith("weight")
    ):
        values = 1 + 0.2 * values
    elif len(shape) > 1:
        values = values * 1.4 / math.sqrt(max(math.prod(shape[1:]), 1))
    else:
        values = values * 0.1
    return values.float().view(shape)


def tensors_of(kind: str) -> dict[str, Tensor]:
    """The tensors of the small network of a kind, under the published file's names."""
    stored = fixture()[kind]
    found = {name: wave(name, tuple(shape)) for name, shape in stored["shapes"].items()}
    for name, values in stored.get("set", {}).items():
        found[name] = torch.tensor(values)
    return found


def samples(pixels: Tensor) -> list[float]:
    """The mean of a tensor's values, and seven of them."""
    flat = pixels.flatten().double()
    return [
        flat.mean().item(),
        *(flat[int(len(flat) * part)].item() for part in (0.03, 0.1, 0.27, 0.35, 0.6, 0.85, 0.97)),
    ]


def ramp(side: int, channels: int = 3) -> Tensor:
    """A smooth image (1, channels, side, side) in -1 … 1."""
    place = torch.arange(channels * side * side, dtype=torch.float64)
    return torch.sin(place * 0.013).float().view(1, channels, side, side)
