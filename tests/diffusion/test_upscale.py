# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""`civman upscale`: spandrel's networks in A1111's tiles, no seams, transparency, replays, A1111's Extras tab."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman
from spandrel_oracle import spandrel_model

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from upscaler_oracle import Compact, Esrgan, expected_tiles, photo, seeded

from civman.diffusion.upscaler_models import load_upscaler
from civman.diffusion.upscaler_tiles import Tiling, in_tiles
from civman.domain.recipes.enlargement import UpscaleRequest, enlargement_of
from civman.library import Library


def gentle(scale: int = 2, layers: int = 1) -> Any:
    """A compact network that adds a little to the enlarged image."""
    network = seeded(Compact(scale, layers=layers))
    for parameter in network.parameters():
        parameter.data *= 0.3
    return network


def esrgan() -> Any:
    """An ESRGAN network of the width that spandrel expects, with one block."""
    network = seeded(Esrgan(1, growth=32, blocks=1))
    for parameter in network.parameters():
        parameter.data *= 0.3
    return network


@pytest.fixture
def models(tmp_path: Path, civman: Civman) -> Path:
    """A library with a small upscaler, 2x-soft."""
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(gentle().state_dict(), folder / "2x-soft.safetensors")
    assert civman("import", "--offline", folder).code == 0
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    photo(210, 200).save(path)
    return path


def done(run: Any, kind: str = "upscale") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("make", [esrgan, gentle, lambda: gentle(4, layers=3)])
def test_networks_give_what_spandrel_s_give(tmp_path: Path, make: Any) -> None:
    tensors = make().state_dict()
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        assert torch.equal(load_upscaler(tmp_path / "model.safetensors")(image), spandrel_model(dict(tensors))(image))


def test_an_upscaled_image_is_spandrel_s_network_in_a1111_s_tiles(civman: Civman, models: Path, source: Path) -> None:
    from safetensors.torch import load_file

    network = spandrel_model(load_file(models / "2x-soft.safetensors"))

    [made] = done(civman("upscale", source, "-m", "2x-soft", "--json"))

    wanted = np.clip(expected_tiles(pixels(source), network, 2), 0, 255)
    apart = np.abs(pixels(made["path"]).astype(int) - wanted)
    assert apart.max() <= 2, "Pillow rounds at each of two blends"
    assert apart.mean() < 0.1


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (420, 400)), (("--scale", "1.5"), (315, 300)), (("--scale", "0.5"), (105, 100)),
        (("--scale", "3"), (630, 600)), (("--size", "400x0"), (400, 380)), (("--size", "0x400"), (420, 400)),
        (("--size", "300x400"), (300, 400)), (("--size", "77x33"), (77, 33)),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("models")
def test_the_final_size_is_the_one_asked_for(
    civman: Civman, source: Path, options: tuple[str, ...], size: tuple[int, int]
) -> None:
    [made] = done(civman("upscale", source, "-m", "2x-soft", *options, "--json"))

    assert pixels(made["path"]).shape == (size[1], size[0], 3)


@pytest.mark.usefixtures("models")
def test_the_final_size_is_a_lanczos_resize_of_the_passes_and_a_crop_from_the_centre(
    civman: Civman, source: Path
) -> None:
    [large] = done(civman("upscale", source, "-m", "2x-soft", "--json"))
    [made] = done(civman("upscale", source, "-m", "2x-soft", "--size", "300x380", "--json"))
    [plain] = done(civman("upscale", source, "-m", "lanczos", "--scale", "1.5", "--json"))

    whole = Image.fromarray(pixels(large["path"])).resize((399, 380), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(made["path"]), np.asarray(whole.crop((49, 0, 349, 380))))
    with Image.open(source) as image:
        wanted = image.resize((315, 300), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(plain["path"]), np.asarray(wanted))


@pytest.mark.parametrize(("overlap", "most"), [(8, 3), (16, 2), (32, 1)])
def test_tiles_that_overlap_leave_no_seams_where_tiles_side_by_side_do(tmp_path: Path, overlap: int, most: int) -> None:
    save_file(gentle(2, layers=2).state_dict(), tmp_path / "model.safetensors")
    model = load_upscaler(tmp_path / "model.safetensors")
    across, down = np.linspace(40, 200, 300)[None, :, None], np.linspace(0, 30, 130)[:, None, None]
    image = Image.fromarray((across + down + np.zeros(3)).astype(np.uint8))

    whole, tiled, side_by_side = (
        np.asarray(in_tiles(image, model, tiling)).astype(int)
        for tiling in (Tiling(0), Tiling(64, overlap), Tiling(64, 0))
    )

    assert np.abs(tiled - whole).max() <= most
    assert np.abs(side_by_side - whole).max() > 4 * most, "the image would show seams"


@pytest.mark.usefixtures("models")
def test_transparency_is_upscaled_by_itself_and_colours_as_without_it(civman: Civman, tmp_path: Path) -> None:
    colours = np.asarray(photo(60, 40))
    alpha = np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))
    for name, array in (
        ("clear.png", np.dstack([colours, alpha])),
        ("plain.png", colours),
        ("alpha.png", np.dstack([alpha] * 3)),
        ("opaque.png", np.dstack([colours, alpha * 0 + 255])),
    ):
        Image.fromarray(array).save(tmp_path / name)  # fmt: skip
    clear, plain, grey, opaque = (
        done(civman("upscale", tmp_path / name, "-m", "2x-soft", "--json"))[0]["path"]
        for name in ("clear.png", "plain.png", "alpha.png", "opaque.png")
    )

    assert np.array_equal(pixels(clear)[..., :3], pixels(plain))
    assert np.array_equal(pixels(clear)[..., 3], pixels(grey).mean(axis=2).round().astype(np.uint8))
    assert np.array_equal(pixels(opaque), pixels(plain))
    again = civman("replay", clear, "--json")
    assert done(again, "replay")["pictures"][0]["verdict"] == "identical"
    refused = civman("upscale", tmp_path / "clear.png", "-m", "2x-soft", "--format", "jpeg", "--json")
    assert refused.json["error"]["code"] == "unwritable-picture"


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_a_replay_gives_the_same_bytes_even_without_the_source(
    civman: Civman, source: Path, tmp_path: Path, suffix: str
) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    [made] = done(civman("upscale", source, "-m", "2x-soft", "--scale", "1.7", "-o", first, "--json"))
    source.unlink()

    found = done(civman("replay", first, "-o", second, "--json"), "replay")

    assert found["pictures"][0]["verdict"] == "identical"
    assert second.read_bytes() == first.read_bytes()
    assert done(civman("show", first, "--json"), "picture")["recipe_sha256"] == made["recipe_sha256"]
    listed = done(civman("renders", "photo", "--json"), "renders")["pictures"]
    assert {each["recipe_sha256"] for each in listed} == {made["recipe_sha256"]}
    assert done(civman("replay", f"picture:{made['id']}", "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    assert "upscaled from photo.png (210x200) to 357x340" in civman("show", first).out


@pytest.mark.usefixtures("models")
def test_another_library_asks_for_the_source(
    civman: Civman, models: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [made] = done(civman("upscale", source, "-m", "2x-soft", "--json"))
    result = shutil.copy(made["path"], tmp_path / "result.png")
    monkeypatch.setenv("CIVMAN_LIBRARY", str(tmp_path / "other"))
    assert civman("replay", result, "--json").json["error"]["code"] == "missing-files"
    assert civman("import", "--offline", models).code == 0

    assert civman("replay", result, "--json").json["error"]["code"] == "no-start-image"
    found = civman("replay", result, "--picture", source, "--json")
    assert done(found, "replay")["pictures"][0]["verdict"] == "identical"
    assert civman("replay", result, "--set", "seed=1", "--json").json["error"]["code"] == "usage"
    imported = civman("renders", "--scan", tmp_path, "--json")
    assert [each["upscaled"] for each in done(imported, "renders")["pictures"]] == ["photo.png"] * 2


@pytest.mark.usefixtures("models")
def test_a_changed_recipe_and_changed_pixels_are_noticed(civman: Civman, source: Path, tmp_path: Path) -> None:
    [made] = done(civman("upscale", source, "-m", "2x-soft", "--json"))
    with Image.open(made["path"]) as image:
        record, texts = image.text["civman"], PngImagePlugin.PngInfo()
        texts.add_itxt("civman", record.replace('"tile":192', '"tile":128'))
        image.save(tmp_path / "edited.png", pnginfo=texts)
        painted, texts = np.asarray(image).copy(), PngImagePlugin.PngInfo()
    painted[5:9, 5:9] = 0
    texts.add_itxt("civman", record)
    Image.fromarray(painted).save(tmp_path / "painted.png", pnginfo=texts)

    assert civman("replay", tmp_path / "edited.png", "--json").json["error"]["code"] == "edited-recipe"
    found = done(civman("replay", tmp_path / "painted.png", "--json"), "replay")
    assert found["pictures"][0]["verdict"] == "identical"
    assert len(found["kept"]) == 1, "the original is saved, because the file was changed"


@pytest.mark.usefixtures("models")
def test_a_folder_is_upscaled_whole_and_a_broken_file_stops_before_any_work(civman: Civman, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        photo(30 + number, 20).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")

    made = done(civman("upscale", folder, "-m", "2x-soft", "-o", out, "--json"))

    assert [Path(each["path"]).name for each in made] == ["0-60x40.png", "1-62x40.png", "2-64x40.png"]
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    broken = civman("upscale", folder, "-m", "2x-soft", "-o", out, "--json")
    assert broken.json["error"]["code"] == "unreadable-picture"
    assert "3.png" in broken.json["error"]["message"]
    assert len(list(out.iterdir())) == 3


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("-m", "nowhere"), "not-found"), (("-m", "2x-soft", "--scale", "2", "--size", "9x9"), "bad-size"),
        (("-m", "2x-soft", "--scale", "17"), "bad-size"), (("-m", "2x-soft", "--scale", "0"), "bad-size"),
        (("-m", "2x-soft", "--size", "0x0"), "bad-size"), (("-m", "2x-soft", "--size", "9000x9"), "bad-size"),
        (("-m", "2x-soft", "--size", "wide"), "bad-size"), (("-m", "lanczos",), "bad-size"),
        (("-m", "2x-soft", "--tile", "8"), "bad-value"), (("-m", "2x-soft", "--tile", "64:40"), "bad-value"),
        (("-m", "2x-soft", "--tile", "x"), "bad-value"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_its_code(
    civman: Civman, source: Path, options: tuple[str, ...], code: str
) -> None:
    assert civman("upscale", source, *options, "--json").json["error"]["code"] == code


@pytest.mark.usefixtures("models")
def test_texts_and_colour_profile_of_the_source_stay_and_a1111_s_keys_are_added(
    civman: Civman, source: Path, tmp_path: Path
) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    words = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", words)
    with Image.open(source) as image:
        image.save(tmp_path / "told.png", pnginfo=texts, icc_profile=profile)
    png, jpeg = tmp_path / "out.png", tmp_path / "out.jpg"

    done(civman("upscale", tmp_path / "told.png", "-m", "2x-soft", "--scale", "1.5", "-o", png, "--json"))
    done(civman("upscale", tmp_path / "told.png", "-m", "2x-soft", "--size", "64x64", "-o", jpeg, "--json"))

    with Image.open(png) as image:
        assert image.text["parameters"] == words
        assert image.text["extras"] == "Postprocess upscale by: 1.5, Postprocess upscaler: 2x-soft"
        assert image.text["postprocessing"] == image.text["extras"]
        assert image.info["icc_profile"] == profile
    shown = done(civman("show", jpeg, "--json"), "picture")
    ending = "Postprocess upscale to: 64x64, Postprocess crop to: 64x64, Postprocess upscaler: 2x-soft"
    assert shown["parameters"] == f"{words}, {ending}"
    stripped = tmp_path / "stripped.png"
    done(civman("upscale", tmp_path / "told.png", "-m", "2x-soft", "--strip-prompt", "-o", stripped, "--json"))
    with Image.open(stripped) as image:
        assert "parameters" not in image.text
        assert "civman" in image.text


@pytest.mark.parametrize(
    ("keys", "size", "code"),
    [
        ("Postprocess upscale by: 2, Postprocess upscaler: 2x-soft", (416, 400), None),
        ("Postprocess upscale by: 1.7, Postprocess upscaler: 2x-soft", (352, 336), None),
        ("Postprocess upscale by: 4, Max side length: 300, Postprocess upscaler: 2x-soft", (296, 280), None),
        ("Postprocess upscale to: 200x320, Postprocess crop to: 1x1, Postprocess upscaler: 2x-soft", (200, 320), None),
        ("Postprocess upscale by: 2, Postprocess upscaler: Lanczos", (416, 400), None),
        ("Postprocess upscale by: 2, Postprocess upscaler: nowhere", None, "not-found"),
        ("Postprocess upscale by: 2, Postprocess upscaler: 2x-soft, Postprocess upscaler 2: X", None, "not-drawable"),
        ("Postprocess upscale by: 2, Postprocess upscaler: 2x-soft, CodeFormer visibility: 1", None, "not-drawable"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("models")
def test_an_image_of_a1111_s_extras_tab_is_made_again_from_its_source(
    civman: Civman, source: Path, tmp_path: Path, keys: str, size: tuple[int, int] | None, code: str | None
) -> None:
    made, texts = tmp_path / "extras.png", PngImagePlugin.PngInfo()
    texts.add_text("postprocessing", keys)
    texts.add_text("extras", keys)
    photo(*(size or (8, 8))).save(made, pnginfo=texts)
    assert civman("replay", made, "--json").json["error"]["code"] == "no-start-image"

    found = civman("replay", made, "--picture", source, "--json")

    if code is not None:
        assert found.json["error"]["code"] == code
        return
    [again] = done(found)
    assert size is not None
    assert pixels(again["path"]).shape == (size[1], size[0], 3), "both sides are multiples of 8 as in A1111"
    assert again["compared"]["largest_difference"] > 0
    Image.fromarray(pixels(again["path"])).save(made, pnginfo=texts)
    [same] = done(civman("replay", made, "--picture", source, "--json"))
    assert same["compared"]["psnr_db"] is None


@pytest.mark.usefixtures("models")
def test_the_library_enlarges_pixels_in_memory(civman: Civman, root: Path, source: Path) -> None:
    [made] = done(civman("upscale", source, "-m", "2x-soft", "--json"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix == ".png"}

    with Library.open(root) as library:
        result = library.upscaling.pixels(pixels(source), UpscaleRequest("2x-soft"))

    assert np.array_equal(result, pixels(made["path"]))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix == ".png"} == before


def test_sixteen_bits_and_turned_images_are_read_as_they_are_shown(tmp_path: Path) -> None:
    from civman.planning.upscale_sources import read_source

    deep = (np.arange(12 * 10).reshape(12, 10) * 500).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned = photo(10, 6)
    exif = turned.getexif()
    exif[274] = 6  # a quarter to the right
    turned.save(tmp_path / "turned.png", exif=exif)

    found = np.asarray(read_source(tmp_path / "deep.png").image)
    assert np.array_equal(found[..., 0], np.round(deep / 65535 * 255).astype(np.uint8))
    upright = np.asarray(read_source(tmp_path / "turned.png").image)
    assert np.array_equal(upright, np.rot90(np.asarray(turned), -1))


def test_sides_are_rounded_down_to_multiples_only_where_asked() -> None:
    made = enlargement_of(UpscaleRequest("lanczos", 2.0), (33, 21), model=None, model_scale=None)
    rounded = enlargement_of(UpscaleRequest("lanczos", 2.0, multiple=8), (33, 21), model=None, model_scale=None)

    assert (made.final_size, rounded.final_size) == ((66, 42), (64, 40))
