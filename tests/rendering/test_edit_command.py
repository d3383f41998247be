# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""`civman render --reference` with models that read pictures themselves: Flux.1 Kontext and Flux.2 Klein."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from rendering_stock import picture

from civman.diffusion.families.chroma import CHROMA
from civman.diffusion.families.flux1 import FLUX1
from civman.diffusion.families.flux2 import FLUX2_KLEIN
from civman.domain.recipes.recipe import EditImage, Recipe, RenderRequest
from civman.domain.recipes.reference import ReferenceRequest
from civman.errors import UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.serve.render_requests import kept_value, request_of

PROMPT = "make it night"
QUICK = ("--steps", "2", "--seed", "7", "--device", "cpu", "--json")
OWN = ("--reference-size", "own")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("edit")
    made = tiny_flows.modules("flux1")
    whole = {name: tiny_flows.write(folder / f"{name}.safetensors", "flux1", FLUX1, made=made)
             for name in ("kontext", "dev")}  # fmt: skip
    return whole | {"klein": tiny_flows.write(folder / "klein.safetensors", "flux2", FLUX2_KLEIN)}


@pytest.mark.parametrize("name", ["kontext", "klein"])
def test_an_edited_image_is_the_same_layer_by_layer_in_slots_and_replayed_without_the_picture(
    civman: Civman, files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    first, second = picture(tmp_path / "first.png", (100, 70)), picture(tmp_path / "second.jpg", (64, 80))
    shown = ("--reference", str(first), *(("--reference", str(second)) if name == "klein" else ()), *OWN)
    words = ("render", str(files[name]), PROMPT, *QUICK)

    plain = civman(*words, "--size", "64x64").json["render"][0]
    edited = civman(*words, *shown)
    (made,) = edited.json["render"]
    (streamed,) = civman(*words, *shown, "--low-vram").json["render"]
    pair = civman(*words, *shown, "--count", "2", "--slots", "2").json["render"]
    (alone,) = civman("replay", pair[1]["path"], "--device", "cpu", "--json").json["replay"]["pictures"]
    batch = civman(*words, *shown, "--count", "2", "--batch-size", "2").json["render"]
    for each in (first, second):
        each.unlink()
    (again,) = civman("replay", made["path"], "--device", "cpu", "--json").json["replay"]["pictures"]
    varied = civman("replay", made["path"], "--set", "size=64x64", "--json")
    weighted = civman("replay", made["path"], "--set", "reference_weight=0.5")
    (other,) = varied.json["render"]

    recipe = Recipe.from_value(made["recipe"])
    assert (recipe.width, recipe.height) == (96, 64)  # the first picture's size in whole patches
    assert [(each.width, each.height, each.crop) for each in recipe.edit_images] == [(100, 70, ()), (64, 80, ())][
        : len(recipe.edit_images)
    ]
    assert len(recipe.edit_images) == (2 if name == "klein" else 1)
    assert made["pixel_sha256"] == streamed["pixel_sha256"] == again["pixel_sha256"]
    assert len({each["pixel_sha256"] for each in (*pair, *batch)}) >= 2
    assert pair[1]["pixel_sha256"] == alone["pixel_sha256"]
    assert other["recipe"]["edit_images"] == made["recipe"]["edit_images"]
    assert plain["pixel_sha256"] != other["pixel_sha256"]
    assert "slots" not in varied.err
    assert "requires a reference picture with an IP-Adapter" in weighted.err
    assert "edit_images" not in plain["recipe"]
    assert plain["recipe"]["schema"] < made["recipe"]["schema"]


def test_a_plan_says_how_pictures_are_scaled(civman: Civman, files: dict[str, Path], tmp_path: Path) -> None:
    wide, large = picture(tmp_path / "wide.png", (300, 100)), picture(tmp_path / "large.png", (2000, 1000))

    def planned(name: str, *options: object) -> Any:
        return civman("render", str(files[name]), PROMPT, *QUICK, "--dry-run", *map(str, options)).json["plan"][0]

    scaled = planned("kontext", "--reference", wide)
    part = planned("kontext", "--reference", wide, "--reference-crop", "100,10,90,80", "--size", "64x64")
    sized = planned("kontext", "--reference", wide, "--reference-size", "320x128")
    klein = planned("klein", "--reference", wide, "--reference", large)
    shown = civman("render", str(files["kontext"]), PROMPT, *QUICK[:-1], "--dry-run", "--reference", wide).out
    about = civman("check", str(files["kontext"])).out + civman("check", str(files["klein"])).out

    def images(plan: Any) -> list[tuple[Any, ...]]:
        return [(each["width"], each["height"], each["crop"]) for each in plan["recipe"]["edit_images"]]

    assert images(scaled) == [(1568, 672, [33, 0, 234, 100])]
    assert (scaled["recipe"]["width"], scaled["recipe"]["height"]) == (1568, 672)
    assert images(part) == [(1104, 944, [100, 12, 90, 76])]
    assert part["recipe"]["width"] == 64
    assert images(sized) == [(320, 128, [])]
    assert images(klein) == [(300, 100, []), (1448, 724, [])]
    assert (klein["recipe"]["width"], klein["recipe"]["height"]) == (288, 96)
    assert [file["role"] for file in klein["files"]].count("reference picture") == 2
    assert "edit image wide.png (33,0,234,100) at 1568x672" in shown
    assert scaled["memory"]["unet_work"] > 1.5 * planned("kontext", "--size", "1568x672")["memory"]["unet_work"]
    assert "is Flux.1 kontext, which takes one reference picture" in about
    assert "which takes up to 10 reference pictures" in about


@pytest.mark.parametrize(
    ("name", "options", "code", "says"),
    [
        ("dev", ("--reference", "a.png"), "bad-config", "only the variant kontext of Flux.1 does"),
        ("kontext", ("--reference", "a.png", "--reference", "a.png"), "bad-config", "one reference picture, not 2"),
        ("klein", ("--reference", "a.png") * 11, "bad-config", "at most 10 reference pictures, not 11"),
        ("kontext", ("--reference", "a.png:adapter:0.5"), "bad-config", "without an IP-Adapter"),
        ("kontext", ("--reference", "a.png", "--reference-size", "huge"), "bad-size", "not a size"),
        ("kontext", ("--reference", "a.png", "--reference-size", "5000x64"), "bad-value", "between 16 and 4096"),
        ("kontext", ("--reference", "a.png", "--reference-crop", "0,0,9,9", *OWN), "bad-value", "have 9x9 pixels"),
        ("kontext", ("--reference", "a.png", "--reference-crop", "0,0,90,9"), "bad-value", "exceeds the picture"),
        ("kontext", ("--reference", "none.png"), "bad-value", "the image file does not exist"),
        ("kontext", ("--reference", "kontext.txt"), "unreadable-picture", "it is not an image"),
        ("kontext", (*OWN,), "bad-value", "requires a reference picture"),
    ],
)
def test_what_cannot_be_read_is_refused_before_loading(
    civman: Civman, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    options: tuple[str, ...], code: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", (64, 64))
    (tmp_path / "kontext.txt").write_text("no image")

    found = civman("render", str(files[name]), PROMPT, *QUICK, *options, "--dry-run")

    assert found.json["error"]["code"] == code
    assert says in found.json["error"]["message"]
    assert found.json["error"]["hint"] or code == "bad-size"


def test_other_families_refuse_a_picture_that_no_adapter_reads(civman: Civman, tmp_path: Path) -> None:
    path = tiny_flows.write(tmp_path / "chroma.safetensors", "chroma", CHROMA)
    shown = ("--reference", str(picture(tmp_path / "a.png", (64, 64))))

    found = civman("render", str(path), PROMPT, *QUICK, *shown, "--dry-run")

    assert found.json["error"]["code"] == "bad-config"
    assert found.json["error"]["message"].startswith("Chroma")
    assert "takes no reference pictures" in found.json["error"]["message"]


def test_python_and_the_server_take_a_picture_without_an_adapter(
    library: Library, files: dict[str, Path], tmp_path: Path
) -> None:
    shown = picture(tmp_path / "a.png", (80, 64))
    asked = RenderRequest(
        str(files["kontext"]), PROMPT, references=(ReferenceRequest(str(shown), size="own"),), seed=1, steps=2
    )
    weighted = replace(asked, references=(ReferenceRequest(str(shown), weight=0.5),))
    plan = library.plan(asked, Conditions("cpu"))
    with pytest.raises(UsageError, match="with a fixed weight"):
        library.plan(weighted, Conditions("cpu"))
    value = {"checkpoint": "kontext", "prompt": PROMPT, "references": [
        {"picture": base64.b64encode(shown.read_bytes()).decode(), "size": "own"}
    ]}  # fmt: skip
    sent = request_of(value, library=tmp_path)

    (use,) = plan.recipe.edit_images
    assert use == EditImage(use.sha256, 80, 64)
    assert (plan.recipe.width, plan.recipe.height) == (80, 64)
    assert Path(sent.references[0].picture).stem == use.sha256
    assert (sent.references[0].ref, sent.references[0].size) == ("", "own")
    assert kept_value(value, sent)["references"] == [{"picture": use.sha256, "size": "own"}]
