# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""ControlNet's units in AUTOMATIC1111's API: as its Python client sends them, and as the extension documents them."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ip_adapter_files
import tiny_models
from PIL import Image
from safetensors.torch import save_file
from serve_running import Served, environment_in, start, stop

SMALL = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 3.0, "sampler_name": "Euler", "seed": 7}
IMAGE = Image.linear_gradient("L").resize((80, 48)).convert("RGB")


def write_net(path: Path) -> Path:
    from diffusers import ControlNetModel

    spared = {"sample_size", "out_channels", "up_block_types", "center_input_sample"}
    torch.manual_seed(5)
    made = ControlNetModel(**{k: v for k, v in tiny_models.KINDS["sd1"]["unet"].items() if k not in spared})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose library has a checkpoint, a ControlNet and an IP-Adapter."""
    folder = tmp_path_factory.mktemp("controlled")
    environment = environment_in(folder)
    files = [
        tiny_models.write(folder / "tiny-sd1.safetensors", "sd1"),
        write_net(folder / "control_v11p_canny.safetensors"),
        ip_adapter_files.write(ip_adapter_files.adapter("plain", "sd1"), folder / "ip-adapter_sd15.safetensors"),
        ip_adapter_files.write_encoder(ip_adapter_files.encoder(), folder / "vision.safetensors"),
    ]
    words = [sys.executable, "-m", "civman", "import", "--offline", *map(str, files)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    running = start(folder / "library", environment)
    yield running
    stop(running)


def base64_of(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def post(served: Served, body: dict[str, Any], status: int = 200, path: str = "txt2img") -> Any:
    answer = served.http.post(f"/sdapi/v1/{path}", json={"prompt": "a cat", **SMALL, **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def controlled(served: Served, unit: dict[str, Any], status: int = 200, **body: Any) -> Any:
    return post(served, {"alwayson_scripts": {"controlnet": {"args": [unit]}}, **body}, status)


def recipe_of(served: Served, made: dict[str, Any]) -> dict[str, Any]:
    (kept,) = served.get("/api/v1/pictures", recipe=json.loads(made["info"])["recipe_sha256"][0])["pictures"]
    found: dict[str, Any] = served.get(f"/api/v1/pictures/{kept['id']}")["recipe"]
    return found


def test_the_python_client_draws_with_its_units(server: Served) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(host="127.0.0.1", port=int(server.url.rpartition(":")[2]), sampler="Euler", steps=2)
    (model,) = (each for each in api.controlnet_model_list() if each.startswith("control_"))

    units = [
        webuiapi.ControlNetUnit(image=IMAGE, model=model, module=module, weight=0.8, guidance_end=0.9, control_mode=1)
        for module in ("none", "canny")
    ]
    plain = api.txt2img(prompt="a cat", seed=7, cfg_scale=3, width=64, height=64)
    made = [
        api.txt2img(prompt="a cat", seed=7, cfg_scale=3, width=64, height=64, controlnet_units=[unit]) for unit in units
    ]
    off = webuiapi.ControlNetUnit(image=IMAGE, model=model, enabled=False)
    same = api.txt2img(prompt="a cat", seed=7, cfg_scale=3, width=64, height=64, controlnet_units=[off])
    api.session.close()

    assert model.startswith("control_v11p_canny [")
    assert len({each.info["pixel_sha256"][0] for each in (plain, *made)}) == 3
    assert same.info["pixel_sha256"] == plain.info["pixel_sha256"]


def test_a_unit_has_the_extensions_fields_and_defaults(server: Served) -> None:
    unit = {"image": base64_of(IMAGE), "model": "control_v11p_canny [d14c016b]"}
    usual = recipe_of(server, controlled(server, unit))["controls"]
    named = controlled(server, {
        "input_image": f"data:image/png;base64,{base64_of(IMAGE)}", "model": "control_v11p_canny", "module": "canny",
        "weight": "0.5", "guidance_start": 0.1, "guidance": 0.8, "control_mode": "ControlNet is more important",
        "resize_mode": "Resize and Fill", "processor_res": 512, "threshold_a": 64, "threshold_b": 500,
        "pixel_perfect": True, "hr_option": "Both", "mask": None, "low_vram": True,
    })  # fmt: skip
    counted = controlled(server, {**unit, "control_mode": 1, "resize_mode": 0, "module": "none", "threshold_a": 64})

    (use,) = recipe_of(server, named)["controls"]
    (other,) = recipe_of(server, counted)["controls"]
    assert [(each["weight"], each["start"], each["end"], each["mode"], each["resize_mode"]) for each in usual] == [
        (1.0, 0.0, 1.0, "balanced", "crop and resize")
    ]
    assert (use["weight"], use["start"], use["end"], use["mode"]) == (0.5, 0.1, 0.8, "control")
    assert use["resize_mode"] == "resize and pad"
    assert (other["mode"], other["resize_mode"]) == ("prompt", "just resize")
    assert use["picture"] != other["picture"] == usual[0]["picture"]


def test_img2img_takes_the_start_image_where_a_unit_has_none(server: Served) -> None:
    unit = {"model": "control_v11p_canny", "module": "invert (from white bg & black line)"}
    body = {"init_images": [base64_of(IMAGE)], "alwayson_scripts": {"ControlNet": {"args": [unit, {"enabled": False}]}}}

    (use,) = recipe_of(server, post(server, body, path="img2img"))["controls"]

    assert use["picture"]
    assert "no `image`" in controlled(server, unit, 400)["detail"]


def test_a_control_image_is_cropped_where_only_the_masked_area_is_rendered(server: Served) -> None:
    unit = {"image": base64_of(IMAGE), "model": "control_v11p_canny"}
    body = {"init_images": [base64_of(IMAGE)], "mask": base64_of(IMAGE)}

    def crops(unit: dict[str, Any], **more: Any) -> list[bool]:
        made = post(server, {**body, **more, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}, path="img2img")
        return [each.get("crops", False) for each in recipe_of(server, made)["controls"]]

    assert crops(unit) == [True]
    assert crops({**unit, "inpaint_crop_input_image": False}) == [False]
    assert crops(unit, inpaint_full_res=False) == [False]
    reference = {**unit, "model": "ip-adapter_sd15 [6a3f6166]", "module": "ip-adapter_clip_sd15"}
    asked = {**body, "alwayson_scripts": {"ControlNet": {"args": [reference]}}}
    assert "`inpaint_crop_input_image`" in str(post(server, asked, 422, path="img2img"))


def test_a_unit_of_an_ip_adapter_is_a_reference_picture(server: Served) -> None:
    unit = {"image": base64_of(IMAGE), "model": "ip-adapter_sd15 [6a3f6166]", "module": "ip-adapter_clip_sd15"}
    both = [{**unit, "weight": 0.6, "guidance_end": 0.5}, {"image": unit["image"], "model": "control_v11p_canny"}]

    made = recipe_of(server, post(server, {"alwayson_scripts": {"controlnet": {"args": both}}}))
    refused = controlled(server, {**unit, "control_mode": 1}, 422)

    (use,) = made["references"]
    assert (use["weight"], use["start"], use["end"], use["crop"]) == (0.6, 0.0, 0.5, [])
    assert len(made["controls"]) == 1
    assert "control mode" in refused["detail"]


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"module": "ip-adapter_face_id"}, 422, "`ip-adapter_face_id`"),
        ({"module": "depth_midas"}, 422, "`depth_midas`"),
        ({"module": "openpose_full"}, 422, "`openpose_full`"),
        ({"model": "control_v11f1p_depth"}, 404, "control_v11f1p_depth"),
        ({"model": "None"}, 400, "no `model`"),
        ({"mask": "aGVsbG8="}, 422, "mask"),
        ({"hr_option": "Low res only"}, 422, "hr_option"),
        ({"advanced_weighting": [1.0] * 13}, 422, "advanced_weighting"),
        ({"control_mode": "loud"}, 400, "control_mode"),
        ({"resize_mode": 9}, 400, "resize_mode"),
        ({"weight": 99}, 400, "between 0 and 10"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, 400, "fractions of the steps"),
        ({"image": "/etc/passwd"}, 400, "picture"),
    ],
)
def test_what_a_unit_cannot_do_is_refused_by_name(
    server: Served, change: dict[str, Any], status: int, word: str
) -> None:
    unit = {"image": base64_of(IMAGE), "model": "control_v11p_canny", "enabled": True, **change}

    answer = controlled(server, unit, status)

    assert word in answer["detail"]


def test_the_lists_of_the_extension_are_answered(server: Served) -> None:
    asked = {name: server.http.get(f"/controlnet/{name}").json() for name in (
        "version", "settings", "model_list", "module_list", "control_types",
    )}  # fmt: skip

    assert asked["version"] == {"version": 3}
    assert asked["settings"]["control_net_unit_count"] == 10
    assert asked["module_list"]["module_list"][:3] == ["none", "canny", "invert"]
    assert asked["control_types"]["control_types"]["All"]["model_list"] == ["None", *asked["model_list"]["model_list"]]


def test_other_scripts_are_still_refused(server: Served) -> None:
    body = {"alwayson_scripts": {"ADetailer": {"args": [True]}, "controlnet": {"args": []}}}

    assert "ADetailer" in post(server, body, 422)["detail"]
