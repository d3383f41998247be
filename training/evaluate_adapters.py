"""What the adapters do to pictures, measured by the judge at several scales.

python -m training.evaluate_adapters DIR --each 40 --sheet adapters.png
python -m training.evaluate_adapters DIR --each 40 --validate (other prompts and seeds, none held out: to choose by)
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.evaluate import contact_sheet, pipeline, render
from training.judge import STRICT_IOU, mark, read
from training.scenes import UNNAMED_SHAPE, Picture, Scene, held_out_scenes, sentence, trained_scenes

SCALES = (0.0, 0.5, 1.0)
TOKEN = "<tiny-diamond>"  # noqa: S105 (a word of a prompt, no secret)


def changes(path: Path) -> dict[str, Tensor]:
    """Change of weight per layer name, flattened to matrices, from a LoRA or LoHa file."""
    from safetensors.torch import load_file

    tensors = {name: value.float() for name, value in load_file(path).items()}
    out = {}
    for name in sorted({key.split(".")[0] for key in tensors}):
        part = {key.removeprefix(name + "."): v for key, v in tensors.items() if key.startswith(name + ".")}
        if "lora_up.weight" in part:
            up, down = part["lora_up.weight"].flatten(1), part["lora_down.weight"].flatten(1)
            rank, change = down.shape[0], up @ down
        else:
            rank = part["hada_w1_b"].shape[0]
            change = (part["hada_w1_a"] @ part["hada_w1_b"]) * (part["hada_w2_a"] @ part["hada_w2_b"])
        out[name] = change * (float(part["alpha"]) / rank)
    return out


@torch.no_grad()
def add(unet: Any, layers: dict[str, Tensor], scale: float) -> None:
    """Add the changes to the weights; with the negative scale it is taken back, but for rounding."""
    found = 0
    for name, module in unet.named_modules():
        change = layers.get("lora_unet_" + name.replace(".", "_"))
        if change is not None:
            module.weight += scale * change.view_as(module.weight)
            found += 1
    if found != len(layers):
        raise ValueError(f"{len(layers) - found} layers of the adapter are not in the UNet")


def judge_style(pipe: Any, path: Path, scenes: list[Scene], **settings: Any) -> list[Picture]:
    """Print the means of what a style changes at each scale; gives the first ten pictures of each."""
    layers, shown = changes(path), []
    for scale in SCALES:
        add(pipe.unet, layers, scale)
        pictures = render(pipe, [sentence(scene) for scene in scenes], **settings)
        add(pipe.unet, layers, -scale)
        seen = [read(picture) for picture in pictures]
        marks = [mark(scene, reading) for scene, reading in zip(scenes, seen, strict=True)]
        means = {name: float(np.mean([getattr(r, name) for r in seen])) for name in ("hollow", "banding", "light")}
        textures = {t: sum(r.texture == t for r in seen) for t in ("fill", "outline", "stripes")}
        kept = {f: sum(getattr(m, f) for m in marks) for f in ("shape", "colour", "ground", "kind")}
        rounded = {name: round(value, 3) for name, value in means.items()}
        print(f"{path.stem} at {scale}: {rounded} {textures} right {kept} of {len(scenes)}", flush=True)
        shown += pictures[:10]
    return shown


def judge_word(pipe: Any, path: Path, scenes: list[Scene], **settings: Any) -> list[Picture]:
    """Print how often the trained word draws the unnamed shape, and how often the word "shape" does."""
    shown = []
    pipe.load_textual_inversion(str(path), token=TOKEN)
    for noun in ("shape", TOKEN):
        pictures = render(
            pipe, [sentence(scene, noun=noun).replace(TOKEN + "s", TOKEN) for scene in scenes], **settings
        )
        seen = [read(picture) for picture in pictures]
        right = sum(r.shape == UNNAMED_SHAPE and r.iou >= STRICT_IOU for r in seen)
        marks = [mark(scene, reading) for scene, reading in zip(scenes, seen, strict=True)]
        kept = {f: sum(getattr(m, f) for m in marks) for f in ("colour", "ground", "kind")}
        print(f"{noun}: {UNNAMED_SHAPE} {right} right {kept} of {len(scenes)}", flush=True)
        shown += pictures[:10]
    return shown


def judge_vae(pipe: Any, path: Path, config: Path, scenes: list[Scene]) -> list[Picture]:
    """Print the mean red, green and blue with the model's own autoencoder and with the other."""
    from diffusers import AutoencoderKL

    shown = []
    other = AutoencoderKL.from_single_file(str(path), config=str(config), local_files_only=True).eval()
    for name, vae in (("own", pipe.vae), (path.stem, other)):
        pipe.vae = vae
        pictures = render(pipe, [sentence(scene) for scene in scenes])
        print(f"{name}: mean red, green, blue {np.mean(pictures, axis=(0, 1, 2)).round(3)}", flush=True)
        shown += pictures[:10]
    return shown


def main() -> None:
    """Read the command line and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--styles", nargs="*", default=["outline", "stripes", "night"])
    parser.add_argument("--styles-only", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--validate", action="store_true")
    args = parser.parse_args()
    pipe, rng = pipeline(args.folder), random.Random(80 if args.validate else 8)
    pool = trained_scenes() if args.validate else (*trained_scenes(), *held_out_scenes())
    choices = [s for s in pool if "black" not in (s.ground, s.colour)]
    settings = {"first_seed": 5000 if args.validate else 0}
    scenes, shown = [rng.choice(choices) for _ in range(args.each)], []
    for name in args.styles:
        shown += judge_style(pipe, args.folder / f"tiny-{name}.safetensors", scenes, **settings)
    if not args.styles_only:
        vae_config = args.folder / "config" / "vae"
        shown += judge_vae(pipe, args.folder / "tiny-warm-vae.safetensors", vae_config, scenes[:20])[10:]
        pipe = pipeline(args.folder)
        shown += judge_word(pipe, args.folder / "tiny-diamond.safetensors", scenes, **settings)
    if args.sheet:
        contact_sheet(shown, columns=10, path=args.sheet)


if __name__ == "__main__":
    main()
