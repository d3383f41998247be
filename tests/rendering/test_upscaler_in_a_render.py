# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""An upscaler model in the second pass, from the command line to the recipe, A1111's text and the replay."""

import hashlib
from pathlib import Path

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from rendering_stock import QUICK

BASE = "body.{}.rdb{}.conv{}"


@pytest.fixture
def upscaler(tmp_path: Path) -> Path:
    """A small ESRGAN with a scale of 2."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    shapes = {"conv_first": (8, 3), "conv_body": (8, 8), "conv_up1": (8, 8), "conv_hr": (8, 8), "conv_last": (3, 8)}
    shapes |= {BASE.format(0, dense, conv): (4 if conv < 5 else 8, 4 + 4 * conv) for dense in (1, 2, 3) for conv in
               range(1, 6)}  # fmt: skip
    tensors = {}
    for name, (wide, deep) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(wide, deep, 3, 3, generator=generator) * 0.1
        tensors[f"{name}.bias"] = torch.full((wide,), 0.05)
    path = tmp_path / "models" / "2x-tiny.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    return path


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_an_upscaler_model_is_part_of_the_recipe_and_comes_back(civman: Civman, upscaler: Path) -> None:
    assert civman("import", "--offline", upscaler.parent).code == 0
    hires = ("--hires", "1.5", "--hires-strength", "0.5", "--upscaler")

    done = civman("render", "tiny-sd1", "a cat", *QUICK, *hires, "2x-tiny", "--json")

    assert done.code == 0, done.out + done.err
    [made] = done.json["render"]
    second = made["recipe"]["hires"]
    assert (made["recipe"]["schema"], second["upscaler"]) == (4, "model")
    assert second["model"] in {file["sha256"] for file in made["recipe"]["files"]}
    with Image.open(made["path"]) as image:
        assert image.size == (96, 96)
        assert "Hires upscaler: 2x-tiny" in image.text["parameters"]
    assert civman("replay", made["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"
    other = civman("replay", made["path"], "--set", "upscaler=lanczos", "--json").json["render"][0]
    assert other["pixel_sha256"] != made["pixel_sha256"]
    assert other["recipe"]["schema"] == 3


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_the_model_s_result_may_be_resized_as_in_comfyui(civman: Civman, upscaler: Path) -> None:
    assert civman("import", "--offline", upscaler.parent).code == 0
    hires = ("--hires", "96x96", "--hires-trim", "0x0", "--hires-strength", "0.5", "--upscaler", "2x-tiny")
    made = {}
    for way in ("", "area", "lanczos"):
        options = ("--hires-resize", way) if way else ()
        done = civman("render", "tiny-sd1", "a cat", *QUICK, *hires, *options, "--json")
        assert done.code == 0, done.out + done.err
        [made[way]] = done.json["render"]

    assert made["area"]["recipe"]["hires"]["resize"] == "area"
    assert len({each["pixel_sha256"] for each in made.values()}) == 3
    again = civman("replay", made["area"]["path"], "--json").json["replay"]["pictures"][0]
    assert again["verdict"] == "identical"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("ref", "code"), [("nowhere", "not-found"), ("ink", "wrong-kind")])
def test_what_is_no_upscaler_is_refused(civman: Civman, ref: str, code: str) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--hires", "2", "--upscaler", ref, "--dry-run", "--json")

    assert done.json["error"]["code"] == code


@pytest.mark.usefixtures("stocked", "no_sockets")
@pytest.mark.parametrize(
    ("checkpoint", "suffix", "is_zip"),
    [("tiny-sd1", ".pth", True), ("tiny-sdxl", ".pth", False), ("tiny-sd1", ".pt", True)],
)
def test_an_upscaler_in_a_pickle_draws_what_its_safetensors_twin_draws(
    civman: Civman, upscaler: Path, checkpoint: str, suffix: str, is_zip: bool
) -> None:
    from safetensors.torch import load_file

    weights = {"params": {}, "params_ema": load_file(upscaler)}
    pickled = upscaler.with_name(f"4x-UltraTiny{suffix}")
    torch.save(weights, pickled, _use_new_zipfile_serialization=is_zip)
    assert civman("import", "--offline", upscaler.parent).code == 0
    options = (*QUICK, "--hires", "1.5", "--hires-strength", "0.5", "--json", "--upscaler")

    twin = civman("render", checkpoint, "a cat", *options, "2x-tiny").json["render"][0]
    done = civman("render", checkpoint, "a cat", *options, "4x-UltraTiny")

    assert done.code == 0, done.out + done.err
    [made] = done.json["render"]
    assert made["pixel_sha256"] == twin["pixel_sha256"]
    assert made["recipe"]["hires"]["model"] == hashlib.sha256(pickled.read_bytes()).hexdigest()
    assert civman("replay", made["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"


@pytest.mark.usefixtures("stocked")
def test_inspect_identifies_an_upscaler_in_a_pickle_with_its_scale(civman: Civman, upscaler: Path) -> None:
    from safetensors.torch import load_file

    pickled = upscaler.with_name("2x-tiny.pth")
    torch.save({"params_ema": load_file(upscaler)}, pickled)

    found = civman("inspect", pickled, "--json").json

    assert "esrgan x2" in str(found), found


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("name", ["R-ESRGAN 4x+", "r-esrgan 4X+", "RealESRGAN_x4plus"])
def test_a_name_that_a1111_writes_means_the_published_file(civman: Civman, upscaler: Path, name: str) -> None:
    for other in ("RealESRGAN_x4plus_anime_6B", "RealESRGAN_x4plus"):  # the first matches by its beginning, too
        upscaler.with_name(f"{other}.safetensors").write_bytes(upscaler.read_bytes())
        upscaler.with_name(f"{other}.safetensors").chmod(0o600)
    with upscaler.with_name("RealESRGAN_x4plus.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    upscaler.unlink()
    assert civman("import", "--offline", upscaler.parent).code == 0
    wanted = hashlib.sha256(upscaler.with_name("RealESRGAN_x4plus.safetensors").read_bytes()).hexdigest()

    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--hires", "2", "--upscaler", name, "--dry-run", "--json")

    assert done.code == 0, done.out + done.err
    assert wanted in done.out
    assert "by its name only" in done.out + done.err


@pytest.mark.usefixtures("stocked")
def test_a_known_upscaler_that_is_not_stored_is_named_with_its_file(civman: Civman) -> None:
    options = ("--hires", "2", "--upscaler", "R-ESRGAN 4x+ Anime6B", "--dry-run", "--json")

    done = civman("render", "tiny-sd1", "a cat", *QUICK, *options)

    assert (done.code, done.json["error"]["code"]) == (3, "not-found")
    assert "RealESRGAN_x4plus_anime_6B.pth" in done.json["error"]["hint"]


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_swinir_from_a_pickle_enlarges_the_first_image(civman: Civman, tmp_path: Path) -> None:
    from swinir_references import swinir_tensors

    folder = tmp_path / "models"
    folder.mkdir()
    torch.save({"params_ema": swinir_tensors("photo-2")}, folder / "SwinIR_4x.pth")
    assert civman("import", "--offline", folder).code == 0
    hires = ("--hires", "1.5", "--hires-strength", "0.5", "--json", "--upscaler")

    done = civman("render", "tiny-sdxl", "a cat", *QUICK, *hires, "SwinIR_4x")

    assert done.code == 0, done.out + done.err
    [made] = done.json["render"]
    assert made["recipe"]["hires"]["upscaler"] == "model"
    assert civman("replay", made["path"], "--json").json["replay"]["pictures"][0]["verdict"] == "identical"
    lanczos = civman("replay", made["path"], "--set", "upscaler=lanczos", "--json").json["render"][0]
    assert lanczos["pixel_sha256"] != made["pixel_sha256"]
    assert "swinir x2" in str(civman("inspect", "SwinIR_4x", "--json").json)


@pytest.mark.usefixtures("stocked", "no_sockets")
def test_settings_with_a1111_s_name_of_an_upscaler_draw_with_its_file(
    civman: Civman, upscaler: Path, tmp_path: Path
) -> None:
    upscaler.rename(upscaler.with_name("RealESRGAN_x4plus.safetensors"))
    assert civman("import", "--offline", upscaler.parent).code == 0
    hires = ("--hires", "2", "--hires-strength", "0.5", "--upscaler", "RealESRGAN_x4plus")
    made = civman("render", "tiny-sd1", "a cat", *QUICK, *hires, "--json").json["render"][0]
    with Image.open(made["path"]) as image:
        text = image.text["parameters"]
    assert "Hires upscaler: RealESRGAN_x4plus" in text
    settings = tmp_path / "settings.txt"
    settings.write_text(text.replace("Hires upscaler: RealESRGAN_x4plus", "Hires upscaler: R-ESRGAN 4x+"))

    done = civman("replay", settings, "--json", "--device", "cpu")

    assert done.code == 0, done.out + done.err
    assert done.json["render"][0]["pixel_sha256"] == made["pixel_sha256"]
    assert "`R-ESRGAN 4x+` (4fa0d38905f7…) was found by its name only; its hash is not" in done.out + done.err
