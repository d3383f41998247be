"""The held-out captions through civman's own way, as `civman render` takes it, and the judge's verdict.

python -m training.evaluate_civman MODELS --each 200
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from training.evaluate import summary
from training.judge import mark, read
from training.scenes import held_out_scenes, sentence


def main() -> None:
    """Read the command line and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--each", type=int, default=200)
    args = parser.parse_args()
    rng = random.Random(7)  # the same captions and seeds as `training.evaluate`
    scenes = [rng.choice(held_out_scenes()) for _ in range(args.each)]
    checkpoint = str(args.models / "tiny-shapes.safetensors")
    with tempfile.TemporaryDirectory() as folder, Library.open(folder, offline=True) as library:
        plans = [
            library.plan(
                RenderRequest(
                    checkpoint, sentence(scene), sampler="DPM++ 2M Karras", steps=20, guidance_scale=4.0, seed=seed
                ),
                Conditions(device="cpu"),
            )
            for seed, scene in enumerate(scenes)
        ]
        made = library.render(plans, machine=Machine("cpu"))
        pictures = [_pixels(each.path) for each in made]
    marks = [mark(scene, read(picture)) for scene, picture in zip(scenes, pictures, strict=True)]
    print(summary("held-out, by civman", scenes, marks))


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


if __name__ == "__main__":
    main()
