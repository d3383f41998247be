# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Tiled Diffusion: tiles and weights by the extension's formulas, whole images against UNet calls, texts, refusals."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin
from rendering_stock import QUICK, picture

from civman.diffusion import unet_calls
from civman.diffusion.latent_tiles import LatentTiles
from civman.diffusion.unet_calls import UnetCall
from civman.domain.recipes.tiled_diffusion import TiledDiffusion, tiled_diffusion_of

PLAIN = ("tiny-sd1", "a cat", "--negative", "dark", *QUICK[2:])


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def boxes(size: tuple[int, int], settings: TiledDiffusion) -> list[tuple[int, int, int, int]]:
    """The extension's tiles: left, top, width, height."""
    wide, high = min(settings.tile_width, size[0]), min(settings.tile_height, size[1])
    overlap = max(0, min(settings.overlap, min(settings.tile_width, settings.tile_height) - 4))

    def edges(whole: int, tile: int) -> list[int]:
        if tile == whole:
            return [0]
        count = math.ceil((whole - overlap) / (tile - overlap))
        return [min(int(n * ((whole - tile) / (count - 1))), whole - tile) for n in range(count)]

    return [(x, y, wide, high) for y in edges(size[1], high) for x in edges(size[0], wide)]


def weight(settings: TiledDiffusion, wide: int, high: int) -> Any:
    if settings.method == "MultiDiffusion":
        return np.ones((high, wide))

    def bell(place: float, middle: float) -> float:
        return math.exp(-((place - middle) ** 2) / (wide * wide) / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)

    across = [bell(x, (wide - 1) / 2) for x in range(wide)]
    return np.outer([bell(y, high / 2) for y in range(high)], across)  # the middle of a column is half a latent lower


def averaged(settings: TiledDiffusion, x: Any, predict: Any) -> Any:
    """The weighted mean of what `predict` returns for each tile of x (B, C, h, w)."""
    size = (x.shape[-1], x.shape[-2])
    total, parts = np.zeros(x.shape[-2:]), None
    for left, top, wide, high in boxes(size, settings):
        place = (..., slice(top, top + high), slice(left, left + wide))
        answer = predict(x[place]).double()
        parts = torch.zeros(*answer.shape[:2], *x.shape[-2:], dtype=torch.float64) if parts is None else parts
        share = weight(settings, wide, high)
        total[place] += share
        parts[place] += answer * torch.from_numpy(share)
    return parts / torch.from_numpy(total)


CASES = [TiledDiffusion(method, *tile, overlap) for method in ("MultiDiffusion", "Mixture of Diffusers")
         for tile, overlap in (((8, 8), 4), ((12, 8), 8), ((9, 16), 99), ((8, 10), 0))]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_predictions_are_averaged_by_the_extension_s_formula(settings: TiledDiffusion) -> None:
    pick = random.Random(str(settings))
    for _ in range(8):
        size = pick.randrange(8, 40), pick.randrange(8, 40)
        x = torch.randn(2, 4, size[1], size[0])

        def unet(part: Any, *_: Any, **more: Any) -> tuple[Any]:  # depends on all of the tile
            return (part * part.mean() + more["encoder_hidden_states"].mean(dim=(1, 2)).view(-1, 1, 1, 1),)

        contexts = torch.randn(4, 3, 5)  # two prompts for two images
        call = UnetCall(x, torch.tensor(1.0), contexts, {}, 2)

        found = unet_calls.run(LatentTiles(settings, size, torch.device("cpu")).answer(call), lambda given=unet: given)

        wanted = averaged(settings, x, lambda part, given=contexts: unet(
            part.repeat(2, 1, 1, 1), encoder_hidden_states=given)[0])  # fmt: skip
        assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5)
        assert len(boxes(size, settings)) == len(settings.grid(*size)[1]) * len(settings.grid(*size)[2])


def test_settings_are_parsed() -> None:
    assert tiled_diffusion_of("multidiffusion") == TiledDiffusion("MultiDiffusion", 96, 96, 48)
    assert tiled_diffusion_of("Mixture, tile=64x32, overlap=8") == TiledDiffusion("Mixture of Diffusers", 64, 32, 8)
    assert tiled_diffusion_of("off") is tiled_diffusion_of("") is None
    found = TiledDiffusion("Mixture of Diffusers", 80, 64, 12)
    assert tiled_diffusion_of(str(found)) == found


@pytest.mark.usefixtures("stocked", "no_sockets")
@pytest.mark.parametrize("method", ["multidiffusion", "mixture"])
def test_one_euler_step_is_the_mean_of_diffusers_unet_on_each_tile(
    civman: Civman, tmp_path: Path, root: Path, method: str
) -> None:
    """One step of Euler is x − σ · guided prediction, which diffusers' UNet computes again."""
    from civman.diffusion.environment import deterministic
    from civman.library import Library

    option = f"{method},tile=8x10,overlap=4"
    one = ("--steps", "1", "--size", "112x96", "--rng", "cpu", "--no-metadata", "-o", tmp_path / "out.png")
    [done] = made(civman("render", *PLAIN, *one, "--tiled-diffusion", option, "--json"))
    settings = tiled_diffusion_of(option)
    assert settings is not None
    with Library.open(root) as library:
        planned = library.plan(
            library_request("tiny-sd1", width=112, height=96, steps=1, guidance_scale=3.0, seed=7, sampler="Euler")
        )
        pipe = library.pipeline(replace(planned, recipe=replace(planned.recipe, tiled_diffusion=None)))
    pipe.scheduler.set_timesteps(1)
    sigma, time = 14.6146, 999.0
    with torch.no_grad(), deterministic():
        noise = torch.randn(4, 12, 14, generator=torch.Generator().manual_seed(7))[None]
        x = noise * sigma
        texts = pipe.encode_prompt("a cat", "cpu", 1, True, "dark")

        def predict(part: Any) -> Any:
            cond, uncond = (
                pipe.unet(part, torch.tensor(time), encoder_hidden_states=text)[0] for text in texts
            )  # fmt: skip
            return uncond + (cond - uncond) * 3.0

        guided = averaged(settings, x / math.sqrt(sigma**2 + 1), predict)
        clean = (x - guided * sigma).float()
        wanted = pipe.vae.decode(clean / pipe.vae.config.scaling_factor)[0][0] / 2 + 0.5
    wanted = (wanted.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(done["path"]).astype(int) - wanted).max() <= 1


def library_request(checkpoint: str, **more: Any) -> Any:
    from civman.domain.recipes.recipe import RenderRequest

    return RenderRequest(checkpoint, prompt="a cat", negative_prompt="dark", **more)


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_one_tile_changes_nothing_and_several_do(civman: Civman, tmp_path: Path) -> None:
    def drawn(*options: object) -> Any:
        [done] = made(civman("render", *PLAIN, *options, "--json"))
        return done

    large = ("--size", "96x64")
    plain = drawn(*large)
    whole = drawn(*large, "--tiled-diffusion", "mixture,tile=12x8,overlap=4")
    tiles = drawn(*large, "--tiled-diffusion", "mixture,tile=8,overlap=4")
    replayed = made(civman("replay", tiles["path"], "--json"), "replay")
    [off] = made(civman("replay", tiles["path"], "--set", "tiled_diffusion=off", "--json"))

    assert whole["pixel_sha256"] == plain["pixel_sha256"] == off["pixel_sha256"] != tiles["pixel_sha256"]
    assert "tiled_diffusion" not in plain["recipe"], "digests of other recipes stay as they were"
    assert replayed["pictures"][0]["verdict"] == "identical"
    assert "Tiled Diffusion: method Mixture of Diffusers, tile width 8" in civman("show", tiles["path"]).out


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_a1111_s_text_alone_or_with_the_source_gives_the_same_image(civman: Civman, tmp_path: Path) -> None:
    source = picture(tmp_path / "source.png", (40, 32))
    tiles = ("--tiled-diffusion", "multidiffusion,tile=8,overlap=4")
    for options in (("--size", "96x64"), ("--init", source, "--init-upscale", "lanczos:2", "--strength", "0.6")):
        [done] = made(civman("render", *PLAIN, *options, *tiles, "--json"))
        texts, plain = PngImagePlugin.PngInfo(), tmp_path / "a1111.png"
        with Image.open(done["path"]) as image:
            assert "Tiled Diffusion method: MultiDiffusion, Tiled Diffusion tile width: 8" in image.text["parameters"]
            texts.add_text("parameters", image.text["parameters"])
            changed = np.asarray(image).copy()
            changed[0, 0, 0] ^= 1  # so that the library does not recognise an image of its own
            Image.fromarray(changed).save(plain, pnginfo=texts)

        given = ("--picture", source) if "--init" in options else ()
        [again] = made(civman("replay", plain, *given, "--json"))

        assert again["pixel_sha256"] == done["pixel_sha256"]
    assert (done["recipe"]["width"], done["recipe"]["height"]) == (80, 64)
    assert civman("replay", plain, "--json").json["error"]["code"] == "not-drawable"


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_an_enlarged_input_is_an_img2img_of_the_enlarged_image(civman: Civman, tmp_path: Path) -> None:
    source, large = picture(tmp_path / "source.png", (40, 36)), tmp_path / "large.png"
    with Image.open(source) as image:
        image.convert("RGB").resize((60 // 8 * 8, 54 // 8 * 8), Image.Resampling.LANCZOS).save(large)

    [done] = made(civman("render", *PLAIN, "--init", source, "--init-upscale", "lanczos:1.5", "--json"))
    [plain] = made(civman("render", *PLAIN, "--init", large, "--json"))
    replayed = made(civman("replay", done["path"], "--json"), "replay")

    assert done["pixel_sha256"] == plain["pixel_sha256"]
    assert replayed["pictures"][0]["verdict"] == "identical"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("options", "code"), [
    (("--tiled-diffusion", "spiral"), "bad-recipe"), (("--tiled-diffusion", "mixture,tile=4"), "bad-recipe"),
    (("--tiled-diffusion", "mixture,colour=red"), "bad-value"),
    (("--tiled-diffusion", "mixture,tile=wide"), "bad-size"),
    (("--tiled-diffusion", "multidiffusion", "--sampler", "UniPC"), "bad-recipe"),
    (("--init-upscale", "lanczos:2"), "no-start-image"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_before_drawing(civman: Civman, options: tuple[str, ...], code: str) -> None:
    done = civman("render", *PLAIN, *options, "--dry-run", "--json")

    assert done.json["error"]["code"] == code, done.out
