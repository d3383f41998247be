"""The held-out captions through civman's own way, as `civman render` takes it, and the judge's verdict.

python -m training.evaluate_civman MODELS --each 200
python -m training.evaluate_civman MODELS --checkpoint tiny-flow --lora tiny-flow-stripes:1
"""

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from training.evaluate import summary
from training.judge import mark, read
from training.scenes import Texture, held_out_scenes, sentence, trained_scenes

SETTINGS: dict[str, dict[str, Any]] = {
    "tiny-shapes": {"sampler": "DPM++ 2M", "schedule": "Karras", "steps": 20, "guidance_scale": 4.0},
    "tiny-flow": {},  # the family's defaults
}


def main() -> None:
    """Read the command line and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--checkpoint", choices=SETTINGS, default="tiny-shapes")
    parser.add_argument("--lora", metavar="NAME:SCALE")
    parser.add_argument("--validate", action="store_true", help="other captions and seeds, to choose by")
    parser.add_argument("--trained", action="store_true", help="captions of scenes that were trained")
    args = parser.parse_args()
    rng = random.Random(70 if args.validate else 7)  # otherwise captions and seeds are those of `training.evaluate`
    first_seed = 5000 if args.validate else 0
    pool = trained_scenes() if args.trained else held_out_scenes()
    scenes = [rng.choice(pool) for _ in range(args.each)]
    checkpoint = str(args.models / f"{args.checkpoint}.safetensors")
    loras: tuple[LoraRequest, ...] = ()
    if args.lora:
        name, _, scale = args.lora.partition(":")
        loras = (LoraRequest(str(args.models / f"{name}.safetensors"), float(scale)),)
    with tempfile.TemporaryDirectory() as folder, Library.open(folder, offline=True) as library:
        plans = [
            library.plan(
                RenderRequest(checkpoint, sentence(scene), seed=seed, loras=loras, **SETTINGS[args.checkpoint]),
                Conditions(device="cpu"),
            )
            for seed, scene in enumerate(scenes, first_seed)
        ]
        made = library.render(plans, machine=Machine("cpu"))
        pictures = [_pixels(each.path) for each in made]
    readings = [read(picture) for picture in pictures]
    marks = [mark(scene, seen) for scene, seen in zip(scenes, readings, strict=True)]
    print(summary(f"{'trained' if args.trained else 'held-out'}, by civman", scenes, marks))
    print({str(texture): sum(seen.texture is texture for seen in readings) for texture in Texture})


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


if __name__ == "__main__":
    main()
