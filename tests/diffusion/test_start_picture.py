# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Inpainting and other sizes as A1111 does them: its steps written a second time with Pillow and scipy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
ndimage = pytest.importorskip("scipy.ndimage")

import closed_form
from a1111_oracle import Stack
from PIL import Image, ImageFilter, ImageOps
from sampler_oracles import NO_FILE, SEED, distance, enlarged_latents, recipe, stack

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.loader import load
from civman.diffusion.noise_levels import Schedule
from civman.diffusion.run_recipe import Inputs, render
from civman.diffusion.second_pass import covering
from civman.diffusion.skip_sizes import doubled_then_resized
from civman.diffusion.start_picture import cropped_to_region
from civman.domain.recipes.complete import Resolved, complete
from civman.domain.recipes.recipe import HiresRequest, RenderRequest, StartImage
from civman.errors import UsageError
from civman.planning.input_pictures import read_picture

PICTURE = np.random.default_rng(4).integers(0, 255, (96, 128, 3), dtype=np.uint8)
MASK = np.zeros((96, 128), np.uint8)
MASK[30:60, 40:90] = 255


@dataclass(frozen=True)
class Parts:
    """The other side's model: `ask(x, time, context)` with four or nine channels, and the VAE's two ways."""

    ask: Callable[..., Any] = closed_form.answer
    encode: Callable[[Any], Any] = lambda pixels: closed_form.Vae().encode(pixels).latent_dist.mode()
    decode: Callable[[Any], Any] = lambda latents: closed_form.Vae().decode(latents, return_dict=False)[0]
    cond: Any = closed_form.COND
    uncond: Any = closed_form.UNCOND
    channels: int = 4
    xl: bool = False


CLOSED = Parts()


def softened(mask: Any, radius: int) -> Any:
    if radius:
        reach = int(2.5 * radius + 0.5)
        weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * radius**2))
        for axis in (1, 0):
            mask = ndimage.correlate1d(mask.astype(float), weights / weights.sum(), axis=axis, mode="mirror")
            mask = np.round(mask).astype(np.uint8)
    return mask


def filled(image: Any, mask: Any) -> Any:
    result, rest = Image.new("RGBA", image.size), Image.new("RGBa", image.size)
    rest.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        result.alpha_composite(rest.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return result.convert("RGB")


def square_box(mask: Any, pad: int) -> list[int]:
    """The region that is drawn of an image of 128x96, for a square."""
    rows, columns = (np.flatnonzero(np.asarray(mask).any(axis=axis)) for axis in (1, 0))
    box = [max(columns[0] - pad, 0), max(rows[0] - pad, 0), min(columns[-1] + 1 + pad, 128),
           min(rows[-1] + 1 + pad, 96)]  # fmt: skip
    missing = (box[2] - box[0]) - (box[3] - box[1])  # wider than high here, for a square
    box[1], box[3] = box[1] - missing // 2, box[3] + missing - missing // 2
    if box[3] >= 96:
        box[1], box[3] = box[1] - (box[3] - 96), 96
    if box[1] < 0:
        box[1], box[3] = 0, box[3] - box[1]
    box[3] = min(box[3], 96)
    return box


def expected(start: StartImage, name: str = "Euler a", parts: Parts = CLOSED) -> tuple[Any, Any]:
    """(latents, pixels) by A1111's steps at 64x64."""
    mask, picture = Image.fromarray(softened(MASK, start.mask_blur)), Image.fromarray(PICTURE)
    box = None
    if start.only_masked:
        box = square_box(mask, start.padding)
        small, here = mask.crop(box), picture.crop(box)
        assert small.width == small.height, "the sides are equal, so that nothing is drawn out"
        shown, overlay = small.resize((64, 64), Image.Resampling.LANCZOS), np.asarray(mask).astype(float)
    else:
        shown, here = (each.resize((64, 64), Image.Resampling.LANCZOS) for each in (mask, picture))
        overlay = np.clip(np.asarray(shown).astype(float) * 2, 0, 255).astype(np.uint8).astype(float)
    here = here.resize((64, 64), Image.Resampling.LANCZOS)
    kept = np.asarray(picture if start.only_masked else here).astype(float)
    if start.masked_content != "original":
        here = filled(here, shown)
    source = 2 * torch.from_numpy(np.asarray(here).astype(np.float32) / 255).permute(2, 0, 1)[None] - 1
    latents = parts.encode(source)
    cells = np.around(np.asarray(shown.convert("RGB").resize((8, 8))).astype(np.float32)[:, :, 0] / 255)
    area = torch.from_numpy(cells)[None, None]
    if start.masked_content == "latent noise":
        fresh = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(SEED))[None]
        latents = latents * (1 - area) + fresh * area
    elif start.masked_content == "latent nothing":
        latents = latents * (1 - area)
    shown_to_it = torch.zeros(1, 0, 8, 8)
    if parts.channels == 9:  # the mask in whole steps of a pixel, and the picture with what is under it greyed
        grey = torch.round(torch.from_numpy(np.asarray(shown).astype(np.float32) / 255))[None, None]
        masked = torch.lerp(source, source * (1 - grey), start.conditioning_weight)
        shown_to_it = torch.cat([torch.nn.functional.interpolate(grey, size=(8, 8)), parts.encode(masked)], dim=1)

    def unet(x: Any, time: Any, context: Any) -> Any:
        return parts.ask(torch.cat([x, shown_to_it], dim=1), time, context)

    result = Stack(unet, xl=parts.xl).img2img(
        name, "Automatic", 8, latents, SEED, start.strength, closed_form.CFG, parts.cond, parts.uncond,
        mask=area, noise_multiplier=start.noise_multiplier,
    )  # fmt: skip
    drawn = ((parts.decode(result)[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy() * 255
    if box is not None:
        whole = np.zeros(PICTURE.shape)
        patch = Image.fromarray(np.round(drawn).astype(np.uint8)).resize((box[2] - box[0], box[3] - box[1]),
                                                                        Image.Resampling.LANCZOS)  # fmt: skip
        whole[box[1] : box[3], box[0] : box[2]] = np.asarray(patch)
        drawn = whole
    share = overlay[:, :, None] / 255
    return result, drawn * share + kept * (1 - share)


@pytest.mark.parametrize(
    "start",
    [
        StartImage(NO_FILE, 0.7, NO_FILE, 4),
        StartImage(NO_FILE, 0.7, NO_FILE, 0),
        StartImage(NO_FILE, 0.7, NO_FILE, 12, masked_content="fill"),
        StartImage(NO_FILE, 0.9, NO_FILE, 4, masked_content="latent noise"),
        StartImage(NO_FILE, 0.9, NO_FILE, 4, masked_content="latent nothing"),
        StartImage(NO_FILE, 0.7, NO_FILE, 2, only_masked=True, padding=6),
        StartImage(NO_FILE, 0.7, NO_FILE, 4, noise_multiplier=1.1),
    ],
    ids=lambda start: f"{start.masked_content}-{start.mask_blur}-{start.only_masked}-{start.noise_multiplier}",
)
def test_inpainting_is_a1111_s(start: StartImage) -> None:
    model = closed_form.model()
    asked = replace(recipe("Euler a", Schedule.AUTOMATIC, "SD 1", "img2img 0.75"), start=start)

    (made,) = render(asked, model, closed_form.prompt(), inputs=Inputs(PICTURE, MASK))
    latents, pixels = expected(start)

    assert distance(model.vae.decoded, latents) < 1e-5
    assert made.pixels.shape == pixels.shape
    assert np.abs(made.pixels - pixels).max() <= 2  # Pillow rounds at every step, the sum above at none


@pytest.mark.parametrize("name", ["DDIM", "PLMS", "UniPC", "Euler", "DPM++ SDE"])
def test_every_kind_of_sampler_inpaints_as_a1111(name: str) -> None:
    model = closed_form.model()
    start = StartImage(NO_FILE, 0.7, NO_FILE, 4)
    asked = replace(recipe(name, Schedule.AUTOMATIC, "SD 1", "img2img 0.75"), start=start)

    render(asked, model, closed_form.prompt(), inputs=Inputs(PICTURE, MASK))

    assert distance(model.vae.decoded, expected(start, name)[0]) < 1e-5


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (StartImage(NO_FILE, 0.7, NO_FILE, 4), "Euler a"),
        (StartImage(NO_FILE, 0.9, NO_FILE, 4, masked_content="fill"), "DPM++ 2M SDE"),
        (StartImage(NO_FILE, 0.9, NO_FILE, 4, masked_content="latent noise"), "DDIM"),
        (StartImage(NO_FILE, 0.7, NO_FILE, 2, only_masked=True, padding=6), "DPM++ 2M"),
        (StartImage(NO_FILE, 0.7, NO_FILE, 4, conditioning_weight=0.4), "UniPC"),
        (StartImage(NO_FILE, 1.0, NO_FILE, 0, conditioning_weight=0.0), "Euler"),
    ],
    ids=lambda each: f"{each.masked_content}-{each.conditioning_weight}" if isinstance(each, StartImage) else each,
)
@pytest.mark.parametrize("xl", [False, True], ids=["SD 1", "SDXL"])
def test_inpainting_checkpoints_see_what_a1111_shows_them(start: StartImage, name: str, xl: bool) -> None:
    model = closed_form.model(channels=9, xl=xl)
    asked = replace(recipe(name, Schedule.AUTOMATIC, "SD 1", "img2img 0.75"), start=start)

    (made,) = render(asked, model, closed_form.prompt(), inputs=Inputs(PICTURE, MASK))
    latents, pixels = expected(start, name, replace(CLOSED, channels=9, xl=xl))

    assert distance(model.vae.decoded, latents) < 1e-5
    assert np.abs(made.pixels - pixels).max() <= 2
    assert distance(model.vae.decoded, expected(start, name)[0]) > 1e-2, "the five channels more count for nothing"


@pytest.mark.parametrize(("hires", "xl"), [(None, False), ((96, 64), False), (None, True)])
def test_an_inpainting_checkpoint_without_a_picture_is_shown_grey(hires: tuple[int, int] | None, xl: bool) -> None:
    mode = "hires latent" if hires else "txt2img"
    asked = recipe("Euler", Schedule.AUTOMATIC, "SD 1", mode)
    model = closed_form.model(channels=9, xl=xl)

    def unet(x: Any, time: Any, context: Any) -> Any:
        grey = CLOSED.encode(torch.zeros(1, 3, x.shape[-2] * 8, x.shape[-1] * 8))
        return closed_form.answer(torch.cat([x, torch.ones_like(x[:, :1]), grey], dim=1), time, context)

    rest = (closed_form.CFG, closed_form.COND, closed_form.UNCOND)
    theirs = Stack(unet, xl=xl).txt2img("Euler", "Automatic", asked.steps, (4, 8, 8), SEED, *rest)
    if hires:
        larger = enlarged_latents(theirs)
        theirs = Stack(unet, xl=xl).img2img("Euler", "Automatic", 6, larger, SEED, 0.6, *rest, second_pass=True)

    render(asked, model, closed_form.prompt())

    assert distance(model.vae.decoded, theirs) < 1e-5


def test_sdxl_s_second_pass_is_told_the_size_before_the_crop(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sdxl"], dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    cond, uncond = (torch.randn(1, 77, 56, generator=generator) for _ in range(2))
    pooled = [torch.randn(1, 32, generator=generator) for _ in range(2)]
    asked = recipe("Euler", Schedule.AUTOMATIC, "SD 1", "hires latent")
    decoded: list[Any] = []
    model.vae.decode = lambda latents, **_: decoded.append(latents * 1.0) or (torch.rand(1, 3, 64, 96),)

    def told(height: float, width: float) -> Stack:
        def unet(x: Any, time: Any, context: Any) -> Any:
            more = {
                "text_embeds": pooled[context is uncond],
                "time_ids": torch.tensor([[height, width, 0, 0, height, width]]),
            }
            return model.unet(x, time, encoder_hidden_states=context, added_cond_kwargs=more).sample

        return Stack(unet, xl=True)

    with torch.no_grad():
        rest = (closed_form.CFG, cond, uncond)
        latents = told(64.0, 64.0).txt2img("Euler", "Automatic", asked.steps, (4, 8, 8), SEED, *rest)
        wanted, cropped_told = (
            told(height, 96.0).img2img(
                "Euler", "Automatic", 6, enlarged_latents(latents), SEED, 0.6, *rest, second_pass=True
            )
            for height in (96.0, 64.0)
        )
        render(asked, model, Conditioning(cond, uncond, *pooled))
        render(replace(asked, rules=2), model, Conditioning(cond, uncond, *pooled))

    made, by_rules_2 = (latents * model.vae.config.scaling_factor for latents in decoded)
    assert distance(by_rules_2, cropped_told) < 5e-5
    assert distance(made, wanted) < 5e-5  # this UNet takes both prompts in one call here, one by one there
    assert distance(made, cropped_told) > 5e-4


@pytest.mark.parametrize("kind", ["sd1-inpaint", "sdxl", "sdxl-inpaint"])
def test_diffusers_unet_and_vae_inpaint_as_in_a1111(tiny_files: dict[str, Path], kind: str) -> None:
    model = load(tiny_files[kind], dtype=torch.float32)
    unet, vae, factor = model.unet, model.vae, model.vae.config.scaling_factor
    generator = torch.Generator().manual_seed(1)
    cond, uncond = (torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator) for _ in range(2))
    pooled = [torch.randn(1, 32, generator=generator) for _ in range(2)] if model.family.is_xl else [None, None]

    def ask(x: Any, time: Any, context: Any) -> Any:
        more = {}
        if model.family.is_xl:
            sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
            more = {"added_cond_kwargs": {"text_embeds": pooled[context is uncond], "time_ids": sizes}}
        return unet(x, time, encoder_hidden_states=context, **more).sample

    parts = Parts(
        ask, lambda pixels: vae.encode(pixels).latent_dist.mode() * factor,
        lambda latents: vae.decode(latents / factor).sample, cond, uncond, unet.config.in_channels, model.family.is_xl,
    )  # fmt: skip
    start = StartImage(NO_FILE, 0.7, NO_FILE, 4)
    asked = replace(recipe("Euler a", Schedule.AUTOMATIC, "SD 1", "img2img 0.75"), start=start)

    (made,) = render(asked, model, Conditioning(cond, uncond, *pooled), inputs=Inputs(PICTURE, MASK))
    with torch.no_grad():
        _, pixels = expected(start, "Euler a", parts)

    assert np.abs(made.pixels - pixels).max() <= 2
    assert made.pixels.std() > 10


def test_guidance_below_1_follows_the_prompt_less() -> None:
    model = closed_form.model()
    asked = replace(recipe("Euler", Schedule.AUTOMATIC, "SD 1", "txt2img"), guidance_scale=0.4)
    theirs = stack("SD 1").txt2img("Euler", "Automatic", 20, (4, 8, 8), SEED, 0.4, closed_form.COND, closed_form.UNCOND)

    render(asked, model, closed_form.prompt())

    assert distance(model.vae.decoded, theirs) < 1e-5


@pytest.mark.parametrize("mode", ["crop and resize", "resize and fill"])
def test_a_picture_of_another_shape_is_cropped_or_drawn_out(mode: str) -> None:
    from civman.diffusion.start_picture import fitted

    made = np.asarray(fitted(Image.fromarray(PICTURE), (64, 64), mode)).astype(int)

    if mode == "crop and resize":
        whole = np.asarray(Image.fromarray(PICTURE).resize((85, 64), Image.Resampling.LANCZOS)).astype(int)
        assert np.array_equal(made, whole[:, 10:74])
    else:
        whole = np.asarray(Image.fromarray(PICTURE).resize((64, 48), Image.Resampling.LANCZOS)).astype(int)
        assert np.array_equal(made[8:56], whole)
        assert np.abs(made[:8] - made[0]).max() == 0


@pytest.mark.parametrize(
    ("first", "wanted", "covers"),
    [((64, 64), (96, 64), (96, 96)), ((512, 768), (1024, 1024), (1024, 1536)), ((768, 512), (1024, 1024), (1536, 1024)),
     ((512, 512), (1024, 1024), (1024, 1024))],
)  # fmt: skip
def test_the_second_pass_covers_the_size_asked_for(
    first: tuple[int, int], wanted: tuple[int, int], covers: tuple[int, int]
) -> None:
    assert covering(first, wanted) == covers


@pytest.mark.parametrize(
    ("asked", "size"),
    [((1024, 0), (1024, 1536)), ((0, 1024), (680, 1024)), ((1024, None), (1024, 1536)), ((None, None), (1024, 1536))],
)
def test_one_side_of_the_second_pass_keeps_the_shape(asked: tuple[int, int], size: tuple[int, int]) -> None:
    found = Resolved(
        checkpoint=NO_FILE, native_size=512, prediction="epsilon", is_zero_snr=False, precision="float32",
        sampler="Euler", schedule="Normal", seed=1,
    )  # fmt: skip
    made = complete(RenderRequest("m", width=512, height=768, hires=HiresRequest(*asked)), found)

    assert made.hires is not None
    assert (made.hires.width, made.hires.height) == size


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Latent", "latent"), ("Latent (bicubic antialiased)", "latent-bicubic-antialiased"), ("None", "lanczos"),
     ("Latent (nearest-exact)", "latent-nearest-exact"), ("Lanczos", "lanczos"), ("latent-bicubic", "latent-bicubic")],
)  # fmt: skip
def test_upscalers_are_known_by_a1111_s_names(name: str, meant: str) -> None:
    found = Resolved(
        checkpoint=NO_FILE, native_size=512, prediction="epsilon", is_zero_snr=False, precision="float32",
        sampler="Euler", schedule="Normal", seed=1,
    )  # fmt: skip
    made = complete(RenderRequest("m", hires=HiresRequest(upscaler=name)), found)

    assert made.hires is not None
    assert made.hires.upscaler == meant


def test_what_is_transparent_in_a_mask_is_not_painted(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 4, 8))
    image.save(tmp_path / "mask.png")

    now = read_picture(tmp_path / "mask.png", is_mask=True).pixels
    before = read_picture(tmp_path / "mask.png", is_mask=True, rules=1).pixels

    assert (now[:, :4] == 255).all()
    assert (now[:, 4:] == 0).all()
    assert (before == 255).all()


def test_a_mask_that_paints_nothing_cannot_be_drawn_alone() -> None:
    start = StartImage(NO_FILE, 0.7, NO_FILE, 0, only_masked=True)
    asked = replace(recipe("Euler", Schedule.AUTOMATIC, "SD 1", "img2img 0.75"), start=start)

    with pytest.raises(UsageError, match="selects nothing"):
        render(asked, closed_form.model(), closed_form.prompt(), inputs=Inputs(PICTURE, np.zeros_like(MASK)))


def test_odd_sizes_double_a_level_and_resize_it_as_a1111_does() -> None:
    from diffusers.models.upsampling import Upsample2D

    torch.manual_seed(1)
    level = Upsample2D(4, use_conv=True, out_channels=4)
    hidden = torch.randn(1, 4, 5, 5)
    doubled = torch.nn.functional.interpolate(hidden, scale_factor=2, mode="nearest")
    convolved = torch.nn.functional.conv2d(doubled, level.conv.weight, level.conv.bias, padding=1)
    wanted = torch.nn.functional.interpolate(convolved, size=(9, 9), mode="nearest")

    usual = level(hidden, output_size=(9, 9))
    with doubled_then_resized(torch.nn.Sequential(level)):
        made = level(hidden, output_size=(9, 9))

    assert torch.allclose(made, wanted, atol=1e-6)
    assert not torch.allclose(made, usual, atol=1e-3)
    assert torch.equal(level(hidden, output_size=(9, 9)), usual)


@pytest.mark.parametrize("side", [128, 64])
def test_a_control_image_is_cropped_to_the_region_as_the_input_image_is(side: int) -> None:
    start = StartImage(NO_FILE, 0.7, NO_FILE, 2, only_masked=True, padding=6)
    whole = Image.effect_noise((side, side * 3 // 4), 60).convert("RGB")
    box = square_box(Image.fromarray(softened(MASK, start.mask_blur)), start.padding)
    larger = whole.resize((128, 96), Image.Resampling.LANCZOS)  # the same image if it has this size
    wanted = larger.crop(box).resize((64, 64), Image.Resampling.LANCZOS)

    found = cropped_to_region(np.asarray(whole), "just resize", start, MASK, (128, 96), (64, 64))

    assert np.array_equal(found, np.asarray(wanted))
