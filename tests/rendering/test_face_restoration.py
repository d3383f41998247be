# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Renders with restored faces: files identified, recorded, replayed, written into and drawn from A1111's text."""

from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from face_models import FILE_NAMES as NAMES
from PIL import Image
from rendering_stock import QUICK


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


@pytest.mark.usefixtures("with_faces")
def test_the_files_are_identified(civman: Civman, face_files: Path) -> None:
    for kind, name in NAMES.items():
        found = civman("inspect", face_files / name, "--json")
        assert "face-model" in found.out, found.out
        assert kind in found.out


@pytest.mark.usefixtures("with_faces")
def test_restored_faces_are_part_of_the_recipe_and_of_a1111_s_text(civman: Civman, tmp_path: Path) -> None:
    options = ("tiny-sd1", "a cat", *QUICK, "--json")
    [plain] = made(civman("render", *options))
    run = civman("render", *options, "--face-restoration", "gfpgan", "--upscale", "lanczos:2")
    [done] = made(run)

    assert done["pixel_sha256"] != plain["pixel_sha256"]
    assert "1 face restored" in done["notes"]
    assert done["recipe"]["faces"]["method"] == "gfpgan"
    assert (done["recipe"]["schema"], "faces" in plain["recipe"]) == (8, False)
    with Image.open(done["path"]) as image:
        assert image.size == (128, 128)
        assert "Face restoration: GFPGAN" in image.text["parameters"]
        (tmp_path / "settings.txt").write_text(image.text["parameters"])
    [again] = made(civman("replay", tmp_path / "settings.txt", "--json"))
    assert again["pixel_sha256"] == done["pixel_sha256"], "from A1111's text alone"
    assert made(civman("replay", done["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    [without] = made(civman("replay", done["path"], "--set", "face_restoration=off", "--set", "upscale=off", "--json"))
    assert without["pixel_sha256"] == plain["pixel_sha256"]


@pytest.mark.usefixtures("with_faces")
@pytest.mark.parametrize(
    ("asked", "code"),
    [("codeformer:2", "bad-value"), ("gfpgan:0.5", "bad-value"), ("nowhere", "not-found"), ("tiny-sd1", "wrong-kind"),
     ("parsing_parsenet.pth", "wrong-kind")],
)  # fmt: skip
def test_what_restores_no_faces_is_refused(civman: Civman, asked: str, code: str) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--face-restoration", asked, "--dry-run", "--json")

    assert done.json["error"]["code"] == code


@pytest.mark.usefixtures("with_faces")
def test_codeformer_s_licence_is_said_and_its_weight_kept(civman: Civman) -> None:
    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--face-restoration", "codeformer:0.7", "--dry-run", "--json")

    [plan] = made(done, "plan")
    assert any("S-Lab" in notice for notice in plan["notices"])
    assert plan["recipe"]["faces"]["weight"] == 0.7


@pytest.mark.usefixtures("stocked")
def test_a_missing_model_is_named_with_its_file(civman: Civman, face_files: Path) -> None:
    (face_files / NAMES["parsenet"]).unlink()
    assert civman("import", "--offline", face_files).code == 0

    done = civman("render", "tiny-sd1", "a cat", *QUICK, "--face-restoration", "gfpgan", "--dry-run", "--json")

    assert done.json["error"]["code"] == "missing-files"
    assert "parsing_parsenet.pth" in done.json["error"]["message"]


@pytest.mark.usefixtures("stocked")
def test_faces_are_left_out_of_a1111_s_image_if_their_models_are_missing(civman: Civman, tmp_path: Path) -> None:
    [plain] = made(civman("render", "tiny-sd1", "a cat", *QUICK, "--json"))
    with Image.open(plain["path"]) as image:
        text = image.text["parameters"].replace(", Seed:", ", Face restoration: CodeFormer, Seed:")
    (tmp_path / "settings.txt").write_text(text)

    done = civman("replay", tmp_path / "settings.txt", "--json")

    [again] = made(done)
    assert again["pixel_sha256"] == plain["pixel_sha256"]
    assert "the faces are not restored" in done.err + done.out
