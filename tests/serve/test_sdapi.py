"""AUTOMATIC1111's API: as its Python client uses it, and as other clients' requests are shaped."""

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rendering_stock import picture
from serve_running import Served

SMALL = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 3.0, "sampler_name": "Euler"}


@pytest.fixture
def api(served: Served) -> Any:
    webuiapi = pytest.importorskip("webuiapi")
    client = webuiapi.WebUIApi(host="127.0.0.1", port=int(served.url.rpartition(":")[2]), sampler="Euler", steps=2)
    yield client
    client.session.close()


def post(served: Served, path: str, body: Any, status: int = 200) -> Any:
    answer = served.http.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_python_client_makes_images(api: Any, served: Served) -> None:
    result = api.txt2img(
        prompt="a red cat", negative_prompt="dog", seed=1003, cfg_scale=3, width=64, height=64, n_iter=2
    )

    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [1003, 1004]
    assert len(result.info["infotexts"]) == 2
    assert "Seed: 1004" in result.info["infotexts"][1]
    assert result.images[0].text["parameters"] == result.info["infotexts"][0]
    (same,) = served.get("/api/v1/pictures", recipe=result.info["recipe_sha256"][1])["pictures"]
    assert same["pixel_sha256"] == result.info["pixel_sha256"][1]


def test_the_python_client_changes_an_image_and_inpaints(api: Any, tmp_path: Path) -> None:
    with (
        Image.open(picture(tmp_path / "start.png", (64, 64))) as start,
        Image.open(picture(tmp_path / "mask.png", (64, 64), half=True)) as mask,
    ):
        changed = api.img2img(images=[start], prompt="a cat", seed=5, denoising_strength=0.5, width=64, height=64)
        painted = api.img2img(
            images=[start], mask_image=mask, prompt="a cat", seed=5, width=64, height=64, inpaint_full_res=False,
            mask_blur=0, inpainting_fill=1,
        )  # fmt: skip
        inverted = api.img2img(
            images=[start], mask_image=mask, prompt="a cat", seed=5, width=64, height=64, inpaint_full_res=False,
            mask_blur=0, inpainting_fill=1, inpainting_mask_invert=1,
        )  # fmt: skip
        left = start.convert("RGB").crop((0, 0, 24, 64)).tobytes()
        right = start.convert("RGB").crop((40, 0, 64, 64)).tobytes()
        assert changed.image.size == (64, 64)
        assert painted.image.convert("RGB").crop((0, 0, 24, 64)).tobytes() == left
        assert painted.image.convert("RGB").crop((40, 0, 64, 64)).tobytes() != right
        assert inverted.image.convert("RGB").crop((40, 0, 64, 64)).tobytes() == right


def test_the_python_client_asks_for_everything_else(api: Any, tmp_path: Path) -> None:
    assert api.util_get_model_names()
    assert api.util_get_current_model() == api.util_get_model_names()[0]
    api.util_set_model("tiny")
    api.util_wait_for_ready(0.05)
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert {"None", "Lanczos"} <= {each["name"] for each in api.get_upscalers()}
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    for name in ("sd_vae", "loras", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles"):
        assert getattr(api, f"get_{name}")() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert set(api.get_embeddings()) == {"loaded", "skipped"}
    assert "ram" in api.get_memory()
    assert api.get_cmd_flags()["api"] is True
    assert api.refresh_checkpoints() is None
    progress = api.get_progress()
    assert (progress["progress"], progress["state"]["job_count"], progress["state"]["job"]) == (0.0, 0, "")
    assert api.interrupt() == {}
    assert api.skip() == {}
    assert api.controlnet_model_list() == []
    with Image.open(picture(tmp_path / "a.png", (40, 30))) as image:
        assert api.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=1.5).image.size == (60, 45)
        assert [each.size for each in api.extra_batch_images([image, image]).images] == [(80, 60)] * 2
        made = api.txt2img(prompt="told", seed=1, width=64, height=64).image
        assert "told" in api.png_info(made).info
        assert api.png_info(image).info == ""


def test_the_options_go_round_trip(api: Any) -> None:
    options = api.get_options()
    options["sd_model_checkpoint"] = "tiny-sd1"
    options["something_of_theirs"] = [1, 2]

    api.set_options(options)

    assert api.get_options()["something_of_theirs"] == [1, 2]
    assert api.get_options()["sd_model_checkpoint"].startswith("tiny-sd1.safetensors [")
    assert "forge_preset" not in api.get_options()
    with pytest.raises(Exception, match="no such"):
        raise RuntimeError(api.set_options({"sd_model_checkpoint": "no such"}))


def test_interrupt_stops_a_running_render_which_still_answers(served: Served) -> None:
    answers: list[Any] = []
    body = {"prompt": "long", **SMALL, "steps": 1000, "width": 128, "height": 128}
    thread = threading.Thread(target=lambda: answers.append(post(served, "txt2img", body)))
    thread.start()
    end = time.monotonic() + 60
    while not (told := served.get("/sdapi/v1/progress"))["state"]["sampling_step"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 0 < told["progress"] < 1
    assert told["state"]["sampling_steps"] == 1000
    assert told["state"]["job_count"] == 1

    assert post(served, "interrupt", {}) == {}

    thread.join(60)
    assert json.loads(answers[0]["info"])["interrupted"] is True
    assert answers[0]["images"] == []


SHAPES = {
    "SillyTavern": {
        "url": "http://localhost:7860", "auth": "user:password", "prompt": "a", "negative_prompt": "", **SMALL,
        "scheduler": "Automatic", "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2,
        "hr_additional_steps": 0, "denoising_strength": 0.7, "clip_skip": 1, "seed": -1, "n_iter": 1,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True, "do_not_save_grid": True, "send_images": True,
    },
    "Open WebUI": {"prompt": "a", "batch_size": 1, "width": 64, "height": 64, "steps": 2, "sampler_name": "Euler",
                   "scheduler": "Automatic", "cfg_scale": 3.0},
    "GIMP": {"prompt": "a", "negative_prompt": "", "seed": -1, "sampler_index": "DPM++ 2M Karras", "steps": 2,
             "width": 64, "height": 64, "cfg_scale": 3, "batch_size": 1, "mask_blur": 4, "inpainting_fill": 1},
    "aiyabot": {"prompt": "a", "steps": 2, "width": 64, "height": 64, "cfg_scale": "3.0", "sampler_index": "Euler",
                "seed": None, "denoising_strength": None, "hr_second_pass_steps": 12.5, "styles": ["None"],
                "n_iter": 1, "face_restoration": None},
    "KoboldAI Lite": {"prompt": "a", "seed": -1, "width": 64, "height": 64, "steps": 2, "cfg_scale": 3,
                      "sampler_name": "Euler", "override_settings": {"CLIP_stop_at_last_layers": 1.0}},
    "oobabooga": {"prompt": "a", "seed": -1, "sampler_name": "Euler", "enable_hr": False, "hr_scale": "1.0",
                  "hr_upscaler": "Latent", "denoising_strength": 0.7, "steps": 2, "cfg_scale": 3, "width": 64,
                  "height": 64, "restore_faces": False, "override_settings_restore_afterwards": True},
    "Photoshop": {"prompt": "a", **SMALL, "uniqueDocumentId": "x", "use_prompt_shortcut": True, "styles": [None],
                  "alwayson_scripts": {"ControlNet": {"args": []}}, "inpaint_full_res": False},
}  # fmt: skip


@pytest.mark.parametrize("client", SHAPES)
def test_each_clients_request_is_answered(served: Served, client: str) -> None:
    answer = post(served, "txt2img", SHAPES[client])

    assert len(answer["images"]) == 1
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        assert image.size == (64, 64)
        assert image.format == "PNG"
    assert len(json.loads(answer["info"])["all_seeds"]) == 1
    assert "password" not in json.dumps(answer)


def test_a_second_pass_enlarges(served: Served) -> None:
    body = {"prompt": "a", **SMALL, "enable_hr": True, "hr_scale": "1.5", "hr_upscaler": "Latent",
            "hr_second_pass_steps": 2, "denoising_strength": 0.6}  # fmt: skip

    (text,) = post(served, "txt2img", body)["images"]

    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.size == (96, 96)


def test_the_second_pass_and_a_refiner_have_values_of_their_own(served: Served) -> None:
    titles = [each["title"] for each in served.http.get("/sdapi/v1/sd-models").json()]
    body = {
        "prompt": "a", **SMALL, "enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 2,
        "denoising_strength": 0.6, "hr_prompt": "a dog", "hr_negative_prompt": "ugly", "hr_sampler_name": "Heun",
        "hr_checkpoint_name": titles[0], "refiner_checkpoint": titles[0], "refiner_switch_at": 0.4,
        "override_settings": {"sd_model_checkpoint": titles[0], "hires_fix_refiner_pass": "both passes"},
    }  # fmt: skip

    info = json.loads(post(served, "txt2img", body)["info"])

    wanted = ('Hires prompt: "a dog"', 'Hires negative prompt: "ugly"', "Hires sampler: Heun",
              "Refiner: ", "Refiner switch at: 0.4", "Hires refiner: both passes")  # fmt: skip
    assert [words for words in wanted if words not in info["infotexts"][0]] == []
    assert "Hires checkpoint" not in info["infotexts"][0], "the same one"
    post(served, "txt2img", body | {"hr_checkpoint_name": "gone"}, status=404)
    post(served, "txt2img", body | {"refiner_checkpoint": "gone"}, status=404)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"sampler_name": "Eulr"}, 400, "Euler"),
        ({"tiling": True}, 422, "tiling"),
        ({"restore_faces": True}, 422, "restore_faces"),
        ({"script_name": "X/Y/Z plot"}, 422, "X/Y/Z plot"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, 422, "ADetailer"),
        ({"steps": "many"}, 400, "steps"),
        ({"override_settings": {"sd_model_checkpoint": "no such"}}, 404, "no such"),
        ({"prompt": "a <lora:nothing:1>"}, 404, "nothing"),
    ],
)
def test_errors_have_that_apis_form(served: Served, change: dict[str, Any], status: int, word: str) -> None:
    answer = post(served, "txt2img", {"prompt": "a", **SMALL, **change}, status)

    assert set(answer) == {"error", "detail", "body", "errors"}
    assert word in answer["detail"]


def test_both_forms_of_a_path_and_basic_credentials_are_answered(served: Served) -> None:
    for path in ("/sdapi/v1/options/", "/sdapi/v1/options?", "/sdapi/v1/options"):
        answer = served.http.get(path, headers={"Authorization": "Basic Og=="})
        assert answer.status_code == 200
    assert served.http.head("/").status_code == 200
    assert served.http.post("/sdapi/v1/options/", json={"a": 1}).status_code == 200


def test_the_openai_client_makes_an_image(served: Served) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=0) as client:
        more = {"steps": 2, "seed": 3, "sampler": "Euler", "guidance_scale": 3.0}

        made = client.images.generate(prompt="a cat", model="tiny-sd1", size="64x64", n=2, extra_body=more)
        linked = client.images.generate(
            prompt="a cat", model="tiny-sd1", size="64x64", response_format="url", extra_body=more
        )

        for each in made.data:
            with Image.open(io.BytesIO(base64.b64decode(each.b64_json))) as image:
                assert image.size == (64, 64)
        file = served.http.get(linked.data[0].url)
        assert file.headers["content-type"] == "image/png"
        assert [each.id for each in client.models.list()] == ["tiny-sd1.safetensors"]
        with pytest.raises(openai.NotFoundError, match="no-such"):
            client.images.generate(prompt="a", model="no-such", size="64x64")
        with pytest.raises(openai.BadRequestError, match="size"):
            client.images.generate(prompt="a", model="tiny-sd1", size="large")
