"""Memory and time of `civman upscale`, measured in a process of its own.

    python benchmarks/upscale.py [--side 2048] [--network compact|esrgan-6|esrgan-23] [--threads 2]

The network has the size of a published model (Real-ESRGAN's compact one with 32 layers, ESRGAN with 6 or 23 blocks,
all of which quadruple the size) and random weights: neither memory nor time depends on their values. The image is a
square of smooth colours with noise. Memory is the peak resident size of the whole process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file


def compact(layers: int = 32, width: int = 64) -> dict[str, torch.Tensor]:
    tensors = {"body.0.weight": torch.randn(width, 3, 3, 3) * 0.05, "body.0.bias": torch.zeros(width)}
    tensors["body.1.weight"] = torch.full((width,), 0.2)
    for layer in range(layers):
        at = 2 * layer + 2
        tensors[f"body.{at}.weight"] = torch.randn(width, width, 3, 3) * 0.03
        tensors[f"body.{at}.bias"], tensors[f"body.{at + 1}.weight"] = torch.zeros(width), torch.full((width,), 0.2)
    last = 2 * layers + 2
    tensors |= {f"body.{last}.weight": torch.randn(48, width, 3, 3) * 0.01, f"body.{last}.bias": torch.zeros(48)}
    return tensors


def esrgan(blocks: int, width: int = 64, growth: int = 32) -> dict[str, torch.Tensor]:
    shapes = {"conv_first": (width, 3), "conv_last": (3, width)}
    shapes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (width, width))
    for block in range(blocks):
        for dense in (1, 2, 3):
            for conv in range(1, 6):
                wide = growth if conv < 5 else width
                shapes[f"body.{block}.rdb{dense}.conv{conv}"] = (wide, width + (conv - 1) * growth)
    tensors = {}
    for name, (wide, deep) in shapes.items():
        tensors |= {f"{name}.weight": torch.randn(wide, deep, 3, 3) * 0.02, f"{name}.bias": torch.full((wide,), 0.1)}
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--network", choices=("compact", "esrgan-6", "esrgan-23"), default="compact")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.manual_seed(1)
    tensors = compact() if asked.network == "compact" else esrgan(int(asked.network.partition("-")[2]))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        save_file(tensors, place / "4x-bench.safetensors")
        smooth = np.linspace(0, 200, asked.side)[None, :, None] + np.zeros((asked.side, 1, 3))
        noise = np.random.default_rng(1).integers(0, 40, (asked.side, asked.side, 3))
        Image.fromarray((smooth + noise).astype(np.uint8)).save(place / "picture.png")
        environment = os.environ | {"CIVMAN_LIBRARY": str(place / "library")}
        command = [sys.executable, "-m", "civman"]
        subprocess.run([*command, "import", "--offline", place / "4x-bench.safetensors"], env=environment, check=True)
        before = time.monotonic()
        subprocess.run(
            [*command, "upscale", place / "picture.png", "--model", "4x-bench", "--threads", str(asked.threads),
             "--device", "cpu", "--output", place / "large.png"], env=environment, check=True,
        )  # fmt: skip
        took = time.monotonic() - before
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        with Image.open(place / "large.png") as image:
            size = image.size
    sizes = f"{asked.side}x{asked.side} to {size[0]}x{size[1]}"
    print(f"{asked.network}: {sizes} in {took:.0f} s, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
