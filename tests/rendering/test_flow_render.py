# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Flux.1 by command: the parts come from the library, from the command line or from one file, or are asked for."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from safetensors.torch import load_file, save_file

from civman.diffusion.families.flux1 import FLUX1
from civman.diffusion.open_model import load
from civman.domain.recipes.recipe import Recipe

QUICK = ("--size", "64x64", "--steps", "2", "--seed", "7", "--device", "cpu")
PARTS = {
    "model": "model.diffusion_model.", "clip": "text_encoders.clip_l.transformer.",
    "t5": "text_encoders.t5xxl.transformer.", "vae": "vae.",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flux.1 in one file ("whole") and taken apart, and a T5 of another width ("narrow")."""
    folder = tmp_path_factory.mktemp("flux")
    tensors = tiny_flows.original_tensors("flux1", FLUX1, tiny_flows.modules("flux1"))
    made = {"whole": folder / "whole.safetensors"}
    save_file(tensors, str(made["whole"]))
    for name, prefix in PARTS.items():
        made[name] = folder / f"{name}.safetensors"
        own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        save_file({key: value.clone() for key, value in own.items()}, str(made[name]))
    made["narrow"] = folder / "narrow.safetensors"
    other = tiny_flows.modules("sd3")["text_encoder_3"].state_dict()
    save_file({key: value.clone() for key, value in other.items() if "embed_tokens" not in key}, str(made["narrow"]))
    return made


def given(files: dict[str, Path], *roles: str) -> list[str]:
    options = {"clip": "clip-l", "t5": "t5"}
    found = [word for role in roles if role in options for word in ("--part", f"{options[role]}={files[role]}")]
    return [*found, *(["--vae", str(files["vae"])] if "vae" in roles else [])]


def test_the_parts_are_named_by_digest_and_give_the_picture_of_the_whole_file(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = civman("render", str(files["whole"]), "a cat", *QUICK, "-o", str(tmp_path / "whole.png"), "--json")
    apart = civman("render", str(files["model"]), "a cat", *QUICK, *given(files, "clip", "t5", "vae"),
                   "-o", str(tmp_path / "apart.png"), "--json")  # fmt: skip

    assert (whole.code, apart.code) == (0, 0), (whole.err, apart.err)
    (a,), (b,) = whole.json["render"], apart.json["render"]
    assert a["pixel_sha256"] == b["pixel_sha256"]
    recipe = Recipe.from_value(b["recipe"])
    assert {part.role for part in recipe.parts} == {"clip-l", "t5"}
    assert recipe.vae is not None
    assert recipe.flow is not None
    assert recipe.flow.guidance == 3.5
    assert (recipe.prediction, recipe.variant) == ("flow", "dev")


@pytest.mark.parametrize(
    ("roles", "code", "words"),
    [(("clip", "vae"), "missing-part", "--part t5=REF"), (("clip", "t5"), "missing-part", "--vae REF"),
     (("clip", "narrow", "vae"), "mismatched-parts", "width of 72"),
     (("clip", "wrong", "vae"), "mismatched-parts", "is not the required part (T5 text encoder)")],
)  # fmt: skip
def test_a_missing_or_wrong_part_is_refused_before_anything_is_loaded(
    civman: Any, files: dict[str, Path], roles: tuple[str, ...], code: str, words: str
) -> None:
    options = given(files, *roles)
    if "narrow" in roles or "wrong" in roles:
        options += ["--part", f"t5={files['narrow' if 'narrow' in roles else 'clip']}"]

    asked = civman("render", str(files["model"]), "a cat", *QUICK, *options, "--dry-run")

    assert asked.code != 0
    assert code in asked.err
    assert words in asked.err


def test_a_size_that_the_patches_do_not_fill_names_the_nearest_one(civman: Any, files: dict[str, Path]) -> None:
    asked = civman("render", str(files["whole"]), "a cat", "--size", "72x64", "--device", "cpu", "--dry-run")

    assert "bad-size" in asked.err
    assert "64x64" in asked.err


def test_a_sampler_that_flow_matching_does_not_have_is_refused(civman: Any, files: dict[str, Path]) -> None:
    asked = civman("render", str(files["whole"]), "a cat", *QUICK, "--sampler", "DDIM", "--dry-run")

    assert "unknown-sampler" in asked.err
    assert "Euler" in asked.err


def test_layer_by_layer_and_a_replay_give_the_same_bytes(civman: Any, files: dict[str, Path], tmp_path: Path) -> None:
    common = ("render", str(files["whole"]), "a (cat:1.3)", *QUICK, "--sampler", "ER SDE", "--json")
    (loaded,) = civman(*common, "-o", str(tmp_path / "a.png")).json["render"]
    (streamed,) = civman(*common, "--low-vram", "-o", str(tmp_path / "b.png")).json["render"]
    (again,) = civman("replay", str(tmp_path / "a.png"), "--device", "cpu", "--json").json["replay"]["pictures"]

    assert loaded["pixel_sha256"] == streamed["pixel_sha256"] == again["pixel_sha256"]


def test_a_changed_seed_in_a_replay_gives_the_image_of_that_seed(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    common = ("render", str(files["whole"]), "a cat", "--size", "64x64", "--steps", "2", "--device", "cpu", "--json")
    (eighth,) = civman(*common, "--seed", "8").json["render"]
    civman(*common, "--seed", "7", "-o", str(tmp_path / "a.png"))

    varied = civman("replay", str(tmp_path / "a.png"), "--set", "seed=8", "--json")

    assert varied.code == 0, varied.err
    assert varied.json["render"][0]["pixel_sha256"] == eighth["pixel_sha256"]
    assert "--slots" not in varied.err


def test_an_input_image_at_little_strength_stays_like_itself(
    civman: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    civman("render", str(files["whole"]), "a cat", *QUICK, "-o", str(tmp_path / "a.png"))
    distances = []
    for strength in ("0.1", "0.9"):
        name = tmp_path / f"{strength}.png"
        options = ("--size", "64x64", "--steps", "10", "--seed", "8", "--device", "cpu", "--strength", strength)
        begun = ("--init", str(tmp_path / "a.png"), "-o", str(name))
        run = civman("render", str(files["whole"]), "a dog", *options, *begun)
        assert run.code == 0, run.err
        first, changed = (np.asarray(Image.open(each), dtype=float) for each in (tmp_path / "a.png", name))
        distances.append(abs(first - changed).mean())

    assert distances[0] < distances[1]


def test_a_detail_pass_is_the_inpainting_of_its_region(civman: Any, files: dict[str, Path], tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = ("render", str(files["whole"]), "a cat", *QUICK, "--json")
    (plain,) = civman(*common, "-o", str(tmp_path / "plain.png")).json["render"]
    (done,) = civman(*common, "--detail", "16,16,24,32:dilate=0,strength=0.9").json["render"]
    inpaint = ("--init", str(tmp_path / "plain.png"), "--mask", str(tmp_path / "mask.png"), "--only-masked")
    (hand,) = civman(*common, *inpaint, "--strength", "0.9").json["render"]
    refused = civman(*common, "--detail", "16,16,24,32:size=72x64", "--dry-run")

    assert done["pixel_sha256"] == hand["pixel_sha256"] != plain["pixel_sha256"]
    assert "multiples of 16" in refused.out


def test_a_file_may_state_its_size_and_what_no_shape_shows(civman: Any, files: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    about = {"civman.config": '{"text_encoder": {"num_attention_heads": 4}}', "modelspec.resolution": "72x64"}
    save_file(load_file(files["whole"]), str(own), metadata=about)

    words = ("a cat", "--steps", "1", "--seed", "7", "--device", "cpu", "--json")
    stated, plain = civman("render", str(own), *words), civman("render", str(files["whole"]), *words, "--size", "64x64")

    assert (stated.code, plain.code) == (0, 0), (stated.err, plain.err)
    recipe, other = (each.json["render"][0] for each in (stated, plain))
    assert (recipe["recipe"]["width"], recipe["recipe"]["height"]) == (64, 64)
    assert recipe["pixel_sha256"] != other["pixel_sha256"]
    heads = [
        load(file, config=given).components["text_encoder"].config.num_attention_heads
        for file, given in ((own, None), (files["whole"], None), (own, {"text_encoder": {"num_attention_heads": 6}}))
    ]
    assert heads == [4, 12, 6]
