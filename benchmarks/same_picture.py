"""Measure how well the comparison with another program's original tells the same picture from another one.

python benchmarks/same_picture.py [--recipes 12] [--work DIR]

Draws images with the demo's models, each together with changes of its recipe, and compares every pair: files that were
compressed or shrunk, other precisions, other settings, and other pictures. Prints the table of docs/redraw.md.
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from civman.demo import demo_models
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraRequest, RenderRequest
from civman.library import Library
from civman.pictures import image_text
from civman.planning.plan import Conditions
from civman.rendering.same_picture import Likened, Likeness, liken

MODELS = Path(demo_models.__file__).parent / "models"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle")
LORAS = ("tiny-stripes", "tiny-outline", "tiny-night")
SIDE = 512
"""The images are enlarged to this many pixels, since websites shrink and compress large images."""


def file(name: str) -> str:
    """The path of one of the demo's models."""
    return str(MODELS / f"{name}.safetensors")


@cache
def rounded(bits: int) -> Path:
    """The demo's checkpoint with its weights rounded to this many bits of the fraction (float16 has 10)."""
    data = bytearray(Path(file("tiny-shapes")).read_bytes())
    at = 8 + int.from_bytes(data[:8], "little")
    for tensor in json.loads(data[8:at]).values():
        if tensor.get("dtype") == "F16":
            start, end = (at + offset for offset in tensor["data_offsets"])
            words = np.frombuffer(bytes(data[start:end]), np.uint16).astype(np.uint32)
            half = 1 << (9 - bits)
            data[start:end] = ((words + half) >> (10 - bits) << (10 - bits)).astype(np.uint16).tobytes()
    path = Path(tempfile.gettempdir()) / f"tiny-shapes-{bits}-bits.safetensors"
    path.write_bytes(data)
    return path


def base_request(number: int) -> tuple[RenderRequest, dict[str, RenderRequest]]:
    """A request, and the same with single changes."""
    draw = random.Random(number)
    colour, ground = draw.sample(COLOURS, 2)
    shape, lora = draw.choice(SHAPES), LORAS[number % len(LORAS)]
    prompt = f"a large {colour} {shape} on a {ground} background"
    base = RenderRequest(
        file("tiny-shapes"), prompt, seed=number, sampler="DPM++ 2M", schedule="Karras", steps=10, guidance_scale=4.0,
        width=64, height=64, precision="float32", loras=(LoraRequest(file(lora), 0.8),),
    )  # fmt: skip
    other_colour = draw.choice([each for each in COLOURS if each not in (colour, ground)])
    other_shape = draw.choice([each for each in SHAPES if each != shape])
    changed = {
        "same recipe, weights with 5 bits": replace(base, checkpoint=str(rounded(5))),
        "same recipe, weights with 3 bits, as fp8": replace(base, checkpoint=str(rounded(3))),
        "CFG scale 4.5 instead of 4": replace(base, guidance_scale=4.5),
        "15 steps instead of 10": replace(base, steps=15),
        "Euler instead of DPM++ 2M": replace(base, sampler="Euler"),
        "LoRA at 0.6 instead of 0.8": replace(base, loras=(LoraRequest(file(lora), 0.6),)),
        "another VAE": replace(base, vae=file("tiny-warm-vae")),
        "LoRA missing": replace(base, loras=()),
        "another LoRA": replace(base, loras=(LoraRequest(file(LORAS[(number + 1) % len(LORAS)]), 0.8),)),
        "another colour in the prompt": replace(base, prompt=prompt.replace(colour, other_colour)),
        "another shape in the prompt": replace(base, prompt=prompt.replace(shape, other_shape)),
        "another seed": replace(base, seed=number + 1000),
    }
    return base, changed


def enlarged(path: Path) -> Any:
    """The pixels of an image, enlarged to `SIDE`."""
    return np.asarray(Image.fromarray(image_text.pixels(path)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def jpeg(pixels: Any, quality: int, side: int) -> Any:
    """The pixels after a website has shrunk and compressed them."""
    data = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(data, "jpeg", quality=quality)
    with Image.open(data) as image:
        return np.asarray(image)


def files_of(pixels: Any) -> Iterator[tuple[str, Any]]:
    """The same image as other files."""
    for quality, side in ((90, SIDE), (75, SIDE), (50, SIDE), (80, 450)):
        yield f"JPEG {quality}" + (f" at {side} pixels" if side != SIDE else ""), jpeg(pixels, quality, side)
    noise = np.random.default_rng(1).normal(0, 4, pixels.shape)
    yield "noise of 4 levels", np.clip(pixels + noise, 0, 255).astype(np.uint8)


def drawn(count: int, work: Path) -> dict[tuple[int, str], Any]:
    """The images by number of the recipe and kind of change; those that are in `work` are not drawn again."""
    requests = {(number, kind): each for number in range(count) for base, changed in [base_request(number)]
                for kind, each in [("", base), *changed.items()]}  # fmt: skip
    paths = {key: work / f"{key[0]}-{key[1].replace(' ', '-')}.png" for key in requests}
    missing = [key for key in requests if not paths[key].is_file()]
    # a model is loaded again when the checkpoint or the VAE changes, so these are drawn together
    missing.sort(key=lambda key: (requests[key].checkpoint, requests[key].vae or "", str(requests[key].loras)))
    with tempfile.TemporaryDirectory() as scratch, Library.open(scratch) as library:
        conditions = Conditions("cpu", triggers=False)
        plans = [library.plan(requests[key], conditions) for key in missing]
        for key, made in zip(missing, library.pictures.drawn(plans, machine=Machine("cpu")), strict=True):
            Image.fromarray(made.pixels).save(paths[key])
    return {key: enlarged(path) for key, path in paths.items()}


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=12)
    parser.add_argument("--work", type=Path, help="a folder that keeps the images for the next run")
    asked = parser.parse_args()
    found: dict[str, list[Likened]] = defaultdict(list)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        images = drawn(asked.recipes, work)
    for (number, kind), pixels in images.items():
        if kind:
            found[kind].append(liken(images[number, ""], jpeg(pixels, 80, 450)))
    pictures = [images[number, ""] for number in range(asked.recipes)]
    pictures += [enlarged(path) for path in sorted((MODELS.parent / "previews").glob("*.png"))]
    for number, pixels in enumerate(pictures):
        for name, other in files_of(pixels):
            found[name].append(liken(pixels, other))
        for other in pictures[:number]:
            found["unrelated pictures"].append(liken(pixels, other))
    print(f"{asked.recipes} recipes, {len(images)} images, {time.monotonic() - start:.0f} s\n")
    print("| pairs | number | correlation of gradients: 5 %, median, 95 % | PSNR at 64 pixels, median | verdicts |")
    print("|---|---|---|---|---|")
    for kind, pairs in found.items():
        told = [each for each in pairs if each.gradients is not None]
        if told:
            print(f"| {kind} | {len(pairs)} | {numbers_of(told)} | {verdicts_of(pairs)} |")


def numbers_of(pairs: list[Likened]) -> str:
    """The percentiles of the correlation, and the median PSNR."""
    low, middle, high = np.percentile([each.gradients or 0.0 for each in pairs], [5, 50, 95])
    noise = np.median([99.0 if each.psnr_db is None else each.psnr_db for each in pairs])
    return f"{low:.2f}, {middle:.2f}, {high:.2f} | {noise:.1f}"


def verdicts_of(pairs: list[Likened]) -> str:
    """How many pairs got each verdict."""
    counts = Counter(each.likeness for each in pairs)
    return ", ".join(f"{verdict.value} {counts[verdict]}" for verdict in Likeness if counts[verdict])


if __name__ == "__main__":
    main()
