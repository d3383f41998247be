# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Upscaler models: each layout gives what the published network gives, tiles are those of A1111, others are refused."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from safetensors.torch import save_file
from swinir_references import EXPECTED, samples, small_image, swinir_tensors
from swinir_references import LAYOUTS as SWINIR
from upscaler_oracle import Compact, Esrgan, expected_tiles, first_layout, photo, second_layout, seeded

from civman.diffusion import second_pass
from civman.diffusion.upscaler_models import load_upscaler
from civman.diffusion.upscaler_tiles import enlarge, in_tiles, tiles_of
from civman.domain.digests import Sha256
from civman.domain.identification.identify import upscaler_scale
from civman.domain.recipes.recipe import Hires
from civman.errors import CannotRender, Refused


def written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


NEWER = {"plain": lambda t: t, "wrapped": lambda t: {f"params_ema.{k}": v for k, v in t.items()}}
LAYOUTS = {**NEWER, "second": second_layout, "first": first_layout}


@pytest.mark.parametrize("has_shortcuts", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_of_esrgan_gives_what_the_published_network_gives(
    tmp_path: Path, layout: str, has_shortcuts: bool
) -> None:
    network = seeded(Esrgan(plus=has_shortcuts))
    model = load_upscaler(written(tmp_path, LAYOUTS[layout](network.state_dict())))
    pixels = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        assert torch.allclose(model(pixels), network(pixels), rtol=1e-4, atol=1e-4)
    assert (model.kind, model.scale) == ("esrgan", 4)


@pytest.mark.parametrize(
    ("rises", "folded", "scale"), [(0, 1, 1), (1, 1, 2), (2, 1, 4), (3, 1, 8), (2, 2, 2), (2, 4, 1)]
)
def test_the_scale_follows_from_the_tensors(tmp_path: Path, rises: int, folded: int, scale: int) -> None:
    network = seeded(Esrgan(rises, folded))
    tensors = network.state_dict() if folded > 1 else first_layout(network.state_dict(), rises=rises)
    model = load_upscaler(written(tmp_path, tensors))
    pixels = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))

    assert model.scale == scale
    with torch.no_grad():
        assert torch.allclose(model(pixels), network(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_compact_models_give_what_the_published_network_gives(tmp_path: Path, scale: int) -> None:
    network = seeded(Compact(scale))
    model = load_upscaler(written(tmp_path, NEWER["wrapped"](network.state_dict())))
    pixels = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        assert torch.allclose(model(pixels), network(pixels), rtol=1e-4, atol=1e-4)
    assert (model.kind, model.scale) == ("compact", scale)


@pytest.mark.parametrize("name", ["body.0.rdb1.conv7.weight", "layers.0.weight", "conv_first.weight"])
def test_other_networks_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotRender, match="cannot be run") as caught:
        load_upscaler(written(tmp_path, {name: torch.zeros(4, 4, 1, 1)}))
    assert caught.value.code == "no-upscaler"
    broken = seeded(Esrgan()).state_dict()
    broken["conv_hr.weight"] = torch.zeros(3, 3, 3, 3)
    with pytest.raises(CannotRender, match="fit together"):
        load_upscaler(written(tmp_path, broken))


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(Refused):
        load_upscaler(path)


@pytest.mark.parametrize(("width", "height", "tiles"), [(400, 192, 3), (200, 376, 4), (100, 64, 1)])
def test_tiles_are_a1111_s(tmp_path: Path, width: int, height: int, tiles: int) -> None:
    network = seeded(Compact(2, layers=1))
    model = load_upscaler(written(tmp_path, network.state_dict()))
    image = photo(width, height)

    found = np.asarray(in_tiles(image, model)).astype(int)

    assert tiles_of(width, height) == tiles
    wanted = expected_tiles(np.asarray(image), network, 2)
    apart = np.abs(found - wanted)
    assert apart.max() <= 2, "Pillow rounds at each of two blends"
    assert apart.mean() < 0.1


def test_passes_end_when_the_image_is_large_enough_or_grows_no_more(tmp_path: Path) -> None:
    two = load_upscaler(written(tmp_path, seeded(Compact(2, layers=1)).state_dict()))
    assert enlarge(photo(40, 32), two, 80, 64).size == (80, 64)
    assert enlarge(photo(40, 32), two, 120, 96).size == (160, 128)
    assert enlarge(photo(20, 16), two, 2000, 1600).size == (160, 128), "three passes at most"
    one = load_upscaler(written(tmp_path, seeded(Compact(1, layers=1)).state_dict()))
    assert enlarge(photo(40, 32), one, 80, 64).size == (40, 32)


def test_the_second_pass_sees_the_model_s_image_at_its_own_size(tmp_path: Path) -> None:
    """8 bits rounded down, one pass of a 4x network, Lanczos to a multiple of 8 and then to the size, as A1111 does."""
    network = seeded(Esrgan(2, width=4, growth=2, blocks=1))
    model = load_upscaler(written(tmp_path, network.state_dict()))
    decoded = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return torch.zeros(1, 4, pixels.shape[2] // 8, pixels.shape[3] // 8)

    hires = Hires(72, 64, 5, 0.5, "model", Sha256("a" * 64))
    latents = second_pass.enlarged(
        torch.zeros(1, 4, 5, 6), hires, (48, 40), rules=2, encode=encode, decode=lambda _: decoded,
        upscale=lambda image, width, height: enlarge(image, model, width, height),
    )  # fmt: skip

    eight = np.floor(decoded[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    large = np.clip(np.round(expected_tiles(eight, network, 4)), 0, 255).astype(np.uint8)
    # 72x64 of a picture of 48x40 is covered by 76x64, of which the sides are cut off
    image = Image.fromarray(large).resize((72, 64), Image.Resampling.LANCZOS).resize((76, 64), Image.Resampling.LANCZOS)
    assert seen[0].shape[2:] == (64, 76)
    found = (seen[0][0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(found - np.asarray(image).astype(float)).mean() < 0.5
    assert latents.shape[-2:] == (8, 9)


@pytest.mark.parametrize("layout", SWINIR)
def test_swinir_gives_what_spandrel_gave(tmp_path: Path, layout: str) -> None:
    model = load_upscaler(written(tmp_path, {f"params_ema.{k}": v for k, v in swinir_tensors(layout).items()}))

    large = model(small_image())

    assert (model.kind, model.scale) == ("swinir", SWINIR[layout][0])
    assert large.shape == (1, 3, 19 * model.scale, 26 * model.scale)
    assert samples(large) == pytest.approx(EXPECTED[layout], rel=1e-3, abs=1e-3)


def test_identification_and_the_network_agree_on_the_scale_of_swinir() -> None:
    for layout, (scale, _, _) in SWINIR.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in swinir_tensors(layout).items()}

        if scale > 1:
            assert upscaler_scale("swinir", shapes) == scale, layout


@pytest.mark.parametrize("size", [(200, 40), (40, 200), (380, 200), (192, 192)])
def test_tiles_of_swinir_are_averaged_where_they_overlap(tmp_path: Path, size: tuple[int, int]) -> None:
    """Recomputed pixel by pixel from the tiles in which each lies."""
    model = load_upscaler(written(tmp_path, swinir_tensors("same-size")))
    rng = np.random.default_rng(3)
    array = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    tile = min(192, *size)

    drawn = np.asarray(in_tiles(Image.fromarray(array), model)).astype(int)

    starts = [[*range(0, side - tile, tile - 8), side - tile] for side in size]
    total, count = np.zeros((3, size[1], size[0])), np.zeros((size[1], size[0]))
    bgr = torch.from_numpy(array[:, :, ::-1].copy()).permute(2, 0, 1).float()[None] / 255
    for left in starts[0]:
        for top in starts[1]:
            total[:, top : top + tile, left : left + tile] += model(bgr[..., top : top + tile, left : left + tile])[
                0
            ].numpy()
            count[top : top + tile, left : left + tile] += 1
    expected = (np.clip(total / count, 0, 1) * 255).round()[::-1].transpose(1, 2, 0)
    assert np.abs(drawn - expected).max() <= 1
    assert (drawn == expected).mean() > 0.999
