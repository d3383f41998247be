# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""A redraw in tiles (A1111's "SD upscale"): the grid, whole images, recipes, replays, and what is refused."""

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin
from rendering_stock import QUICK, picture

from civman.diffusion.tiled_redraw import Grid
from civman.domain.recipes.tiled import TiledRedraw, tile_count

IMG2IMG = ("tiny-sd1", "a cat", *QUICK, "--strength", "0.6")


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def edges(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, by the script's formula: ceil((l - o) / (t - o)) tiles, evenly spread, cut to integers.

    Only the last one is put at the edge, from which the script's rounding may leave it one pixel away.
    """
    count = math.ceil((length - overlap) / (tile - overlap))
    found = [0] if count <= 1 else [int(n * ((length - tile) / (count - 1))) for n in range(count)]
    assert length - tile - found[-1] in (0, 1)
    return [*found[:-1], length - tile]


def blended(under: np.ndarray, over: np.ndarray, axis: int) -> np.ndarray:
    """Blend with weights floor(255 n / N) of 255, from 0 at the first of N pixels along the axis."""
    count = over.shape[axis]
    weights = np.array([255 * n // count for n in range(count)]).reshape((1, -1, 1) if axis else (-1, 1, 1))
    total = under.astype(int) * (255 - weights) + over.astype(int) * weights
    return ((2 * total + 255) // 510).astype(np.uint8)  # to the nearest


def joined(tiles: list[np.ndarray], lefts: list[int], tops: list[int], overlap: int) -> np.ndarray:
    """Join tiles row by row: within a row first, then the rows."""
    high, wide = tiles[0].shape[:2]
    whole, remaining = np.zeros((tops[-1] + high, lefts[-1] + wide, 3), np.uint8), iter(tiles)
    for top in tops:
        row = np.zeros((high, whole.shape[1], 3), np.uint8)
        for left in lefts:
            tile = next(remaining).copy()
            if left:
                tile[:, :overlap] = blended(row[:, left : left + overlap], tile[:, :overlap], 1)
            row[:, left : left + wide] = tile
        if top:
            row[:overlap] = blended(whole[top : top + overlap], row[:overlap], 0)
        whole[top : top + high] = row
    return whole


def test_tiles_lie_where_the_script_s_formula_says_and_cover_the_image() -> None:
    chance = random.Random(5)
    for _ in range(400):
        tile = chance.randrange(64, 1025, 8), chance.randrange(64, 1025, 8)
        size = tile[0] + chance.randrange(0, 3000), tile[1] + chance.randrange(0, 3000)
        overlap = chance.randrange(0, min(tile) // 2)

        grid = Grid.of(size, tile, overlap)

        assert list(grid.lefts) == edges(size[0], tile[0], overlap)
        assert list(grid.tops) == edges(size[1], tile[1], overlap)
        assert tile_count(TiledRedraw("lanczos", *size, None, overlap), tile) == len(grid.boxes)
        assert (grid.boxes[-1][2], grid.boxes[-1][3]) == size, "the last tile ends at the edge"
        gaps = [after - here for here, after in pairwise(grid.lefts)]
        assert all(gap <= tile[0] - overlap + 1 for gap in gaps), "neighbours share the overlap, up to a pixel"


def test_joining_blends_columns_before_rows() -> None:
    numbers = np.random.default_rng(3)
    for size, tile, overlap in (((100, 90), (40, 48), 8), ((64, 64), (64, 64), 16), ((130, 64), (72, 64), 31),
                                ((80, 200), (80, 56), 0)):  # fmt: skip
        grid = Grid.of(size, tile, overlap)
        tiles = [numbers.integers(0, 256, (tile[1], tile[0], 3), dtype=np.uint8) for _ in grid.boxes]

        found = np.asarray(grid.joined([Image.fromarray(each) for each in tiles]))

        wanted = joined(tiles, edges(size[0], tile[0], overlap), edges(size[1], tile[1], overlap), overlap)
        assert found.shape == wanted.shape == (size[1], size[0], 3)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_batches_of_tiles_have_the_seeds_that_the_script_gives_them(batch: int) -> None:
    tiled, found, seed = TiledRedraw("lanczos", 512, 512, batch=batch), [], 40
    for first in range(0, 11, batch):
        found += [seed + n for n in range(min(batch, 11 - first))]
        seed += 1  # the script continues with the seed after the first one of the batch

    assert [tiled.seed_of(40, number) for number in range(11)] == found


@pytest.mark.usefixtures("stocked", "no_sockets")
@pytest.mark.parametrize(("options", "size", "overlap", "seeds"), [
    (("--tiled-upscale", "lanczos:1.5", "--tile-overlap", "16"), (104, 80), 16, [7, 8, 9, 10]),
    pytest.param(
        ("--tiled-upscale", "nearest:120x80", "--tile-overlap", "8", "--tile-batch", "2"), (120, 80), 8, [7, 8, 8, 9],
        marks=pytest.mark.long,
    ),
    pytest.param(
        ("--tiled-upscale", "none", "--tile-overlap", "0"), (72, 64), 0, [7, 8], marks=pytest.mark.long
    ),
])  # fmt: skip
def test_each_tile_is_an_img2img_of_its_own_with_the_script_s_seed(
    civman: Civman, tmp_path: Path, options: tuple[str, ...], size: tuple[int, int], overlap: int, seeds: Any
) -> None:
    source = picture(tmp_path / "source.png", (72, 64) if "none" in options else (70, 56))
    way = Image.Resampling.NEAREST if "nearest" in options[1] else Image.Resampling.LANCZOS
    with Image.open(source) as image:
        large = image.convert("RGB") if image.size == size else image.convert("RGB").resize(size, way)
    lefts, tops = edges(size[0], 64, overlap), edges(size[1], 64, overlap)
    tiles = []
    for seed, (top, left) in zip(seeds, [(top, left) for top in tops for left in lefts], strict=True):
        large.crop((left, top, left + 64, top + 64)).save(tmp_path / "tile.png")
        [tile] = made(civman("render", *IMG2IMG, "--seed", str(seed), "--init", tmp_path / "tile.png", "--json"))
        tiles.append(pixels(tile["path"]))

    [done] = made(civman("render", *IMG2IMG, "--init", source, *options, "--json"))

    assert np.array_equal(pixels(done["path"]), joined(tiles, lefts, tops, overlap))
    assert done["recipe"]["schema"] == 9
    assert (done["recipe"]["tiled"]["width"], done["recipe"]["tiled"]["height"]) == size


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_recipe_replay_variation_and_several_images(civman: Civman, tmp_path: Path) -> None:
    source = picture(tmp_path / "source.png", (56, 40))
    first, second = made(civman(
        "render", *IMG2IMG, "--init", source, "--tiled-upscale", "lanczos", "--tile-overlap", "16", "--count", "2",
        "--json",
    ))  # fmt: skip
    with Image.open(first["path"]) as image:
        text = image.text["parameters"]
    assert image.size == (112, 80)
    assert "Size: 64x64" in text
    assert "SD upscale overlap: 16, SD upscale upscaler: Lanczos" in text
    assert "redrawn in tiles: 112x80" in civman("show", first["path"]).out
    source.unlink()
    assert made(civman("replay", second["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    changes = ("--set", "seed=8", "--set", "upscale=nearest:2", "--set", "tile_overlap=16")
    [larger] = made(civman("replay", first["path"], *changes, "--json"))
    assert np.array_equal(pixels(larger["path"]), pixels(second["path"]).repeat(2, 0).repeat(2, 1)), "seed + n"
    [plain] = made(civman("replay", first["path"], "--set", "tiled_upscale=off", "--json"))
    assert pixels(plain["path"]).shape == (64, 64, 3)
    assert "tiled" not in plain["recipe"], "digests of other recipes stay as they were"


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_a1111_s_text_and_the_source_give_the_same_image(civman: Civman, tmp_path: Path) -> None:
    source = picture(tmp_path / "source.png", (70, 56))
    [done] = made(civman(
        "render", *IMG2IMG, "--init", source, "--tiled-upscale", "lanczos:1.5", "--tile-overlap", "16", "--json"
    ))  # fmt: skip
    texts, plain = PngImagePlugin.PngInfo(), tmp_path / "a1111.png"
    with Image.open(done["path"]) as image:
        texts.add_text("parameters", image.text["parameters"])
        changed = np.asarray(image).copy()
        changed[0, 0, 0] ^= 1  # so that the library does not recognise an image of its own
        Image.fromarray(changed).save(plain, pnginfo=texts)

    [again] = made(civman("replay", plain, "--picture", source, "--json"))
    without = civman("replay", plain, "--json")

    assert again["pixel_sha256"] == done["pixel_sha256"]
    assert again["compared"]["verdict"] == "the same picture"
    assert without.json["error"]["code"] == "not-drawable"
    assert "--picture SOURCE" in without.json["error"]["message"]


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("options", "code"), [
    (("--tiled-upscale", "nowhere:2"), "not-found"),
    (("--tiled-upscale", "lanczos:17"), "bad-size"),
    (("--tiled-upscale", "none:2"), "bad-size"),
    (("--tiled-upscale", "lanczos:0.5"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--tile-overlap", "64"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--tile-overlap", "-1"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--tile-batch", "0"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--tile-batch", "2", "--variation-strength", "0.1"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--seed", str(2**64 - 1)), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--hires", "2"), "bad-recipe"),
    (("--tiled-upscale", "lanczos:2", "--resize-mode", "crop and resize"), "bad-recipe"),
    (("--tile-overlap", "16"), "bad-value"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_before_drawing(
    civman: Civman, tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    source = picture(tmp_path / "source.png", (96, 80))
    done = civman("render", *IMG2IMG, "--init", source, "--tile-overlap", "8", *options, "--dry-run", "--json") if (
        "--tiled-upscale" in options
    ) else civman("render", *IMG2IMG, "--init", source, *options, "--dry-run", "--json")  # fmt: skip

    assert done.json["error"]["code"] == code, done.out


@pytest.mark.usefixtures("stocked")
def test_tiles_need_an_input_image(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--tiled-upscale", "lanczos:2", "--dry-run", "--json")

    assert done.json["error"]["code"] == "no-start-image"
