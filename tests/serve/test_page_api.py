"""What a page needs: plans, grids, replays with verdicts, comparisons, strangers' images, and CivitAI's examples."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from serve_running import Served, environment_in, start, stop

from civman.demo.demo_models import Shelf, demo_catalogue
from civman.demo.server import CivitaiServer

CHECKPOINT, LORA = 91001, 91002
QUICK = {"width": 64, "height": 64, "steps": 3, "guidance_scale": 4.0, "sampler": "Euler"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shelf: Shelf) -> Iterator[Served]:
    """A server whose library has the demo's checkpoint and a LoRA, and the demo's CivitAI."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("page")
    with CivitaiServer(demo_catalogue(shelf)) as site:
        environment = environment_in(folder) | {"CIVMAN_CIVITAI_URL": site.url, "CIVITAI_API_TOKEN": site.token}
        running = start(folder / "library", environment)
        for ref in (CHECKPOINT, LORA):
            done = running.ended(running.submit({"kind": "download", "ref": str(ref)}))
            assert done["state"] == "done", done
        yield running
        stop(running)


def request(prompt: str = "a red circle", seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"checkpoint": str(CHECKPOINT), "prompt": prompt, "seed": seed, **QUICK, **more}


def made(page: Served, body: dict[str, Any]) -> Any:
    job = page.ended(page.submit({"device": "cpu", **body}))
    assert job["state"] == "done", job
    return job["result"]


def post(page: Served, path: str, body: Any, status: int = 200) -> Any:
    answer = page.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def file(page: Served, path: str) -> bytes:
    answer = page.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.content


def read(page: Served, data: bytes) -> Any:
    headers = {"Content-Type": "application/octet-stream"}
    answer = page.http.post("/api/v1/pictures/read", params={"name": "a.png"}, content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_search_says_how_each_version_fits_a_checkpoint(page: Served) -> None:
    found = page.get("/api/v1/civitai/search", against=str(CHECKPOINT), limit=100, nsfw=True)["models"]
    label = page.get("/api/v1/civitai/model", ref=str(CHECKPOINT))["version"]["base_model"]

    seen = {
        (version["base_model"], version["support"]) for each in found for version in each["versions"]
        if each["model"]["type"] == "LORA"
    }  # fmt: skip
    assert (label, "full") in seen
    assert ("SDXL 1.0", "none") in seen
    plain = page.get("/api/v1/civitai/search", limit=3)["models"]
    assert {version["support"] for each in plain for version in each["versions"]} == {None}


def test_example_images_of_a_version_have_their_settings(page: Served) -> None:
    version = page.get("/api/v1/civitai/model", ref=str(CHECKPOINT))["version"]["id"]

    shown = page.get("/api/v1/civitai/images", version=version)["images"]

    assert shown
    with_settings = [each for each in shown if each["meta"]]
    assert with_settings[0]["meta"]["prompt"]
    assert with_settings[0]["redraw"]["drawable"]
    assert file(page, with_settings[0]["thumb"])[:4] == b"RIFF"
    assert all(isinstance(each["nsfw_level"], int) for each in shown)


def test_a_grid_is_planned_drawn_and_has_a_sheet(page: Served) -> None:
    asked = {"request": request(loras=[{"ref": str(LORA), "scale": 1.0}]), "axes": [f"lora:{LORA}=0,0.5", "seed=1..2"]}

    planned = post(page, "/api/v1/plan", asked)
    number = page.submit({"kind": "grid", "device": "cpu", **asked})
    job = page.ended(number)

    assert job["state"] == "done", job
    grid = job["result"]
    assert (planned["images"], len(planned["cells"]), len(grid["cells"])) == (4, 4, 4)
    assert planned["licence"]["words"]
    assert {each["role"] for each in planned["files"]} == {"checkpoint", "lora"}
    assert (job["progress"]["first"], job["progress"]["count"]) == (4, 4), "progress is of the whole job"
    by_id = {each["id"]: each for each in grid["pictures"]}
    for cell in grid["cells"]:
        recipe = by_id[cell["picture"]]["recipe"]
        scale = recipe["loras"][0]["scale"] if recipe["loras"] else 0
        assert cell["values"] == {f"lora:{LORA}": f"{scale:g}", "seed": str(recipe["seed"])}
    with Image.open(io.BytesIO(file(page, f"/api/v1/jobs/{number}/sheet"))) as sheet:
        assert sheet.width > 2 * 64
        assert sheet.height > 2 * 64


def test_a_replay_has_a_verdict_and_a_variation_differs(page: Served) -> None:
    (first,) = made(page, {"kind": "render", "request": request(seed=7)})["pictures"]

    again = made(page, {"kind": "replay", "picture": first["id"]})
    varied = made(page, {"kind": "replay", "picture": first["id"], "set": {"cfg": 6, "prompt": "a blue circle"}})

    assert [each["verdict"] for each in again["replayed"]] == ["identical"]
    assert again["pictures"] == [], "nothing new is saved"
    (other,) = varied["pictures"]
    assert (other["recipe"]["guidance_scale"], other["recipe"]["prompt"]) == (6.0, "a blue circle")
    assert other["parent"] == first["recipe_sha256"]
    compared = page.get("/api/v1/compare", a=first["id"], b=other["id"])
    assert compared["verdict"] == "different"
    assert set(compared["recipe_differences"]) == {"guidance_scale", "prompt"}
    assert [(digest, each["model"]) for digest, each in compared["files"].items()] == [
        (first["recipe"]["checkpoint"], "Tiny Shapes")
    ]
    one, two = (
        np.asarray(Image.open(io.BytesIO(file(page, f"/api/v1/pictures/{each['id']}/file")))).astype(int)
        for each in (first, other)
    )
    gap = np.abs(one - two)
    assert compared["distance"]["largest"] == gap.max()
    shown = np.asarray(Image.open(io.BytesIO(file(page, f"/api/v1/compare/image?a={first['id']}&b={other['id']}"))))
    assert np.abs(shown - gap * 255 / gap.max()).max() <= 1
    same = np.asarray(Image.open(io.BytesIO(file(page, f"/api/v1/compare/image?a={first['id']}&b={first['id']}"))))
    assert not same.any()


def test_a_dropped_image_of_civman_is_drawn_again_with_a_verdict(page: Served) -> None:
    (first,) = made(page, {"kind": "render", "request": request("a green circle", seed=8)})["pictures"]
    before = sorted(page.library.rglob("*.png"))

    told = read(page, file(page, f"/api/v1/pictures/{first['id']}/file"))

    assert sorted(page.library.rglob("*.png")) == before, "reading keeps nothing"
    assert told["recipe"]["prompt"] == "a green circle"
    assert told["redraw"]["plan"]["recipe_sha256"] == first["recipe_sha256"]
    assert told["redraw"]["request"]["prompt"] == "a green circle"
    result = made(page, told["redraw"]["job"])
    assert result["verdict"] == "identical"
    assert made(page, {**told["redraw"]["job"], "pixel_sha256": "0" * 64})["verdict"] == "different"


def stranger(parameters: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_a_strangers_image_is_read_planned_and_drawn(page: Served) -> None:
    (model,) = page.get("/api/v1/models", type="Checkpoint")["models"]
    digest = model["blob"]["sha256"][:10]
    text = (
        "a yellow circle\nNegative prompt: blue\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64, "
        f"Model hash: {digest}, Model: theirs, Version: v1.10.1"
    )

    told = read(page, stranger(text))

    assert told["metadata"]["prompt"] == "a yellow circle"
    assert told["redraw"]["error"] is None, told["redraw"]
    recipe = told["redraw"]["plan"]["recipe"]
    assert (recipe["seed"], recipe["negative_prompt"], recipe["rng"]) == (11, "blue", "nv")
    (picture,) = made(page, told["redraw"]["job"])["pictures"]
    assert picture["recipe_sha256"] == told["redraw"]["plan"]["recipe_sha256"]
    assert picture["recipe"]["seed"] == 11
    (again,) = made(page, {"kind": "render", "request": told["redraw"]["request"]})["pictures"]
    assert again["recipe"]["seed"] == 11

    missing = read(page, stranger(text.replace(digest, "0123456789").replace("theirs", "unknown-model")))
    assert missing["redraw"]["error"]["code"] == "missing-files"
    assert missing["redraw"]["plan"] is None
    assert missing["metadata"]["prompt"] == "a yellow circle", "it is read nevertheless"
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    assert read(page, plain.getvalue())["redraw"] == {"job": None, "plan": None, "request": None, "error": None}


def test_a_plan_of_what_is_typed_may_be_refused_without_a_failed_request(page: Served) -> None:
    wrong = {"request": {**request(), "steps": 0}}

    told = post(page, "/api/v1/plan?soft=1", wrong)

    assert told["error"]["exit_code"] == 2
    assert "steps" in told["error"]["message"]
    assert post(page, "/api/v1/plan", wrong, 400)["message"] == told["error"]["message"]


PATH = "/etc/passwd.safetensors"


@pytest.mark.parametrize("body", [
    {"kind": "replay", "picture": 1, "set": {"checkpoint": PATH}},
    {"kind": "replay", "picture": 1, "set": {f"lora:{PATH}": 1}},
    {"kind": "replay", "picture": 1, "set": {"init": PATH}},
    {"kind": "replay", "picture": 1, "set": {"upscaler": "../a.pth"}},
    {"kind": "grid", "request": request(), "axes": [f"checkpoint={PATH},5"]},
    {"kind": "grid", "request": request(), "axes": [f"lora:{PATH}=0,1"]},
    {"kind": "grid", "request": {**request(), "checkpoint": PATH}, "axes": ["seed=1..2"]},
    {"kind": "redraw", "settings": "a\nSteps: 1", "set": {"vae": PATH}},
])  # fmt: skip
def test_changed_fields_cannot_name_a_file(page: Served, body: dict[str, Any]) -> None:
    assert page.http.post("/api/v1/jobs", json=body).status_code == 403
    assert page.http.post("/api/v1/plan", json={**body}).status_code == 403


@pytest.mark.parametrize("body", [
    {"kind": "replay"}, {"kind": "replay", "picture": -1}, {"kind": "replay", "picture": True},
    {"kind": "replay", "picture": 1, "set": []}, {"kind": "grid", "request": request()},
    {"kind": "grid", "request": request(), "axes": ["seed=1..10000"]}, {"kind": "grid", "axes": ["seed=1..2"]},
    {"kind": "redraw"}, {"kind": "redraw", "recipe": {}, "settings": "a"}, {"kind": "redraw", "recipe": {"seed": 1}},
    {"kind": "render", "request": request(), "path": "x"}, {"kind": "verify"}, {},
])  # fmt: skip
def test_malformed_jobs_are_refused_at_once(page: Served, body: dict[str, Any]) -> None:
    assert page.http.post("/api/v1/jobs", json=body).status_code == 400


def test_a_variation_larger_than_the_server_renders_fails_before_it_is_drawn(page: Served) -> None:
    (first,) = made(page, {"kind": "render", "request": request(seed=9)})["pictures"]

    for body in ({"kind": "replay", "picture": first["id"], "set": {"size": "8192x8192"}},
                 {"kind": "grid", "request": request(), "axes": ["size=64x64|8192x8192"]}):  # fmt: skip
        job = page.ended(page.submit(body))
        assert job["state"] == "failed"
        assert "has more pixels than" in job["error"]["message"]
        assert post(page, "/api/v1/plan", body, 403)
    large = request(width=1024, height=1024, upscale={"upscaler": "lanczos", "size": "8200x8200"})
    assert post(page, "/api/v1/plan", {"request": large}, 403)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list a process's memory")
def test_the_server_itself_loads_no_torch_and_needs_little_memory(page: Served) -> None:
    post(page, "/api/v1/plan", {"request": request()})
    process = Path("/proc", str(page.process.pid))

    assert "libtorch" not in (process / "maps").read_text()
    (peak,) = [line.split()[1] for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM")]
    assert int(peak) * 1024 <= 250_000_000


def test_an_example_image_is_drawn_again_from_the_settings_that_civitai_shows(page: Served) -> None:
    version = page.get("/api/v1/civitai/model", ref=str(LORA))["version"]
    shown = page.get("/api/v1/civitai/images", version=version["id"])["images"]
    example = next(each for each in shown if each["meta"])

    again = page.get(f"/api/v1/civitai/images/{example['id']}/redraw")

    assert again["error"] is None
    meta, planned = example["meta"], again["plan"]["recipe"]
    names = ("prompt", "seed", "steps", "cfgScale")
    fields = ("prompt", "seed", "steps", "guidance_scale")
    assert [planned[field] for field in fields] == [meta[name] for name in names]
    assert f"{planned['sampler']} {planned['schedule']}" == meta["sampler"]
    assert f"{planned['width']}x{planned['height']}" == meta["Size"]
    digests = {each["version_id"]: each["blob"]["sha256"] for each in page.get("/api/v1/models")["models"]}
    base, lora = meta["civitaiResources"]
    assert planned["checkpoint"] == digests[base["modelVersionId"]]
    assert [(use["sha256"], use["scale"]) for use in planned["loras"]] == [
        (digests[lora["modelVersionId"]], lora["weight"])
    ]
    assert (again["request"]["prompt"], again["request"]["seed"]) == (meta["prompt"], meta["seed"])
    result = made(page, again["job"])
    assert [each["recipe"] for each in result["pictures"]] == [planned]


def test_what_stands_against_drawing_an_example_image_is_said(page: Served) -> None:
    def error(number: int) -> Any:
        again = page.get(f"/api/v1/civitai/images/{number}/redraw")
        assert (again["job"], again["plan"], again["request"]) == (None, None, None)
        return again["error"]["code"], again["error"]["message"]

    code, message = error(12100204)  # made with a model that was deleted
    assert code == "missing-files"
    assert "not in the library" in message
    bare = next(
        each["id"]
        for number in (87300, 60344)
        for version in page.get("/api/v1/civitai/model", ref=str(number))["versions"]
        for each in page.get("/api/v1/civitai/images", version=version["id"])["images"]
        if not each["meta"]
    )
    assert error(bare)[0] == "no-recipe"
    for number, status in ((7, 404), (0, 400), (2**31, 400)):
        assert page.http.get(f"/api/v1/civitai/images/{number}/redraw").status_code == status


def test_the_description_names_every_route(page: Served) -> None:
    paths = json.loads(file(page, "/api/v1/openapi.json"))["paths"]

    assert {"/api/v1/plan", "/api/v1/compare/image", "/api/v1/civitai/images", "/api/v1/jobs/{number}/sheet"} <= set(
        paths
    )
    assert Path(page.library, "library.db").exists()
