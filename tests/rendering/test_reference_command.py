# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""`civman render --reference`: found, checked, drawn, recorded, varied, and drawn again without the picture."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ip_adapter_files as files
import numpy as np
from PIL import Image, PngImagePlugin
from rendering_stock import QUICK, picture

from civman.cli.reference_options import references_from
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.recipes.reference import ReferenceRequest
from civman.errors import UsageError
from civman.library import Library


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    files.write(files.adapter("plain", "sd1"), folder / "sd1-plain.safetensors")
    files.write(files.adapter("plus", "sd1", 12), folder / "sd1-plus.bin", "bin")
    files.write(files.adapter("plain", "sdxl"), folder / "xl-plain.safetensors")
    files.write(files.adapter("plain", "sd1", projection=40), folder / "other-encoder.safetensors")
    files.write(files.adapter("plain", "sd1", projection=1024), folder / "needs-vit-h.safetensors")
    face = files.adapter("full-face", "sd1")
    image = {name.replace("proj.3", "norm"): value for name, value in face["image_proj"].items()}
    files.write({**face, "image_proj": image}, folder / "faceid.safetensors")
    files.write_encoder(files.encoder(), folder / "vision.safetensors")
    return folder


@pytest.fixture
def with_adapters(stocked: Path, adapters: Path, civman: Civman) -> None:
    assert civman("import", "--offline", adapters).code == 0


@pytest.mark.usefixtures("with_adapters")
def test_an_image_with_references_is_recorded_replayed_and_varied(civman: Civman, tmp_path: Path) -> None:
    first, second = picture(tmp_path / "first.png", (80, 48)), picture(tmp_path / "second.jpg", (64, 64))
    words = ("render", "tiny-sd1", "a cat", *QUICK)
    asked = ("--reference", f"{first}:sd1-plain:0.8:0-0.9", "--reference", f"{second}:sd1-plus",
             "--reference-crop", "10,0,40,48", "--reference-crop", "none")  # fmt: skip

    plain = civman(*words, "--json").json["render"][0]
    plan = civman(*words, *asked, "--dry-run", "--json").json["plan"][0]
    shown = civman(*words, *asked, "--dry-run").out
    done = civman(*words, *asked, "--json")
    made = done.json["render"][0]
    weaker = civman(*words, "--reference", f"{first}:sd1-plain:0", "--json").json["render"][0]
    for each in (first, second):
        each.unlink()
    again = civman("replay", made["path"])
    varied = civman("replay", made["path"], "--set", "reference_weight=0.5", "--json").json["render"][0]
    grid = civman("replay", made["path"], "--grid", "reference_weight=1,0.5", "--json")

    uses = made["recipe"]["references"]
    assert [(use["weight"], use["start"], use["end"], use["crop"]) for use in uses] == [
        (0.8, 0.0, 0.9, [10, 0, 40, 48]), (1.0, 0.0, 1.0, [])
    ]  # fmt: skip
    assert len({use["encoder"] for use in uses}) == 1
    assert made["pixel_sha256"] != plain["pixel_sha256"] == weaker["pixel_sha256"]
    assert "references" not in plain["recipe"]
    assert plain["recipe"]["schema"] < made["recipe"]["schema"]
    roles = [file["role"] for file in plan["files"]]
    assert roles.count("ip-adapter") == roles.count("reference picture") == 2
    assert roles.count("clip-vision") == 1
    assert "sd1-plus" in shown
    assert "the only stored file that fits" in done.err
    assert again.code == 0, again.err
    assert [use["weight"] for use in varied["recipe"]["references"]] == [0.5, 0.5]
    assert varied["recipe"]["references"][0]["encoder"] == uses[0]["encoder"]
    assert varied["pixel_sha256"] in json.dumps(grid.json)  # the second cell, whose pictures the first has encoded
    assert Recipe.from_json(json.dumps(made["recipe"])).references[0].crop == (10, 0, 40, 48)


@pytest.mark.usefixtures("with_adapters")
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--reference", "guide.png:xl-plain"), "cannot-work", "made for 28 cross-attention layers, but"),
        (("--reference", "guide.png:ink"), "wrong-kind", "is not an IP-Adapter"),
        (("--reference", "guide.png:faceid"), "unknown-family", "insightface"),
        (("--reference", "guide.png:other-encoder"), "missing-part", "projecting to 40, which is not in the library"),
        (("--reference", "guide.png:needs-vit-h"), "missing-part", "needs the CLIP vision encoder ViT-H/14"),
        (("--reference", "guide.png:nothing"), "not-found", "nothing"),
        (("--reference", "none.png:sd1-plain"), "bad-value", "the IP-Adapter is missing"),
        (("--reference", "guide.png:sd1-plain:0.8:0.9-0.1"), "bad-recipe", "fractions of the steps"),
        (("--reference", "guide.png:sd1-plain:20"), "bad-recipe", "between -10 and 10"),
        (("--reference", "guide.png:sd1-plain", "--reference-crop", "40,0,30,64"), "bad-value", "exceeds the picture"),
        (("--reference", "guide.png:sd1-plain", "--reference-crop", "face"), "bad-value", "not a valid crop"),
        (("--reference-crop", "0,0,8,8"), "bad-value", "requires a reference picture"),
        (("--reference-size", "own"), "bad-value", "requires a reference picture"),
        (("--reference", "none.png"), "bad-value", "the image file does not exist"),
        (("--reference", "guide.png"), "bad-value", "only with an IP-Adapter"),
        (
            ("--reference", "guide.png:sd1-plain", "--reference-size", "own"),
            "bad-value",
            "resized for its encoder",
        ),
        (("--part", "clip-vision=vision"), "bad-value", "requires an IP-Adapter"),
        (("--reference", "guide.png:sd1-plain", "--part", "clip-vision=ink"), "wrong-kind", "CLIP vision encoder"),
        (("--reference", "guide.png:sd1-plain:1:0-0.5", "--sampler", "DPM adaptive"), "bad-value", "adaptive sampler"),
        (
            ("--reference", "guide.png:other-encoder", "--part", "clip-vision=vision"),
            "mismatched-parts",
            "not the encoder for",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_loading(
    civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "guide.png", (64, 64))

    found = civman("render", "tiny-sd1", "a cat", *QUICK, *options, "--dry-run", "--json")

    assert found.json["error"]["code"] == code
    assert says in found.json["error"]["message"]
    assert found.json["error"]["hint"] or code == "bad-recipe"


@pytest.mark.usefixtures("with_adapters")
def test_a1111_s_text_and_the_pictures_give_the_same_image(civman: Civman, tmp_path: Path) -> None:
    shown = [picture(tmp_path / "first.png", (80, 48)), picture(tmp_path / "second.png", (64, 64))]
    [done] = civman(
        "render", "tiny-sd1", "a cat", *QUICK, "--reference", f"{shown[0]}:sd1-plain:-0.8:0-0.9", "--reference",
        f"{shown[1]}:sd1-plus:0.5", "--json",
    ).json["render"]  # fmt: skip
    plain, texts = tmp_path / "a1111.png", PngImagePlugin.PngInfo()
    with Image.open(done["path"]) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
        texts.add_text("parameters", text)
        changed = np.asarray(image).copy()
        changed[0, 0, 0] ^= 1  # so that the library does not recognise an image of its own
        Image.fromarray(changed).save(plain, pnginfo=texts)

    without = civman("replay", plain, "--json")
    [again] = civman("replay", plain, "--picture", shown[0], "--picture", shown[1], "--json").json["render"]

    assert (
        'ControlNet 0: "Module: ip-adapter-auto, Model: sd1-plain, Weight: -0.8, Resize Mode: Crop and Resize, '
        "Processor Res: -1, Threshold A: -1, Threshold B: -1, Guidance Start: 0.0, Guidance End: 0.9, "
    ) in text
    assert without.json["error"]["code"] == "not-drawable"
    assert "--picture PICTURE" in without.json["error"]["message"]
    assert again["pixel_sha256"] == done["pixel_sha256"]
    assert again["recipe"]["references"] == done["recipe"]["references"]


@pytest.mark.usefixtures("with_adapters")
def test_check_says_what_fits_and_what_is_needed(civman: Civman) -> None:
    fits = civman("check", "tiny-sd1", "--reference", "sd1-plain", "--reference", "sd1-plus", "--json").json["check"]
    wrong = civman("check", "tiny-sd1", "--reference", "xl-plain", "--json")

    assert [part["depth"] for part in fits["parts"]] == ["modules", "modules"]
    assert all("attention layers fit" in part["reasons"][0] for part in fits["parts"])
    assert "cross-attention layers" in json.dumps(wrong.json)
    assert wrong.code != 0


def test_reference_options_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()

    found = references_from(["a.png:plus", "a.png:civitai:12@34:-0.5:0.25-1"], ["1,2,3,4"])

    assert found == (
        ReferenceRequest("a.png", "plus", crop=(1, 2, 3, 4)),
        ReferenceRequest("a.png", "civitai:12@34", -0.5, 0.25, 1.0, (1, 2, 3, 4)),
    )
    assert references_from(None, None) == ()
    for texts, crops in ((["a.png:x"] * 3, ["none"] * 2), (["a.png:x:1:2"], []), (["a.png:x"], ["1,2,3"])):
        with pytest.raises(UsageError):
            references_from(texts, crops)


def test_the_api_keeps_the_pictures_and_names_them_by_digest(tmp_path: Path) -> None:
    from civman.serve.render_requests import kept_value, request_of

    data = picture(tmp_path / "x.png", (16, 16)).read_bytes()
    body = {"checkpoint": "m", "references": [{"picture": base64.b64encode(data).decode(), "ref": "plus", "weight": 0.5,
                                               "crop": [0, 0, 8, 8]}]}  # fmt: skip

    request = request_of(body, library=tmp_path)
    kept = kept_value(body, request)

    assert Path(request.references[0].picture).read_bytes() == data
    assert request.references[0].crop == (0, 0, 8, 8)
    assert len(kept["references"][0]["picture"]) == 64
    assert request_of(kept, library=tmp_path) == request
    with pytest.raises(UsageError):
        request_of({**body, "references": [{"picture": "/etc/passwd", "ref": "plus"}]}, library=tmp_path)


@pytest.mark.usefixtures("with_adapters")
@pytest.mark.parametrize("options", [
    ("--tiled-upscale", "lanczos:1.5", "--tile-overlap", "16"), ("--low-vram",), ("--lora", "ink"),
], ids=lambda options: options[0])  # fmt: skip
def test_a_reference_acts_in_tiles_in_little_memory_and_with_a_lora(
    civman: Civman, tmp_path: Path, options: tuple[str, ...]
) -> None:
    guide = picture(tmp_path / "guide.png", (80, 48))
    init = ("--init", guide) if "upscale" in options[0] else ()
    words = ("render", "tiny-sd1", "a cat", *QUICK, *init, *options, "--json")

    plain = civman(*words)
    made = civman(*words, "--reference", f"{guide}:sd1-plus")

    assert made.code == 0, made.err
    first = made.json["render"][0]
    assert first["pixel_sha256"] != plain.json["render"][0]["pixel_sha256"]
    assert civman("replay", first["path"]).code == 0


@pytest.mark.usefixtures("with_adapters")
def test_the_plan_counts_the_weights_of_the_adapter_and_of_the_encoder(library: Library, tmp_path: Path) -> None:
    request = RenderRequest("tiny-sd1", "a cat", width=64, height=64, precision="float32")
    asked = ReferenceRequest(str(picture(tmp_path / "guide.png", (64, 64))), "sd1-plain")

    plain, made = (library.plan(replace(request, references=each)).memory for each in ((), (asked, asked)))

    adapter = sum(each.numel() for part in files.adapter("plain", "sd1").values() for each in part.values())
    assert made.attached - plain.attached == 4 * adapter
    assert made.text - plain.text == 4 * sum(each.numel() for each in files.encoder().state_dict().values())
