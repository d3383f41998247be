# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""`civman render --control`: found, checked, drawn, recorded, and drawn again without the picture or preprocessor."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
import tiny_models
from PIL import Image, PngImagePlugin
from rendering_stock import QUICK, picture
from safetensors.torch import load_file, save_file
from site_rules import judge

from civman.cli.control_options import controls_from
from civman.diffusion.control_models import load_control
from civman.diffusion.open_model import load
from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import RenderRequest
from civman.errors import UsageError
from civman.library import Library


def write_net(path: Path, kind: str) -> Path:
    from diffusers import ControlNetModel

    spared = {"sample_size", "out_channels", "up_block_types", "center_input_sample"}
    torch.manual_seed(5)
    made = ControlNetModel(**{k: v for k, v in tiny_models.KINDS[kind]["unet"].items() if k not in spared})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)
    return path


def write_union(path: Path) -> Path:
    from diffusers import ControlNetUnionModel

    spared = {"sample_size", "out_channels", "up_block_types", "center_input_sample"}
    torch.manual_seed(7)
    made = ControlNetUnionModel(
        **{k: v for k, v in tiny_models.KINDS["sdxl"]["unet"].items() if k not in spared}, num_trans_channel=16,
        num_proj_channel=16,
    )  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)
    return path


def write_lora(path: Path) -> Path:
    """A ControlLoRA for the tiny SD 1 model: its own layers, and a change to the UNet's first convolution."""
    net, state = load_file(path.with_name("sd1-lines.safetensors")), {"lora_controlnet": torch.zeros(0)}
    for name, value in net.items():
        place = name.split(".")
        if place[0] == "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": 14}.get(place[1]) if place[1] != "blocks" else 2 * int(place[2]) + 2
            state[f"input_hint_block.{number}.{place[-1]}"] = value
        elif place[0] == "controlnet_down_blocks":
            state[f"zero_convs.{place[1]}.0.{place[2]}"] = value
        elif place[0] == "controlnet_mid_block":
            state[f"middle_block_out.0.{place[1]}"] = value
    state |= {"input_blocks.0.0.up": torch.randn(16, 2, 1, 1), "input_blocks.0.0.down": torch.randn(2, 4, 3, 3)}
    save_file(state, path)
    return path


def write_adapter(path: Path, *, is_xl: bool) -> Path:
    from diffusers import T2IAdapter

    torch.manual_seed(6)
    kind = {"adapter_type": "full_adapter_xl", "downscale_factor": 16} if is_xl else {}
    made = T2IAdapter(channels=[16, 32, 32, 32], **kind)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    for kind in ("sd1", "sdxl"):
        write_net(folder / f"{kind}-lines.safetensors", kind)
        write_adapter(folder / f"{kind}-sketch.safetensors", is_xl=kind == "sdxl")
    write_union(folder / "sdxl-union.safetensors")
    write_lora(folder / "sd1-light.safetensors")
    module = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{module}.down.0.weight": torch.zeros(4, 56)}, folder / "sdxl-lllite.safetensors")
    return folder


@pytest.fixture
def with_nets(stocked: Path, nets: Path, civman: Civman) -> None:
    assert civman("import", "--offline", nets).code == 0


@pytest.mark.usefixtures("with_nets")
def test_an_image_with_control_replays_without_its_picture(civman: Civman, tmp_path: Path) -> None:
    guide = picture(tmp_path / "guide.png", (80, 48))
    words = ("render", "tiny-sd1", "a cat", *QUICK)

    plain = civman(*words, "--json")
    made = civman(*words, "--control", f"{guide}:sd1-lines:0.8:0-0.9", "--control-map", "canny", "--json")
    other = civman(*words, "--control", f"{guide}:sd1-lines:0.8:0-0.9", "--json")
    guide.unlink()
    first = made.json["render"][0]
    again = civman("replay", first["path"])
    weaker = civman("replay", first["path"], "--set", "seed=8", "--json")

    (use,) = first["recipe"]["controls"]
    assert (use["weight"], use["start"], use["end"], use["mode"]) == (0.8, 0.0, 0.9, "balanced")
    assert len({each.json["render"][0]["pixel_sha256"] for each in (plain, made, other)}) == 3
    assert again.code == 0, again.err
    assert weaker.json["render"][0]["recipe"]["controls"] == [use]
    assert "controls" not in plain.json["render"][0]["recipe"]
    assert plain.json["render"][0]["recipe"]["schema"] < first["recipe"]["schema"]


@pytest.mark.usefixtures("with_nets")
@pytest.mark.parametrize(
    ("control", "code", "says"),
    [
        ("guide.png:sdxl-lines", "cannot-work", "does not fit the checkpoint"),
        ("guide.png:sdxl-lllite", "unknown-family", "is a ControlNet-LLLite"),
        ("guide.png:sdxl-sketch", "cannot-work", "was made for sdxl, but the checkpoint is sd1"),
        ("guide.png:ink", "wrong-kind", "ink"),
        ("guide.png:nothing", "not-found", "nothing"),
        ("none.png:sd1-lines", "bad-value", "the image file does not exist"),
        ("guide.png:sd1-lines:0.8:0.9-0.1", "bad-recipe", "fractions of the steps"),
        ("guide.png:sd1-lines:20", "bad-recipe", "between 0 and 10"),
    ],
)
def test_what_cannot_be_used_is_refused_before_loading(
    civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str, code: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "guide.png", (64, 64))

    found = civman("render", "tiny-sd1", "a cat", *QUICK, "--control", control, "--dry-run", "--json")

    assert found.json["error"]["code"] == code
    assert says in found.json["error"]["message"]
    assert found.json["error"]["hint"] or code == "bad-recipe"


@pytest.mark.usefixtures("with_nets")
@pytest.mark.parametrize("kind", ["sketch", "light"])
def test_an_image_with_an_adapter_or_a_control_lora_replays(civman: Civman, tmp_path: Path, kind: str) -> None:
    guide = picture(tmp_path / "guide.png", (80, 48))
    words = ("render", "tiny-sd1", "a cat", *QUICK)

    plain = civman(*words, "--json")
    made = civman(*words, "--control", f"{guide}:sd1-{kind}:0.8:0-0.9", "--control-mode", "prompt", "--json")
    guide.unlink()
    again = civman("replay", made.json["render"][0]["path"])

    assert made.json["render"][0]["pixel_sha256"] != plain.json["render"][0]["pixel_sha256"]
    assert again.code == 0, again.err


@pytest.mark.long
@pytest.mark.usefixtures("with_nets")
def test_every_preprocessor_and_resize_mode_makes_an_image_of_its_own_that_replays(
    civman: Civman, tmp_path: Path
) -> None:
    guide = tmp_path / "guide.png"
    Image.effect_noise((80, 48), 60).convert("RGB").save(guide)
    words = ("render", "tiny-sd1", "a cat", *QUICK, "--control", f"{guide}:sd1-lines")

    ways = [("--control-map", each) for each in ("blur:2", "tile:2", "gray", "xdog:4", "canny:20:60")]
    ways += [("--control-resize", each) for each in ("just", "crop", "fill")]
    made = [civman(*words, *way, "--json").json["render"][0] for way in ways]
    guide.unlink()

    assert len({each["pixel_sha256"] for each in made}) == len(ways)
    assert [each["recipe"]["controls"][0]["resize_mode"] for each in made[5:]] == [
        "just resize", "crop and resize", "resize and pad",
    ]  # fmt: skip
    for each in (made[0], made[-1]):
        assert civman("replay", each["path"]).code == 0


@pytest.mark.usefixtures("with_nets")
def test_a1111_s_text_and_the_control_images_give_the_same_image(civman: Civman, tmp_path: Path) -> None:
    guides = [tmp_path / "first.png", tmp_path / "second.png"]
    for guide in guides:
        Image.effect_noise((80, 48), 60).convert("RGB").save(guide)
    [done] = civman(
        "render", "tiny-sd1", "a cat", *QUICK, "--control", f"{guides[0]}:sd1-lines:0.8:0-0.9", "--control",
        f"{guides[1]}:sd1-sketch:0.5", "--control-mode", "prompt", "--control-mode", "balanced", "--control-resize",
        "crop", "--json",
    ).json["render"]  # fmt: skip
    plain, texts = tmp_path / "a1111.png", PngImagePlugin.PngInfo()
    with Image.open(done["path"]) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
        texts.add_text("parameters", text)
        changed = np.asarray(image).copy()
        changed[0, 0, 0] ^= 1  # so that the library does not recognise an image of its own
        Image.fromarray(changed).save(plain, pnginfo=texts)

    without = civman("replay", plain, "--json")
    [again] = civman("replay", plain, "--picture", guides[0], "--picture", guides[1], "--json").json["render"]
    [other] = civman(
        "replay", plain, "--picture", guides[0], "--picture", guides[1], "--set", "seed=8", "--json"
    ).json["render"]  # fmt: skip

    assert (
        'ControlNet 0: "Module: none, Model: sd1-lines, Weight: 0.8, Resize Mode: Crop and Resize, Processor Res: -1, '
        "Threshold A: -1, Threshold B: -1, Guidance Start: 0.0, Guidance End: 0.9, Pixel Perfect: False, "
        'Control Mode: My prompt is more important"'
    ) in text
    kept = judge(text)
    assert kept.values["Model"] == "tiny-sd1"
    assert kept.values["ControlNet 1"]["Model"] == "sd1-sketch"  # type: ignore[index]
    assert len([key for key in kept.hashes if key.startswith("controlnet:")]) == 2
    assert without.json["error"]["code"] == "not-drawable"
    assert "--picture CONTROL" in without.json["error"]["message"]
    assert again["pixel_sha256"] == done["pixel_sha256"]
    assert again["compared"]["verdict"] == "the same picture"
    assert again["recipe"]["controls"] == other["recipe"]["controls"] == done["recipe"]["controls"]


@pytest.mark.usefixtures("with_nets")
def test_a1111_s_preprocessor_runs_on_the_picture_that_a_replay_is_given(civman: Civman, tmp_path: Path) -> None:
    guide = tmp_path / "guide.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(guide)
    [done] = civman(
        "render", "tiny-sd1", "a cat", *QUICK, "--control", f"{guide}:sd1-lines", "--control-map", "canny:50:150",
        "--json",
    ).json["render"]  # fmt: skip
    plain, texts = tmp_path / "a1111.png", PngImagePlugin.PngInfo()
    unit = (
        "Module: canny, Model: sd1-lines [d14c016b], Weight: 1.0, Resize Mode: Just Resize, Processor Res: 512, "
        "Threshold A: 50.0, Threshold B: 150.0, Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: False, "
        "Control Mode: Balanced"
    )
    texts.add_text(
        "parameters",
        f"a cat\nSteps: 2, Sampler: Euler, Schedule type: Automatic, CFG scale: 3, Seed: 7, Size: 64x64, "
        f'Model: tiny-sd1, RNG: CPU, ControlNet 0: "{unit}", Version: v1.10.1',
    )
    with Image.open(done["path"]) as image:
        Image.fromarray(np.asarray(image) ^ 1).save(plain, pnginfo=texts)

    [again] = civman("replay", plain, "--picture", guide, "--json").json["render"]
    [other] = civman("replay", plain, "--picture", guide, "--set", "seed=8", "--json").json["render"]

    assert again["recipe"]["controls"] == other["recipe"]["controls"] == done["recipe"]["controls"]


@pytest.mark.usefixtures("with_nets")
def test_a_union_is_told_the_kinds_of_its_control_images(civman: Civman, tmp_path: Path) -> None:
    guide = picture(tmp_path / "guide.png", (80, 48))
    words = ("render", "tiny-sdxl", "a cat", *QUICK, "--control", f"{guide}:sdxl-union:0.8", "--json")

    unsaid = civman(*words, "--dry-run")
    told = civman(*words, "--control-type", "OpenPose")
    inferred = civman(*words, "--control-map", "canny", "--dry-run")
    beyond = civman(*words, "--control-type", "tile", "--dry-run")
    both = civman(*words, "--control", f"{guide}:sdxl-union", "--control-type", "depth", "--control-type", "lineart")
    single = civman(
        "render", "tiny-sdxl", "a cat", *QUICK, "--control", f"{guide}:sdxl-lines", "--control-type", "depth",
        "--dry-run", "--json",
    )  # fmt: skip
    guide.unlink()
    again = civman("replay", both.json["render"][0]["path"])

    assert "was not specified" in unsaid.json["error"]["message"]
    assert "openpose, depth, softedge, hardedge, normal, segment" in unsaid.json["error"]["hint"]
    assert [use["type"] for use in told.json["render"][0]["recipe"]["controls"]] == ["openpose"]
    assert [use["type"] for use in inferred.json["plan"][0]["recipe"]["controls"]] == ["hardedge"]
    assert "does not take control images of the kind `tile`" in beyond.json["error"]["message"]
    assert [use["type"] for use in both.json["render"][0]["recipe"]["controls"]] == ["depth", "hardedge"]
    assert "takes only one kind of control image" in single.json["error"]["message"]
    assert again.code == 0, again.err


@pytest.mark.usefixtures("stocked", "civman")
def test_a_controlnet_called_shuffle_averages_its_outputs(civman: Civman, nets: Path, tmp_path: Path) -> None:
    guide, shuffle = picture(tmp_path / "guide.png", (80, 48)), tmp_path / "control_v11e_sd15_shuffle.safetensors"
    shutil.copy(nets / "sd1-lines.safetensors", shuffle)
    words = ("render", "tiny-sd1", "a cat", *QUICK, "--dry-run", "--json", "--control")

    plain = civman(*words, f"{guide}:{nets / 'sd1-lines.safetensors'}").json["plan"][0]["recipe"]["controls"][0]
    pooled = civman(*words, f"{guide}:{shuffle}").json["plan"][0]["recipe"]

    assert pooled["controls"][0]["pools"] is True
    assert "pools" not in plain


@pytest.mark.usefixtures("with_nets")
@pytest.mark.parametrize(
    ("control", "verdict"),
    [
        ("sd1-lines", "fits"),
        ("sd1-sketch", "fits"),
        ("sd1-light", "fits"),
        ("sdxl-lines", "cannot work"),
        ("sdxl-sketch", "cannot work"),
    ],
)
def test_check_says_what_a_control_model_fits(civman: Civman, control: str, verdict: str) -> None:
    found = civman("check", "tiny-sd1", "--control", control, "--json")

    assert found.json["check"]["parts"][0]["verdict"] == verdict


def test_control_options_are_parsed_with_and_without_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    Path("b:1.png").touch()

    found = controls_from(
        ["a.png:canny", "a.png:civitai:1234@5678:0.5", "b:1.png:canny:0.25-0.75", "a.png:sha256:ab12cd34ef:1:0-0.5",
         "a.png:civitai:1234", "a.png:1234"],
        ["none", "canny", "invert", "none", "none", "none"], ["prompt"],
    )  # fmt: skip

    assert found == (
        ControlRequest("a.png", "canny", mode="prompt"),
        ControlRequest("a.png", "civitai:1234@5678", 0.5, mode="prompt", control_map="canny"),
        ControlRequest("b:1.png", "canny", 1.0, 0.25, 0.75, "prompt", control_map="invert"),
        ControlRequest("a.png", "sha256:ab12cd34ef", 1.0, 0.0, 0.5, "prompt"),
        ControlRequest("a.png", "civitai:1234", mode="prompt"),
        ControlRequest("a.png", "1234", mode="prompt"),
    )
    for wrong in (
        (["a.png:x"] * 3, ["none"] * 2, []), ([], ["canny"], []), ([], [], ["prompt"]), (None, None, None, ["tile"])
    ):  # fmt: skip
        with pytest.raises(UsageError):
            controls_from(*wrong)


@pytest.mark.usefixtures("with_nets")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["sd1-lines", "sd1-sketch", "sd1-light", "sdxl-union"])
def test_the_plan_counts_the_memory_of_the_loaded_control_model(
    library: Library, stock: Path, nets: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    guide, checkpoint = picture(tmp_path / "guide.png", (64, 64)), f"tiny-{kind.partition('-')[0]}"
    request = RenderRequest(checkpoint, "a cat", width=64, height=64, precision=precision)
    asked = ControlRequest(str(guide), kind, control_type="canny" if "union" in kind else "")
    dtype = getattr(torch, precision)
    model = load(stock / f"{checkpoint}.safetensors", dtype=dtype)
    module = load_control(nets / f"{kind}.safetensors", model, device=torch.device("cpu"), dtype=dtype).module

    plain, twice = (library.plan(replace(request, controls=each)).memory for each in ((), (asked, asked)))

    assert twice.attached == sum(each.numel() * each.element_size() for each in module.parameters())
    assert twice.weights - plain.weights == twice.attached > 0
    assert plain.attached == 0
    assert (twice.unet_work > plain.unet_work) == ("sketch" not in kind), (
        "a T2I-Adapter computes once, before the steps"
    )


@pytest.mark.usefixtures("with_nets")
def test_a_control_image_is_cropped_to_the_masked_region_that_is_drawn(
    civman: Civman, library: Library, tmp_path: Path
) -> None:
    start, guide, mask = tmp_path / "start.png", tmp_path / "guide.png", tmp_path / "mask.png"
    picture(start, (160, 120))
    Image.effect_noise((160, 120), 60).convert("RGB").save(guide)
    area = Image.new("L", (160, 120))
    area.paste(255, (40, 30, 104, 94))
    area.save(mask)
    inpaint = ("--init", start, "--mask", mask, "--mask-blur", "0", "--padding", "0")
    words = ("render", "tiny-sd1", "a cat", *QUICK, *inpaint, "--only-masked", "--json")

    [made] = civman(*words, "--control", f"{guide}:sd1-lines").json["render"]

    with Image.open(guide) as whole:
        whole.crop((40, 30, 104, 94)).save(tmp_path / "part.png")
    request = RenderRequest(
        "tiny-sd1", "a cat", width=64, height=64, steps=2, guidance_scale=3, seed=7, sampler="Euler",
        precision=made["recipe"]["precision"], init_image=str(start), mask_image=str(mask), mask_blur=0, padding=0,
        only_masked=True, controls=(ControlRequest(str(tmp_path / "part.png"), "sd1-lines", crops=False),),
    )  # fmt: skip
    [by_hand] = library.render([library.plan(request)], output=tmp_path / "out", machine=Machine("cpu"))
    assert by_hand.record.pixel_sha256 == made["pixel_sha256"]
    assert json.loads(by_hand.recipe.to_json())["schema"] < made["recipe"]["schema"], "as before the crop was known"
    assert made["recipe"]["controls"][0]["crops"] is True
    guide.unlink()
    assert civman("replay", made["path"]).code == 0
    [other] = civman("replay", made["path"], "--set", "seed=8", "--json").json["render"]
    assert other["recipe"]["controls"] == made["recipe"]["controls"]
    [whole_image] = civman("replay", made["path"], "--set", "only_masked=off", "--json").json["render"]
    assert "crops" not in whole_image["recipe"]["controls"][0]
