# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""FreeU and ComfyUI's ways to enlarge, computed a second time."""

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tiny_adapters import tiny_unet

from civman.diffusion import plain_resizing
from civman.diffusion.freed_unet import freed
from civman.domain.recipes.freeu_settings import FreeU, freeu_of
from civman.errors import UsageError


def filtered(features: Any, scale: float) -> Any:
    spectrum = torch.fft.fftn(features, dim=(-2, -1))
    height, width = features.shape[-2:]
    down, across = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    low = ((down >= -1) & (down < 1))[:, None] & ((across >= -1) & (across < 1))[None]
    return torch.fft.ifftn(torch.where(low, spectrum * scale, spectrum), dim=(-2, -1)).real


def by_hand(unet: Any, x: Any, time: Any, context: Any, added: Any, found: FreeU | None) -> Any:
    """The UNet's forward pass, block by block, with FreeU between the skip connections and the blocks."""
    emb = unet.time_embedding(unet.time_proj(time.expand(len(x))))
    if added:
        ids = unet.add_time_proj(added["time_ids"].flatten()).reshape(len(x), -1)
        emb = emb + unet.add_embedding(torch.cat([added["text_embeds"], ids], dim=-1))
    x = unet.conv_in(x)
    skips = [x]
    for level in unet.down_blocks:
        more = {"encoder_hidden_states": context} if getattr(level, "has_cross_attention", False) else {}
        x, passed = level(hidden_states=x, temb=emb, **more)
        skips += passed
    x = unet.mid_block(x, emb, encoder_hidden_states=context)
    first = unet.config.block_out_channels[0]
    factors = {4 * first: (found.b1, found.s1), 2 * first: (found.b2, found.s2)} if found else {}
    for level in unet.up_blocks:
        for place, block in enumerate(level.resnets):
            skip = skips.pop()
            if x.shape[1] in factors:
                b, s = factors[x.shape[1]]
                mean = x.mean(dim=1, keepdim=True)
                spread = mean.amax((2, 3), keepdim=True) - mean.amin((2, 3), keepdim=True)
                share = (mean - mean.amin((2, 3), keepdim=True)) / spread
                factor = (b - 1) * share + 1 if found and found.version == "v2" else b
                half = x.shape[1] // 2
                x = torch.cat([x[:, :half] * factor, x[:, half:]], dim=1)
                skip = filtered(skip, s)
            x = block(torch.cat([x, skip], dim=1), emb)
            if getattr(level, "has_cross_attention", False):
                x = level.attentions[place](x, encoder_hidden_states=context, return_dict=False)[0]
        for upsampler in level.upsamplers or []:
            x = upsampler(x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("version", [None, "v1", "v2"])
def test_freeu_changes_what_comfyui_changes(family: str, version: str | None) -> None:
    unet: Any = tiny_unet(family)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 16, 24, generator=generator)
    context = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    added = None
    if family == "sdxl":
        width = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, width, generator=generator), "time_ids": torch.rand(2, 6) * 64}
    found = FreeU(version, 1.3, 1.4, 0.9, 0.2) if version else None
    time = torch.tensor(321.0)

    with torch.no_grad(), freed(unet, found):
        made = unet(x, time, context, added_cond_kwargs=added, return_dict=False)[0]
    with torch.no_grad():
        after = unet(x, time, context, added_cond_kwargs=added, return_dict=False)[0]
        wanted = by_hand(unet, x, time, context, added, found)

    assert torch.allclose(made, wanted, atol=1e-5)
    assert torch.equal(made, after) == (version is None), "FreeU ends with the block, and has an effect inside it"


@pytest.mark.parametrize("text", ["v3", "v2,1", "v1,a,b,c,d", "1.1,1.2,0.9,0.2"])
def test_other_settings_of_freeu_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        freeu_of(text)


def test_settings_of_freeu_are_written_as_they_are_read() -> None:
    assert freeu_of("off") is None
    assert freeu_of("V2") == FreeU("v2", 1.3, 1.4, 0.9, 0.2)
    assert str(freeu_of("v1,1.5,1,0.5,0.25")) == "v1,1.5,1,0.5,0.25"


def slerp(one: Any, two: Any, share: float) -> Any:
    a, b = float(one.norm()), float(two.norm())
    dot = 0.0 if a == 0 or b == 0 else float((one / a * (two / b)).sum())
    if dot > 1 - 1e-5:
        return one
    if dot < 1e-5 - 1:
        return one * (1 - share) + two * share
    angle = math.acos(dot)
    unit = [vector / length if length else vector * 0 for vector, length in ((one, a), (two, b))]
    mixed = math.sin((1 - share) * angle) * unit[0] + math.sin(share * angle) * unit[1]
    return mixed / math.sin(angle) * (a * (1 - share) + b * share)


def along(vectors: Any, length: int) -> Any:
    """Bislerp over the first axis of (n, m, C), one vector at a time."""
    n, rows = len(vectors), []
    for place in range(length):
        at = min(max((place + 0.5) * n / length - 0.5, 0.0), n - 1.0)
        here, after = int(at), min(int(at) + 1, n - 1)
        rows.append(torch.stack([
            slerp(one, two, at - here) for one, two in zip(vectors[here], vectors[after], strict=True)
        ]))  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(7, 5), (10, 8), (4, 3), (3, 8)])
def test_bislerp_is_comfyui_s(size: tuple[int, int]) -> None:
    width, height = size
    latents = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(4))
    latents[0, :, 1, 1] = 0
    latents[0, :, 2, 2] = latents[0, :, 2, 1]

    made = plain_resizing.resized(latents, width, height, "bislerp")

    across = along(latents[0].permute(2, 1, 0), width)
    down = along(across.permute(1, 0, 2), height)
    assert torch.allclose(made[0], down.permute(2, 0, 1), atol=1e-4)


def test_lanczos_rounds_down_to_eight_bits_first() -> None:
    import numpy as np
    from PIL import Image

    pixels = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))

    made = plain_resizing.resized(pixels, 14, 20, "lanczos")

    eight = (pixels[0].permute(1, 2, 0).numpy() * 255.0).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(eight).resize((14, 20), Image.Resampling.LANCZOS)).astype(np.float32) / 255
    assert torch.equal(made[0].permute(1, 2, 0), torch.from_numpy(wanted))


@pytest.mark.parametrize("size", [(500, 512), (600, 530), (1000, 700)])
def test_tiles_of_an_upscaler_model_are_blended_as_in_comfyui(size: tuple[int, int]) -> None:
    width, height = size
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    shapes: list[tuple[int, int]] = []

    def model(tile: Any) -> Any:
        """A model whose answer depends on the tile: enlarged, with a ramp from its top left corner."""
        shapes.append(tuple(tile.shape[-2:]))
        ramp = torch.linspace(0, 0.1, tile.shape[-1] * 2)
        return torch.nn.functional.interpolate(tile, scale_factor=2, mode="nearest") * 0.8 + ramp

    wrapped = type("Model", (), {"scale": 2, "__call__": staticmethod(model)})()

    made = plain_resizing.enlarged_in_tiles(pixels, wrapped)

    if max(size) <= 512:
        assert shapes == [(height, width)]
        assert torch.equal(made, model(pixels).clamp(0, 1))
        return
    total, weights = torch.zeros(3, height * 2, width * 2), torch.zeros(1, height * 2, width * 2)
    rows = range(0, height - 32, 480) if height > 512 else [0]
    columns = range(0, width - 32, 480) if width > 512 else [0]
    for top in rows:
        for left in columns:
            tile = model(pixels[..., top : top + 512, left : left + 512])[0]
            mask = torch.ones(1, *tile.shape[1:])
            for axis in (1, 2):
                for step in range(64):
                    for index in (step, tile.shape[axis] - 1 - step):
                        mask.select(axis, index).mul_((step + 1) / 64)
            area = (slice(None), slice(top * 2, top * 2 + tile.shape[1]), slice(left * 2, left * 2 + tile.shape[2]))
            total[area] += tile * mask
            weights[area] += mask
    assert torch.allclose(made[0], (total / weights).clamp(0, 1), atol=1e-6)


def test_resizing_does_not_smooth() -> None:
    pixels = torch.rand(1, 3, 12, 12)

    for way in ("nearest-exact", "bilinear", "bicubic", "area"):
        made = plain_resizing.resized(pixels, 6, 6, way)
        assert torch.equal(made, torch.nn.functional.interpolate(pixels, size=(6, 6), mode=way, antialias=False))
