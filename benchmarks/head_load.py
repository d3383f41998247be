"""Times what the head of a large job does for each image that a worker sends: check, compress, write, record.

    python benchmarks/head_load.py [--images 20] [--side 1024]

The images are smooth and noisy parts mixed, so that they compress like photographs. Printed is the CPU time
of one image: minima and medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.record import Record
from civman.index import Index
from civman.planning.recipe_sources import pixel_sha256
from civman.rendering.save_pictures import OutputOptions, keep_new, picture_bytes

RECIPE = Recipe(
    Sha256("1" * 64), "a photograph of a fox in the snow, " * 8, "blurry, low quality", "Euler a", "automatic", 20, 7.0,
    1024, 1024, 1, 1, "epsilon", False, "float16",
)  # fmt: skip


def image(side: int, seed: int) -> Any:
    """(side, side, 3) uint8: a gradient, broad shapes and a little noise."""
    draw = np.random.default_rng(seed)
    grid = np.linspace(0, 6.28, side)
    shapes = np.sin(grid[:, None] * draw.uniform(1, 4)) * np.cos(grid[None, :] * draw.uniform(1, 4))
    noise = draw.normal(0, 2.0, (side, side, 3))
    return np.clip(shapes[..., None] * 90 + 128 + noise, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.thread_time()
        result = work()
        times.setdefault(name, []).append((time.thread_time() - begun) * 1000)
        return result

    size = 0
    with tempfile.TemporaryDirectory() as work, Index.open(Path(work, "library.db")) as index:
        for seed in range(options.images):
            pixels = image(options.side, seed)
            digest = timed("hash of the pixels", lambda pixels=pixels: pixel_sha256(pixels))
            record = Record(replace(RECIPE, seed=seed), seed, digest, {}, (), ())
            data = timed("PNG", lambda p=pixels, r=record: picture_bytes(p, r, "png", OutputOptions()))
            path = timed("file", lambda s=seed, d=data: keep_new(Path(work), f"{s}.png", d))
            made = [(path.absolute(), record)]
            timed("row, one commit", lambda made=made: index.record_pictures(made, datetime.now(UTC)))
            size += len(data)
        many = [(Path(work, f"many-{n}.png"), record) for n in range(200)]
        begun = time.thread_time()
        index.record_pictures(many, datetime.now(UTC))
        together = (time.thread_time() - begun) * 1000 / len(many)
    print(f"{options.images} images of {options.side} px, {size / options.images / 1e6:.2f} MB each as PNG")
    for name, found in times.items():
        print(f"{name:<20} min {min(found):7.2f} ms   median {statistics.median(found):7.2f} ms")
    print(f"{'row, 200 a commit':<20}     {together:7.2f} ms each")


if __name__ == "__main__":
    main()
