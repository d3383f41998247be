"""What named clients of AUTOMATIC1111's API send, from their start on, and what they read in the answers.

The sequences were written by hand from what the clients' sources do.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from rendering_stock import picture
from serve_running import Served

SIZE = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 3}


class Client:
    """A client with the headers that it sends."""

    def __init__(self, served: Served, image: str, mask: str, headers: dict[str, str]) -> None:
        self.image, self.mask = image, mask
        self._http = httpx.Client(base_url=served.url, headers=headers, timeout=60, trust_env=False)

    def get(self, path: str) -> Any:
        answer = self._http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self._http.post(path, json=body) if body is not None else self._http.post(path)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def head(self, path: str) -> int:
        return self._http.head(path).status_code

    def close(self) -> None:
        self._http.close()


def images(answer: Any, count: int = 1, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    found = [Image.open(io.BytesIO(base64.b64decode(text))) for text in answer["images"]]
    assert [each.size for each in found] == [size] * count
    return found


def silly_tavern(client: Client) -> None:
    client.get("/sdapi/v1/options")
    models = client.get("/sdapi/v1/sd-models")
    assert all(each["title"] and each["model_name"] for each in models)
    assert client.get("/sdapi/v1/upscalers")[0]["name"] == "None"
    assert client.get("/sdapi/v1/latent-upscale-modes")[0]["name"] == "Latent"
    assert client.get("/sdapi/v1/samplers")[0]["name"]
    assert client.get("/sdapi/v1/schedulers")[0]["name"]
    assert isinstance(client.get("/sdapi/v1/sd-vae"), list)
    client.post("/sdapi/v1/options", {"sd_model_checkpoint": models[0]["title"]})
    told = client.get("/sdapi/v1/progress")
    assert (told["progress"], told["state"]["job_count"]) == (0.0, 0)
    made = client.post(
        "/sdapi/v1/txt2img",
        {
            "url": "http://127.0.0.1:7860",
            "auth": "me:secret",
            "prompt": "a",
            "sampler_name": "Euler",
            "enable_hr": False,
            "restore_faces": False,
            "seed": None,
            "override_settings": {"CLIP_stop_at_last_layers": 1},
            "override_settings_restore_afterwards": True,
            **SIZE,
        },
    )
    images(made)
    assert "secret" not in json.dumps(made)
    assert client.post("/sdapi/v1/interrupt", {}) == {}


def open_webui(client: Client) -> None:
    options = client.get("/sdapi/v1/options")
    (model, *_) = client.get("/sdapi/v1/sd-models")
    options["sd_model_checkpoint"] = model["title"]
    client.post("/sdapi/v1/options", options)
    assert client.get("/sdapi/v1/options")["sd_model_checkpoint"] == model["title"]
    images(client.post("/sdapi/v1/txt2img", {"prompt": "a", "batch_size": 2, **SIZE}), 2)


def photoshop(client: Client) -> None:
    assert client.get("/config")
    assert client.get("/controlnet/version")["version"] == 3
    assert client.get("/controlnet/model_list") == {"model_list": []}
    assert "canny" in client.get("/controlnet/module_list")["module_list"]
    assert client.get("/sdapi/v1/scripts") == {"txt2img": [], "img2img": []}
    for name in ("options", "samplers", "sd-models", "upscalers", "loras", "embeddings"):
        client.get(f"/sdapi/v1/{name}")
    made = client.post(
        "/sdapi/v1/img2img",
        {
            "init_images": [client.image],
            "mask": client.mask,
            "prompt": "a",
            "denoising_strength": 0.5,
            "mask_blur": 0,
            "inpainting_fill": 1,
            "inpaint_full_res": False,
            "sampler_index": "Euler",
            "uniqueDocumentId": "x",
            "use_prompt_shortcut": True,
            "styles": [None],
            "script_args": [],
            "alwayson_scripts": {"ControlNet": {"args": []}},
            **SIZE,
        },
    )
    images(made)
    assert made["parameters"]["init_images"] is None
    read = client.post("/sdapi/v1/png-info", {"image": f"data:image/png;base64,{made['images'][0]}"})
    assert "Seed: " in read["info"]
    grown = client.post(
        "/sdapi/v1/extra-batch-images",
        {
            "imageList": [{"data": client.image, "name": "a"}],
            "upscaler_1": "Lanczos",
            "upscaling_resize": 2,
            "resize_mode": 0,
        },
    )
    images(grown, size=(128, 128))


def gimp(client: Client) -> None:
    client.get("/sdapi/v1/options")
    client.get("/sdapi/v1/sd-models")
    client.post("/sdapi/v1/options", {"sd_model_checkpoint": "tiny-sd1"})
    for path in ("txt2img?", "img2img?"):
        made = client.post(
            f"/sdapi/v1/{path}",
            {
                "prompt": "a",
                "negative_prompt": "",
                "seed": -1,
                "batch_size": 2,
                "sampler_index": "Euler a",
                "init_images": [client.image],
                "denoising_strength": 0.6,
                "mask_blur": 4,
                "inpainting_mask_invert": 0,
                **SIZE,
            },
        )
        info = json.loads(made["info"])
        assert len(info["all_seeds"]) == len(info["infotexts"]) == len(made["images"]) == 2
        assert info["all_seeds"][1] == info["all_seeds"][0] + 1


def ai_render(client: Client) -> None:
    names = [each["name"] for each in client.get("/sdapi/v1/upscalers") if each["name"] != "None"]
    assert client.get("/controlnet/model_list")["model_list"] == []
    made = client.post(
        "/sdapi/v1/img2img",
        {
            "prompt": "a",
            "negative_prompt": "b",
            "width": 64,
            "height": 64,
            "image_similarity": 0.4,
            "seed": 7,
            "cfg_scale": 3,
            "steps": 4,
            "sampler": "DPM++ 2M Karras",
            "denoising_strength": 0.6,
            "sampler_index": "DPM++ 2M Karras",
            "init_images": [f"data:image/png;base64,{client.image}"],
        },
    )
    images(made)
    assert json.loads(made["info"])["extra_generation_params"]["Schedule type"] == "Karras"
    grown = client.post(
        "/sdapi/v1/extra-single-image",
        {
            "resize_mode": 0,
            "upscaling_resize": 2,
            "upscaler_1": names[0],
            "image": f"data:image/png;base64,{client.image}",
        },
    )
    images({"images": [grown["image"]]}, size=(128, 128))


def aiyabot(client: Client) -> None:
    assert client.head("/") == 200
    client.get("/sdapi/v1/cmd-flags")
    models = client.get("/sdapi/v1/sd-models")
    assert models[0]["filename"].replace("\\", "/").rpartition("/")[2]
    for name in ("prompt-styles", "face-restorers", "hypernetworks"):
        assert client.get(f"/sdapi/v1/{name}") == []
    assert isinstance(client.get("/sdapi/v1/embeddings")["loaded"], dict)
    assert isinstance(client.get("/sdapi/v1/loras"), list)
    assert isinstance(client.get("/config"), dict)
    client.post("/sdapi/v1/options", {"sd_model_checkpoint": models[0]["title"]})
    told = client.get("/sdapi/v1/progress")["state"]
    assert (told["job"], told["job_count"]) == ("", 0)
    made = client.post(
        "/sdapi/v1/txt2img",
        {
            "prompt": "a",
            "negative_prompt": "",
            "seed": -1,
            "sampler_index": "Euler a",
            "styles": ["None"],
            "n_iter": 2,
            "hr_second_pass_steps": 12.5,
            "denoising_strength": None,
            "override_settings": {"sd_model_checkpoint": models[0]["title"], "CLIP_stop_at_last_layers": 1},
            "save_images": True,
            **SIZE,
        },
    )
    images(made, 2)
    assert client.post("/sdapi/v1/skip") is not None


def koboldai_lite(client: Client) -> None:
    assert client.get("/sdapi/v1/sd-models")
    client.get("/sdapi/v1/options")
    images(
        client.post(
            "/sdapi/v1/txt2img", {"prompt": "a", "sampler_name": "Euler a", "seed": -1, "clip_skip": 1.0, **SIZE}
        )
    )
    images(
        client.post(
            "/sdapi/v1/img2img",
            {"prompt": "a", "init_images": [client.image], "denoising_strength": 0.6, "sampler_name": "Euler", **SIZE},
        )
    )
    wrong = client._http.post("/sdapi/v1/interrogate", json={"image": client.image, "model": "clip"})
    assert (wrong.status_code, wrong.json()["error"]) == (501, "NotImplemented")


def open_outpaint(client: Client) -> None:
    for name in ("samplers", "upscalers", "sd-models", "loras", "scripts", "prompt-styles", "options/", "embeddings"):
        client.get(f"/sdapi/v1/{name}")
    client.post("/sdapi/v1/options/", {"sd_model_checkpoint": "tiny-sd1"})
    made = client.post(
        "/sdapi/v1/img2img",
        {
            "prompt": "a",
            "init_images": [f"data:image/png;base64,{client.image}"],
            "mask": f"data:image/png;base64,{client.mask}",
            "inpainting_fill": 1,
            "inpaint_full_res": True,
            "inpaint_full_res_padding": 32,
            "inpainting_mask_invert": 1,
            "mask_blur": 0,
            "sampler_index": "Euler",
            "scheduler": "automatic",
            "denoising_strength": 0.75,
            "batch_size": 1,
            "n_iter": 1,
            **SIZE,
        },
    )
    images(made)
    client.get("/sdapi/v1/progress?skip_current_image=false")
    grown = client.post(
        "/sdapi/v1/extra-single-image/", {"image": client.image, "upscaler_1": "Nearest", "upscaling_resize": 2}
    )
    images({"images": [grown["image"]]}, size=(128, 128))


def oobabooga(client: Client) -> None:
    client.get("/sdapi/v1/sd-models")
    client.get("/sdapi/v1/options")
    client.get("/sdapi/v1/samplers")
    images(
        client.post(
            "/sdapi/v1/txt2img",
            {
                "prompt": "a",
                "seed": -1,
                "sampler_name": "Euler",
                "enable_hr": False,
                "hr_scale": "1.0",
                "hr_upscaler": "Latent",
                "denoising_strength": 0.7,
                "restore_faces": False,
                "override_settings_restore_afterwards": True,
                **SIZE,
            },
        )
    )
    client.post("/sdapi/v1/unload-checkpoint")
    client.post("/sdapi/v1/reload-checkpoint")


Trace = tuple[Callable[[Client], None], dict[str, str]]
TRACES: dict[str, Trace] = {
    "SillyTavern": (silly_tavern, {"Authorization": "Basic Og=="}),
    "Open WebUI": (open_webui, {"Authorization": ""}),
    "Photoshop": (photoshop, {}),
    "GIMP": (gimp, {"User-Agent": "Mozilla/5.0"}),
    "AI-Render": (ai_render, {"User-Agent": "Blender/4.2.0", "Accept": "*/*"}),
    "aiyabot": (aiyabot, {}),
    "KoboldAI Lite": (koboldai_lite, {}),
    "openOutpaint": (open_outpaint, {}),
    "oobabooga": (oobabooga, {}),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_clients_requests_are_answered_as_it_needs_them(served: Served, name: str, tmp_path: Path) -> None:
    image = base64.b64encode(picture(tmp_path / "a.png", (64, 64)).read_bytes()).decode()
    mask = base64.b64encode(picture(tmp_path / "mask.png", (64, 64), half=True).read_bytes()).decode()
    trace, headers = TRACES[name]
    client = Client(served, image, mask, headers)
    try:
        trace(client)
    finally:
        client.close()
