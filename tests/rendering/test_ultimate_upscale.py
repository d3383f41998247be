# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Ultimate SD upscale: the areas by the script's rules, whole images area by area, recipes, replays, refusals."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, ImageDraw, ImageOps, PngImagePlugin
from rendering_stock import QUICK, picture

from civman.diffusion.ultimate_upscale import areas
from civman.domain.recipes.ultimate import UltimateUpscale, factors, ultimate_from

IMG2IMG = ("tiny-sd1", "a cat", *QUICK, "--strength", "0.6")
BICUBIC, LANCZOS, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def black(size: tuple[int, int]) -> Any:
    return Image.new("L", size, "black")


def script(size: tuple[int, int], s: UltimateUpscale, strength: float) -> list[tuple[Any, tuple[int, int], Any]]:
    """What the script inpaints, one after the other: mask, size of the rendering, (blur, padding, strength)."""
    w, h, found = s.tile_width, s.tile_height, []
    cols, rows = math.ceil(size[0] / w), math.ceil(size[1] / h)
    cells = [(x, y) for y in range(rows) for x in range(cols)]
    even = [(x, y) for x, y in cells if (x + y) % 2 == 0]
    order = {"linear": cells, "chess": even + [each for each in cells if each not in even], "none": []}[s.redraw]
    for x, y in order:
        mask = black(size)
        ImageDraw.Draw(mask).rectangle([x * w, y * h, x * w + w, y * h + h], fill=255)  # both ends belong to it
        large = tuple(math.ceil((side + s.padding) / 64) * 64 for side in (w, h))
        found.append((mask, large, (s.blur, s.padding, strength)))
    ramp = Image.linear_gradient("L")
    if s.seams == "band-pass":
        both = black((256, 256))
        both.paste(ramp.resize((256, 128), BICUBIC), (0, 0))
        both.paste(ramp.rotate(180).resize((256, 128), BICUBIC), (0, 128))
        for x in range(1, cols):
            mask = black(size)
            mask.paste(both.rotate(90).resize((s.seams_width, size[1]), BICUBIC), (x * w - s.seams_width // 2, 0))
            found.append((mask, (s.seams_width + 2 * s.seams_padding, size[1]), (0, s.seams_padding, s.seams_strength)))
        for y in range(1, rows):
            mask = black(size)
            mask.paste(both.resize((size[0], s.seams_width), BICUBIC), (0, y * h - s.seams_width // 2))
            found.append((mask, (size[0], s.seams_width + 2 * s.seams_padding), (0, s.seams_padding, s.seams_strength)))
    elif s.seams != "none":
        rowwise, colwise = black((w, h)), black((w, h))
        rowwise.paste(ramp.resize((w, h // 2), BICUBIC), (0, 0))
        rowwise.paste(ramp.rotate(180).resize((w, h // 2), BICUBIC), (0, h // 2))
        colwise.paste(ramp.rotate(90).resize((w // 2, h), BICUBIC), (0, 0))
        colwise.paste(ramp.rotate(270).resize((w // 2, h), BICUBIC), (w // 2, 0))
        corner = ImageOps.invert(Image.radial_gradient("L").resize((w, h), BICUBIC))
        passes = [(rowwise, cols, rows - 1, 0, h // 2, s.seams_padding),
                  (colwise, cols - 1, rows, w // 2, 0, s.seams_padding)]  # fmt: skip
        if s.seams == "half-tile-intersections":
            passes.append((corner, cols - 1, rows - 1, w // 2, h // 2, 0))
        for shade, across, down, left, top, padding in passes:
            for y in range(down):
                for x in range(across):
                    mask = black(size)
                    mask.paste(shade, (x * w + left, y * h + top))
                    found.append((mask, (w, h), (s.seams_blur, padding, s.seams_strength)))
    return found


SEAMS = ("none", "band-pass", "half-tile", "half-tile-intersections")


@pytest.mark.parametrize("seams", SEAMS)
def test_areas_are_those_of_the_script(seams: str) -> None:
    pick = random.Random(seams)
    for _ in range(12):
        tile = pick.randrange(64, 200, 8), pick.randrange(64, 200, 8)
        size = pick.randrange(64, 480, 8), pick.randrange(64, 480, 8)
        settings = UltimateUpscale(
            "lanczos", None, *tile, pick.randrange(0, 20), pick.randrange(0, 70), pick.choice(["linear", "chess"]),
            seams, 0.3, pick.randrange(8, 64, 8), pick.randrange(0, 9), pick.randrange(0, 40, 4),
        )  # fmt: skip
        wanted = script(size, settings, 0.5)

        found = list(areas(settings, size, 0.5))

        assert len(found) == len(wanted)
        for area, (mask, large, numbers) in zip(found, wanted, strict=True):
            assert np.array_equal(area.mask, np.asarray(mask))
            assert (area.size, (area.blur, area.padding, area.strength)) == (large, numbers)
        assert {each.size for each in found} == set(settings.drawn_sizes(size))


def test_factors_are_those_of_the_script() -> None:
    wanted = {1: [], 2: [2], 3: [3], 4: [4], 5: [3, 2], 6: [3, 2], 7: [4, 2], 8: [4, 2], 9: [3, 3], 12: [4, 3]}
    for whole, steps in wanted.items():
        assert factors((96, 64), (96 * whole, 64 * whole)) == steps
        assert factors((96, 64), (96 * whole - 8, 64 * whole)) == (steps if whole > 1 else [])


def test_settings_are_parsed() -> None:
    found = ultimate_from("4x-UltraSharp:1.5,tile=768x512,padding=16, Seams=Half-Tile,seams_strength=0.2")

    assert (found.upscaler, found.scale, found.size) == ("4x-UltraSharp", 1.5, None)
    assert found.settings == UltimateUpscale(
        "none", None, 768, 512, padding=16, seams="half-tile", seams_strength=0.2
    )  # fmt: skip
    assert ultimate_from("none:800x600,tile=640").settings.tile_height == 640
    assert ultimate_from("lanczos:1.5").target((100, 90), (64, 64)) == (192, 192), "rounded up to multiples of 64"
    assert ultimate_from("lanczos").target((100, 90), (None, None)) == (256, 192)
    assert ultimate_from("lanczos").target((100, 90), (128, 72)) == (128, 72)


CASES = [
    ("lanczos:128x64,tile=64,padding=0,blur=4", (64, 32), (128, 64), "lanczos"),
    pytest.param(
        "nearest:2,tile=64x64,padding=8,redraw=chess,seams=half-tile-intersections,seams-strength=0.4,seams-padding=8",
        (60, 52), (128, 128), "nearest", marks=pytest.mark.long,
    ),
    pytest.param(
        "none:136x72,tile=64,redraw=none,seams=band-pass,seams-width=24,seams-padding=4", (70, 52), (136, 72), "none",
        marks=pytest.mark.long,
    ),
]  # fmt: skip


@pytest.mark.usefixtures("stocked", "no_sockets")
@pytest.mark.parametrize(("option", "begun", "size", "way"), CASES)
def test_each_area_is_inpainted_with_the_same_seed_in_what_the_others_left(
    civman: Civman, tmp_path: Path, option: str, begun: tuple[int, int], size: tuple[int, int], way: str
) -> None:
    source, last = picture(tmp_path / "source.png", begun), tmp_path / "last.png"
    with Image.open(source) as image:
        large = image.convert("RGB")
    if way != "none":  # by the script's factor, to multiples of 8, and from there to the size
        factor = math.ceil(max(size) / max(begun))
        assert factor in (2, 3, 4)
        large = large.resize((begun[0] * factor, begun[1] * factor), LANCZOS if way == "lanczos" else NEAREST)
        large = large.resize(tuple(side // 8 * 8 for side in large.size), LANCZOS)
    large.resize(size, LANCZOS).save(last)
    for mask, area, (blur, padding, strength) in script(size, ultimate_from(option).settings, 0.6):
        mask.save(tmp_path / "mask.png")
        [one] = made(civman(
            "render", *IMG2IMG[:-1], str(strength), "--init", last, "--mask", tmp_path / "mask.png", "--only-masked",
            "--mask-blur", blur, "--padding", padding, "--size", f"{area[0]}x{area[1]}", "--json",
        ))  # fmt: skip
        Image.fromarray(pixels(one["path"])).save(last)

    [done] = made(civman("render", *IMG2IMG, "--init", source, "--ultimate-upscale", option, "--json"))

    assert np.array_equal(pixels(done["path"]), pixels(last))
    assert (done["recipe"]["width"], done["recipe"]["height"]) == size


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_recipe_text_replay_and_variation(civman: Civman, tmp_path: Path) -> None:
    source = picture(tmp_path / "source.png", (56, 40))
    options = ("--ultimate-upscale", "lanczos:1,tile=64,padding=0,blur=2")
    [done] = made(civman("render", *IMG2IMG, "--init", source, *options, "--json"))
    texts, plain = PngImagePlugin.PngInfo(), tmp_path / "a1111.png"
    with Image.open(done["path"]) as image:
        texts.add_text("parameters", image.text["parameters"])
        changed = np.asarray(image).copy()
        changed[0, 0, 0] ^= 1  # so that the library does not recognise an image of its own
        Image.fromarray(changed).save(plain, pnginfo=texts)
    assert "Size: 64x64" in texts.chunks[0][1].decode("latin-1")
    for words in ("upscaler: Lanczos", "tile_width: 64", "tile_height: 64", "mask_blur: 2", "padding: 0"):
        assert f"Ultimate SD upscale {words}" in texts.chunks[0][1].decode("latin-1")
    assert "Ultimate SD upscale: method lanczos, tile width 64" in civman("show", done["path"]).out

    [again] = made(civman("replay", plain, "--picture", source, "--json"))
    without = civman("replay", plain, "--json")
    source.unlink()
    replayed = made(civman("replay", done["path"], "--json"), "replay")
    [varied] = made(civman("replay", done["path"], "--set", "ultimate_upscale=off", "--json"))

    assert again["pixel_sha256"] == done["pixel_sha256"]
    assert again["compared"]["verdict"] == "the same picture"
    assert without.json["error"]["code"] == "not-drawable"
    assert "--picture SOURCE" in without.json["error"]["message"]
    assert replayed["pictures"][0]["verdict"] == "identical"
    assert "ultimate" not in varied["recipe"], "digests of other recipes stay as they were"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("options", "code"), [
    (("nowhere:2",), "not-found"), (("lanczos:17",), "bad-size"), (("lanczos:2,colour=red",), "bad-value"),
    (("lanczos:2,tile=wide",), "bad-size"), (("lanczos:2,padding=x",), "bad-value"),
    (("lanczos:2,tile=60",), "bad-recipe"),
    (("lanczos:2,tile=100",), "bad-recipe"), (("lanczos:2,padding=-1",), "bad-recipe"),
    (("lanczos:2,redraw=spiral",), "bad-recipe"), (("lanczos:2,redraw=none",), "bad-recipe"),
    (("lanczos:2,tile=64,seams=band-pass,seams-width=61",), "bad-recipe"),
    (("lanczos:2,seams=half-tile,seams-strength=0",), "bad-recipe"), (("lanczos:2", "--hires", "2"), "bad-recipe"),
    (("lanczos:2", "--tiled-upscale", "lanczos:2"), "bad-value"),
    (("lanczos:2", "--resize-mode", "crop and resize"), "bad-recipe"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_before_drawing(
    civman: Civman, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    source = picture(tmp_path / "source.png", (96, 80))

    done = civman("render", *IMG2IMG, "--init", source, "--ultimate-upscale", *options, "--dry-run", "--json")

    assert done.json["error"]["code"] == code, done.out


@pytest.mark.usefixtures("stocked")
def test_an_input_image_is_needed(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--ultimate-upscale", "lanczos:2", "--dry-run", "--json")

    assert done.json["error"]["code"] == "no-start-image"
