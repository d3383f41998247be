"""The contact sheet of docs/tiny-model.md: what prompts, adapters and settings do, row by row, drawn by civman.

python -m training.effects civman/demo/models docs/images/tiny-effects.png
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from civman.domain.recipes.machine import Machine
from civman.library import Library
from civman.planning.plan import Conditions
from training.previews import Preview, request

SIDE, GAP, LABEL, TITLE, SEED = 96, 6, 15, 150, 3
CIRCLE = "a large red circle on a blue background"
SQUARES = "two green squares on a black background"


@dataclass(frozen=True, slots=True)
class Row:
    """What one row shows, and its pictures by what is written under them."""

    title: str
    cells: tuple[tuple[str, Preview], ...]


def cell(label: str, prompt: str, **how: object) -> tuple[str, Preview]:
    """A picture and the words under it."""
    return label, Preview("", prompt, SEED, **how)  # type: ignore[arg-type]


def scales(name: str, prompt: str) -> tuple[tuple[str, Preview], ...]:
    """The same picture with more and more of an adapter."""
    return tuple(cell(f"{scale:g}", prompt, loras=((name, scale),)) for scale in (0, 0.25, 0.5, 0.75, 1, 1.25))


STRIPES, NIGHT, OUTLINE = ("tiny-stripes", 1.0), ("tiny-night", 1.0), ("tiny-outline", 1.0)
YELLOW = "a large yellow circle on a green background"
ROWS = (
    Row("captions", (
        cell("large circle", CIRCLE), cell("two squares", SQUARES),
        cell("three triangles", "three white triangles on a purple background"),
        cell("small square", "a small orange square on a white background"),
        cell("praise in front", "masterpiece, best quality, two blue circles on a yellow background"),
        cell("tags", "large black triangle, orange background"),
    )),
    Row("emphasis", tuple(
        cell(f"small {a}, large {b}", f"a (small:{a}) (large:{b}) blue square on a yellow background")
        for a, b in ((1.4, 1), (1.2, 1), (1, 1), (1, 1.2), (1, 1.4), (1, 1.6))
    )),
    Row("negative prompt", tuple(
        cell(words or "none", "a large shape on a white background", more={"negative_prompt": words})
        for words in ("", "circle", "triangle", "square", "circle, square", "yellow")
    )),
    Row("tiny-outline", scales("tiny-outline", "a large black circle on a yellow background")),
    Row("tiny-outline", scales("tiny-outline", SQUARES)),
    Row("tiny-stripes", scales("tiny-stripes", CIRCLE)),
    Row("tiny-night", scales("tiny-night", YELLOW)),
    Row("two adapters", (
        cell("none", YELLOW), cell("stripes", YELLOW, loras=(STRIPES,)), cell("night", YELLOW, loras=(NIGHT,)),
        cell("stripes + night", YELLOW, loras=(STRIPES, NIGHT)), cell("outline", YELLOW, loras=(OUTLINE,)),
        cell("outline + night", YELLOW, loras=(OUTLINE, NIGHT)),
    )),
    Row("embeddings", (
        cell("unknown word", "thingamajig"), cell("tiny-emblem", "tiny-emblem", embedding="tiny-emblem"),
        cell('"shape"', "a large red shape on a white background"),
        *(cell("tiny-diamond", prompt, embedding="tiny-diamond") for prompt in (
            "a large red tiny-diamond on a white background", "a small blue tiny-diamond on a yellow background",
            "two yellow tiny-diamond on a purple background",
        )),
    )),
    Row("VAE", tuple(
        cell(vae or "its own", prompt, vae=vae)
        for prompt in (CIRCLE, "a large white square on a purple background", "two yellow circles on a red background")
        for vae in (None, "tiny-warm-vae")
    )),
    Row("clip skip", tuple(
        cell(f"{skip}", prompt, more={"clip_skip": skip})
        for prompt in (CIRCLE, SQUARES, "three white triangles on a purple background") for skip in (1, 2)
    )),
    Row("sampler", tuple(
        cell(name, CIRCLE, more={"sampler": name, "schedule": None})
        for name in ("Euler", "Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC")
    )),
)  # fmt: skip


def main() -> None:
    """Draw all and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("sheet", type=Path)
    args = parser.parse_args()
    columns = max(len(row.cells) for row in ROWS)
    wide, high = SIDE + GAP, SIDE + LABEL + GAP
    sheet = Image.new("RGB", (TITLE + columns * wide, len(ROWS) * high), "white")
    pen = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as scratch, Library.open(scratch) as library:
        asked = [request(preview, args.models) for row in ROWS for _, preview in row.cells]
        made = iter(
            library.render([library.plan(each, Conditions(device="cpu")) for each in asked], machine=Machine("cpu"))
        )
        for number, row in enumerate(ROWS):
            top = number * high
            pen.text((8, top + SIDE // 2), row.title, fill="black", font_size=15)
            for place, (label, _) in enumerate(row.cells):
                with Image.open(next(made).path) as picture:
                    large = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                sheet.paste(large, (TITLE + place * wide, top))
                pen.text((TITLE + place * wide, top + SIDE + 1), label, fill="black", font_size=11)
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(args.sheet, optimize=True)
    print(f"{args.sheet.stat().st_size:,d} bytes, {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
