# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""An upscale as the last step of a render: pixels, recipe, A1111's keys, replays, and images drawn from those keys."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin
from rendering_stock import QUICK


@pytest.fixture
def upscaler(tmp_path: Path, stocked: Path, civman: Civman) -> Path:
    """A small compact upscaler with a scale of 2, in the library."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    tensors = {"body.0.weight": torch.randn(6, 3, 3, 3, generator=generator) * 0.1, "body.0.bias": torch.zeros(6),
               "body.1.weight": torch.full((6,), 0.2), "body.2.bias": torch.zeros(12),
               "body.2.weight": torch.randn(12, 6, 3, 3, generator=generator) * 0.1}  # fmt: skip
    path = tmp_path / "models" / "2x-soft.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    assert civman("import", "--offline", path).code == 0
    return path


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.usefixtures("upscaler", "no_sockets")
@pytest.mark.parametrize("hires", [(), ("--hires", "1.5", "--hires-strength", "0.5")])
def test_the_last_step_gives_what_the_command_gives_for_the_finished_image(
    civman: Civman, tmp_path: Path, hires: tuple[str, ...]
) -> None:
    options = ("tiny-sd1", "a cat", *QUICK, *hires, "--count", "2", "--json")
    plain = made(civman("render", *options, "-o", tmp_path / "plain"))
    alone = made(
        civman("upscale", *(each["path"] for each in plain), "-m", "2x-soft", "--scale", "1.5", "--json"), "upscale"
    )

    done = made(civman("render", *options, "--upscale", "2x-soft:1.5", "-o", tmp_path / "large"))

    assert [each["pixel_sha256"] for each in done] == [each["pixel_sha256"] for each in alone]
    assert all(each["parent"] == one["recipe_sha256"] for each, one in zip(alone, plain, strict=True))
    assert [each["recipe"]["schema"] for each in done] == [6, 6]
    assert "upscale" not in plain[0]["recipe"], "digests of other recipes stay as they were"


@pytest.mark.usefixtures("upscaler", "no_sockets")
def test_recipe_replay_variation_and_a1111_s_text(civman: Civman, tmp_path: Path) -> None:
    options = ("tiny-sd1", "a cat", *QUICK, "--json")
    [plain] = made(civman("render", *options))
    [done] = made(civman("render", *options, "--upscale", "2x-soft:1.7"))

    assert pixels(done["path"]).shape == (104, 104, 3), "multiples of 8, as in A1111"
    with Image.open(done["path"]) as image:
        assert "Postprocess upscale by: 1.625, Postprocess upscaler: 2x-soft" in image.text["parameters"]
    assert "upscaled to: 104x104" in civman("show", done["path"]).out
    assert made(civman("replay", done["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    [without] = made(civman("replay", done["path"], "--set", "upscale=off", "--json"))
    assert without["pixel_sha256"] == plain["pixel_sha256"]
    [other] = made(civman("replay", done["path"], "--set", "upscale=lanczos:2", "--json"))
    with Image.open(plain["path"]) as image:
        wanted = np.asarray(image.resize((128, 128), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels(other["path"]), wanted)
    [same] = made(civman("replay", done["path"], "--set", "seed=7", "--json"))
    assert same["pixel_sha256"] == done["pixel_sha256"]


@pytest.mark.usefixtures("upscaler")
@pytest.mark.parametrize(("scale", "size", "more"), [
    ("2x-soft", (320, 240), ()), ("2x-soft:1.5", (240, 176), ()),
    ("2x-soft", (640, 480), ("--init-upscale", "lanczos:2")),
])  # fmt: skip
def test_an_image_whose_masked_region_was_drawn_is_enlarged_from_its_own_size(
    civman: Civman, tmp_path: Path, scale: str, size: tuple[int, int], more: tuple[str, ...]
) -> None:
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((160, 120)).convert("RGB").save(start)
    area = Image.new("L", (160, 120))
    area.paste(255, (60, 40, 90, 80))
    area.save(mask)
    options = ("tiny-sd1", "a cat", *QUICK, "--init", start, "--mask", mask, "--only-masked", *more, "--json")
    [plain] = made(civman("render", *options))
    [alone] = made(
        civman("upscale", plain["path"], "-m", "2x-soft", "--size", "x".join(map(str, size)), "--json"), "upscale"
    )

    [done] = made(civman("render", *options, "--upscale", scale))

    assert pixels(done["path"]).shape == (size[1], size[0], 3)
    if size[0] * 120 == size[1] * 160:  # else A1111 rounds each side down to a multiple of 8 and stretches
        assert done["pixel_sha256"] == alone["pixel_sha256"]
    with Image.open(done["path"]) as image:
        words = f"Postprocess upscale to: {size[0]}x{size[1]}, Postprocess upscaler: 2x-soft"
        assert words in image.text["parameters"]
    assert made(civman("replay", done["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    [same] = made(civman("replay", done["path"], "--set", "count=1", "--json"))
    assert same["recipe_sha256"] == done["recipe_sha256"]


@pytest.mark.usefixtures("upscaler")
@pytest.mark.parametrize("last", ["2x-soft:2", "2x-soft:1.5", "lanczos:2", "2x-soft:96x128"])
def test_a1111_s_text_alone_gives_the_same_image(civman: Civman, tmp_path: Path, last: str) -> None:
    [done] = made(civman("render", "tiny-sd1", "a cat", *QUICK, "--upscale", last, "--json"))
    with Image.open(done["path"]) as image:
        (tmp_path / "settings.txt").write_text(image.text["parameters"])

    [again] = made(civman("replay", tmp_path / "settings.txt", "--json"))

    assert again["pixel_sha256"] == done["pixel_sha256"]


@pytest.mark.usefixtures("upscaler")
def test_settings_of_the_extras_tab_beside_those_of_the_image_are_drawn_together(
    civman: Civman, tmp_path: Path
) -> None:
    options = ("tiny-sd1", "a cat", *QUICK, "--json")
    [plain] = made(civman("render", *options))
    [large] = made(civman("render", *options, "--upscale", "2x-soft:1.5"))
    texts, result = PngImagePlugin.PngInfo(), tmp_path / "extras.png"
    with Image.open(plain["path"]) as image:
        texts.add_text("parameters", image.text["parameters"])
    texts.add_text("extras", "Postprocess upscale by: 1.5, Postprocess upscaler: 2x-soft")
    Image.fromarray(pixels(large["path"]) // 2).save(result, pnginfo=texts)

    [drawn] = made(civman("replay", result, "--json"))
    [from_source] = made(civman("replay", result, "--picture", plain["path"], "--json"), "upscale")

    assert drawn["pixel_sha256"] == from_source["pixel_sha256"] == large["pixel_sha256"]


@pytest.mark.usefixtures("upscaler")
@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("nowhere:2", "not-found"), ("ink", "wrong-kind"), ("2x-soft:17", "bad-size"), ("lanczos", "bad-size"),
        ("2x-soft:0x0", "bad-size"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_drawing(civman: Civman, last: str, code: str) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--upscale", last, "--dry-run", "--json")

    assert done.json["error"]["code"] == code
