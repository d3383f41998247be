"""Render captions through a plain StableDiffusionPipeline and let the judge read the pictures back.

python -m training.evaluate DIR --each 200 --sheet sheet.png
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training.judge import Marks, Reading, mark, read
from training.scenes import KINDS, SIDE, Picture, Scene, held_out_scenes, sentence, tags, trained_scenes, with_place

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
}
BATCH = 20


def pipeline(folder: Path, sampler: str = "dpm++2m-karras") -> Any:
    """The exported checkpoint in a stock pipeline, float32."""
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        str(folder / "tiny-shapes.safetensors"),
        config=str(folder / "config"),
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    name, settings = SAMPLERS[sampler]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(
    pipe: Any, prompts: list[str], *, first_seed: int = 0, steps: int = 20, guidance_scale: float = 4.0, **more: Any
) -> list[Picture]:
    """Pictures (64, 64, 3) in [0, 1]; picture i has the seed first_seed + i."""
    import torch

    out: list[Picture] = []
    for i in range(0, len(prompts), BATCH):
        part = prompts[i : i + BATCH]
        seeds = [torch.Generator().manual_seed(first_seed + i + k) for k in range(len(part))]
        out += list(
            pipe(
                part,
                height=SIDE,
                width=SIDE,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=seeds,
                output_type="np",
                **more,
            ).images
        )
    return out


def contact_sheet(pictures: list[Picture], *, columns: int, path: Path, zoom: int = 2, gap: int = 2) -> None:
    """Write the pictures as one PNG."""
    from PIL import Image

    step = SIDE + gap
    sheet = np.full((-(-len(pictures) // columns) * step, columns * step, 3), 128, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * step, (i % columns) * step
        sheet[y : y + SIDE, x : x + SIDE] = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(sheet)
    large = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    large.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def _share(facts: list[bool]) -> str:
    return f"{100 * float(np.mean(facts or [False])):.1f} %"


def summary(name: str, scenes: list[Scene], marks: list[Marks]) -> str:
    """One line of shares: three right, all four, then each fact and each kind alone."""
    facts = {fact: _share([getattr(m, fact) for m in marks]) for fact in ("ground", "colour", "shape", "kind", "place")}
    kinds = {k: _share([m.has_all for s, m in zip(scenes, marks, strict=True) if s.kind == k]) for k in KINDS}
    core, whole = _share([m.has_core for m in marks]), _share([m.has_all for m in marks])
    return f"{name}: shape+colour+ground {core}, size or count too {whole}; {facts} {kinds}"


def examine(
    pipe: Any, scenes: list[Scene], *, name: str, say: Callable[[Scene], str] = sentence, **settings: Any
) -> tuple[list[Picture], list[Reading]]:
    """Render the scenes, print what the judge makes of them and up to eight of the wrong ones."""
    pictures = render(pipe, [say(scene) for scene in scenes], **settings)
    readings = [read(picture) for picture in pictures]
    marks = [mark(scene, seen) for scene, seen in zip(scenes, readings, strict=True)]
    print(summary(name, scenes, marks), flush=True)
    for scene, seen in [(s, r) for s, r, m in zip(scenes, readings, marks, strict=True) if not m.has_all][:8]:
        print(f"   asked: {say(scene)}; seen: {seen.kind} {seen.colour} {seen.shape} {seen.iou:.2f} on {seen.ground}")
    return pictures, readings


def main() -> None:
    """Read the command line and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="dpm++2m-karras")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--only", choices=("held-out", "trained", "tags", "praise", "places"), action="append")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--validate", action="store_true", help="other prompts and seeds, none held out: to choose by")
    args = parser.parse_args()
    pipe, rng = pipeline(args.folder, args.sampler), random.Random(70 if args.validate else 7)
    first_seed = 5000 if args.validate else 0
    unseen = [rng.choice(trained_scenes() if args.validate else held_out_scenes()) for _ in range(args.each)]
    known = [rng.choice(trained_scenes()) for _ in range(args.each)]
    small = [scene for scene in trained_scenes() if scene.kind == "small"]
    series: dict[str, tuple[list[Scene], Callable[[Scene], str]]] = {
        "held-out": (unseen, sentence),
        "trained": (known, sentence),
        "tags": (unseen, tags),
        "praise": (unseen, lambda scene: f"masterpiece, best quality, {sentence(scene)}"),
        "places": ([with_place(rng.choice(small), rng) for _ in range(args.each)], sentence),
    }
    shown: list[Picture] = []
    for name in args.only or series:
        if name == "held-out" and args.validate:
            continue
        scenes, say = series[name]
        pictures, _ = examine(
            pipe, scenes, name=name, say=say, guidance_scale=args.guidance_scale, first_seed=first_seed
        )
        shown += pictures[:40]
    if args.sheet:
        contact_sheet(shown, columns=10, path=args.sheet)


if __name__ == "__main__":
    main()
