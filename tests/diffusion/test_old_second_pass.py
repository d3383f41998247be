# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The second pass of A1111 before 2023: the first size from the final one, latents cut, one stretch with Lanczos."""

import math
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from rendering_stock import QUICK

from civman.diffusion import second_pass
from civman.domain.recipes.recipe import Hires
from civman.pictures import image_text, infotext
from civman.planning.redraw import old_first_pass, redraw


def by_a1111(first: tuple[int, int], final: tuple[int, int]) -> tuple[int, int, int, int]:
    """A1111's arithmetic of December 2022: the first size, and how many latents it cuts off (both sides together)."""
    width, height = first
    if 0 in first:
        scale = math.sqrt(512 * 512 / (final[0] * final[1]))
        width, height = (math.ceil(scale * side / 64) * 64 for side in final)
        truncated: tuple[float, float] = (int(scale * final[0]), int(scale * final[1]))
    elif final[0] / width > final[1] / height:
        truncated = (width, width * final[1] / final[0])
    else:
        truncated = (height * final[0] / final[1], height)
    cut = [int(side - kept) // 8 for side, kept in zip((width, height), truncated, strict=True)]
    return width, height, *(number // 2 * 2 for number in cut)  # type: ignore[return-value]


@pytest.mark.parametrize("first", [(0, 0), (768, 768), (640, 640), (512, 704), (448, 832)])
@pytest.mark.parametrize("final", [(1024, 1024), (1024, 512), (512, 768), (1280, 1280), (960, 1408), (1920, 1080)])
def test_the_first_size_and_what_is_cut_off_are_a1111_s(first: tuple[int, int], final: tuple[int, int]) -> None:
    (width, height), trim = old_first_pass(first, final)

    assert (width, height, trim[0] // 16 * 2, trim[1] // 16 * 2) == by_a1111(first, final)


def test_settings_of_2022_become_a_recipe_with_both_passes() -> None:
    meta = {"prompt": "a cat", "steps": 20, "sampler": "Euler a", "cfgScale": 7, "seed": 5, "Size": "1024x512",
            "Model hash": "2a13e0c0", "Model": "m", "First pass size": "0x0", "Denoising strength": "0.7"}  # fmt: skip
    found = redraw({"id": 1, "baseModel": "SD 1.5", "meta": meta}).value()

    assert found["drawable"] == "differs"
    recipe = found["recipe"]
    assert (recipe["width"], recipe["height"]) == (768, 384)
    hires = recipe["hires"]
    assert (hires["width"], hires["height"], hires["steps"], hires["strength"]) == (1024, 512, 20, 0.7)
    assert (hires["trim_width"], hires["trim_height"], hires["stretches"]) == (32, 16, True)


@pytest.mark.parametrize("trim", [(0, 0), (32, 0), (16, 32)])
def test_the_first_image_is_cut_and_stretched_once(trim: tuple[int, int]) -> None:
    latents = torch.rand(1, 4, 12, 16, generator=torch.Generator().manual_seed(1))
    hires = Hires(168, 176, 3, 0.7, "lanczos", None, 0.0, *trim, stretches=True)
    seen: list[Any] = []

    def decode(given: Any) -> Any:
        seen.append(given)
        return torch.nn.functional.interpolate(given[:, :3], scale_factor=8)

    made: list[Any] = []
    second_pass.enlarged(
        latents, hires, (128, 96), rules=3, decode=decode, encode=lambda x: made.append(x) or torch.zeros(1, 4, 22, 21)
    )  # fmt: skip

    across, down = trim[0] // 16, trim[1] // 16
    kept = latents[..., down : 12 - down, across : 16 - across]
    assert torch.equal(seen[0], kept)
    eight = (torch.nn.functional.interpolate(kept[:, :3], scale_factor=8)[0].permute(1, 2, 0) * 255).to(torch.uint8)
    larger = Image.fromarray(eight.numpy()).resize((168, 176), Image.Resampling.LANCZOS)
    wanted = torch.frombuffer(bytearray(larger.tobytes()), dtype=torch.uint8).view(176, 168, 3)
    assert torch.allclose(made[0][0].permute(1, 2, 0), wanted.float() / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_it_is_drawn_written_and_replayed(civman: Civman, tmp_path: Path, kind: str) -> None:
    import tiny_models

    checkpoint = tiny_models.write(tmp_path / "tiny.safetensors", kind)
    assert civman("import", "--offline", checkpoint).code == 0
    size = ("--hires", "80x64", "--hires-trim", "0x16", "--upscaler", "lanczos", "--hires-steps", "2")
    ran = civman("render", "tiny", "a cat", *QUICK, *size, "-o", tmp_path / "a.png", "--json")

    assert ran.code == 0, ran.err
    assert image_text.pixels(tmp_path / "a.png").shape == (64, 80, 3)
    details = infotext.read(image_text.read(tmp_path / "a.png").entries["parameters"]).details
    assert (details["Size"], details["First pass size"], details["Denoising strength"]) == ("80x64", "64x64", "0.7")
    assert "Hires resize" not in details
    assert civman("replay", tmp_path / "a.png").code == 0
    for wrong in ("8x0", "64x0"):
        assert "multiples of 16" in civman("render", "tiny", "a cat", *QUICK, *size[:2], "--hires-trim", wrong).err
