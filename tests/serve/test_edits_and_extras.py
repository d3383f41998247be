"""Changing and enlarging images through other programs' APIs, and a replay that has to ask."""

import base64
import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rendering_stock import picture
from serve_running import Served

MORE = {"steps": 2, "seed": 3, "sampler": "Euler", "guidance_scale": 3.0}


def upscaler(path: Path) -> Path:
    """A small ESRGAN with a scale of 2."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    shapes = {"conv_first": (8, 3), "conv_body": (8, 8), "conv_up1": (8, 8), "conv_hr": (8, 8), "conv_last": (3, 8)}
    for dense in (1, 2, 3):
        for conv in range(1, 6):
            shapes[f"body.0.rdb{dense}.conv{conv}"] = (4 if conv < 5 else 8, 4 + 4 * conv)
    tensors = {}
    for name, (wide, deep) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(wide, deep, 3, 3, generator=generator) * 0.1
        tensors[f"{name}.bias"] = torch.full((wide,), 0.05)
    save_file(tensors, path)
    return path


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_extras_use_the_librarys_upscaler_models(served: Served, tmp_path: Path) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    imported = served.civman("import", "--offline", upscaler(tmp_path / "2x-tiny.safetensors"))
    assert imported.returncode == 0, imported.stderr
    client = webuiapi.WebUIApi(host="127.0.0.1", port=int(served.url.rpartition(":")[2]))
    with Image.open(picture(tmp_path / "a.png", (40, 32))) as image:
        assert "2x-tiny" in {each["name"] for each in client.get_upscalers()}
        (made,) = [client.extra_single_image(image, upscaler_1="2x-tiny", upscaling_resize=2)]
        both = client.extra_batch_images([image, image], upscaler_1="2x-tiny", upscaling_resize=2).images
    client.session.close()
    own = served.civman("upscale", tmp_path / "a.png", "--model", "2x-tiny", "--scale", "2", "--json", "-o", tmp_path)
    assert own.returncode == 0, own.stderr

    with Image.open(json.loads(own.stdout)["upscale"][0]["path"]) as wanted:
        for each in (made.image, *both):
            assert each.size == (80, 64)
            assert np.array_equal(np.asarray(each.convert("RGB")), np.asarray(wanted.convert("RGB")))
    answer = served.http.post("/sdapi/v1/extra-single-image", json={
        "image": base64.b64encode((tmp_path / "a.png").read_bytes()).decode(), "upscaler_1": "2x-tiny",
        "resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 64, "upscaling_crop": True,
    })  # fmt: skip
    with opened(answer.json()["image"]) as cropped:
        assert cropped.size == (64, 64)
    for name, status in (("4x-nowhere", 404), ("../a.pth", 403)):
        body = {"image": base64.b64encode((tmp_path / "a.png").read_bytes()).decode(), "upscaler_1": name}
        wrong = served.http.post("/sdapi/v1/extra-single-image", json=body)
        assert wrong.status_code == status, wrong.text
        assert wrong.json()["detail"]


def test_the_openai_client_edits_an_image(served: Served, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    start = picture(tmp_path / "start.png", (64, 64))
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    with openai.OpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=0) as client:
        asked = {"prompt": "a cat", "model": "tiny-sd1", "extra_body": MORE}
        whole = client.images.edit(image=start.read_bytes(), prompt="a cat", model="tiny-sd1", extra_body=MORE).data
        part = client.images.edit(image=start.read_bytes(), mask=(tmp_path / "mask.png").read_bytes(), **asked).data
        with pytest.raises(openai.BadRequestError, match="image"):
            client.images.edit(image=b"no image", prompt="a", model="tiny-sd1")

    with Image.open(start) as image, opened(part[0].b64_json) as painted, opened(whole[0].b64_json) as changed:
        before, after = np.asarray(image.convert("RGB")), np.asarray(painted.convert("RGB"))
        assert changed.size == (64, 64)
        assert np.array_equal(before[:, :16], after[:, :16]), "where the mask is opaque, the image stays"
        assert not np.array_equal(before[:, 40:], after[:, 40:])


def test_a_form_without_authorization_is_refused(served: Served) -> None:
    for path, headers in (("/v1/images/edits", {}), ("/api/v1/jobs", {"Authorization": "Bearer x"})):
        answer = served.http.post(path, files={"image": b"x"}, data={"prompt": "a"}, headers=headers)
        assert answer.status_code == 415


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_replay_that_has_to_ask_asks_in_its_own_process(served: Served, tmp_path: Path) -> None:
    import pty

    request = {"checkpoint": "tiny-sd1", "prompt": "asked", "width": 64, "height": 64, "steps": 2}
    recipe = served.http.post("/api/v1/plan", json={"request": request}).json()["recipe"]
    text = json.dumps(recipe).replace(recipe["checkpoint"], "0" * 64)
    (tmp_path / "recipe.json").write_text(text)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "civman", "replay", str(tmp_path / "recipe.json")]
    process = subprocess.Popen(words, env=served.environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, end = "", time.monotonic() + 120
    while "[y/N]" not in shown and process.poll() is None:
        assert time.monotonic() < end, shown
        if select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 4096).decode(errors="replace")
    os.write(ours, b"n\n")
    assert process.wait(60) == 3
    os.close(ours)

    assert "Download" in shown
    titles: list[Any] = [job["title"] for job in served.get("/api/v1/jobs")["jobs"]]
    assert not [title for title in titles if "recipe.json" in title]
