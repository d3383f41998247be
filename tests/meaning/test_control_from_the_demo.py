"""The demo's ControlNet on the whole way: found on CivitAI, downloaded, and drawn with."""

import random
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import numpy as np
from PIL import Image
from running import Civman

from training.evaluate_control import obeys
from training.scenes import Scene, draw

SCENE = Scene("small", "red", "circle", "blue", "top right")


@pytest.mark.usefixtures("online")
def test_edges_of_a_picture_guide_an_image(civman: Civman, tmp_path: Path) -> None:
    shown = draw(SCENE, random.Random(2))
    picture = tmp_path / "sketch.png"
    Image.fromarray((shown * 255).astype(np.uint8)).save(picture)

    found = civman("search", "--type", "Controlnet", "--json").json["search"]
    fetched = civman("download", "91001", "civitai:91011", "--quiet")
    words = ("render", "91001", "a red shape on a blue background", "--cfg", "4", "--seed", "1", "--threads", "1")
    made = civman(*words, "--control", f"{picture}:91011", "--control-map", "canny", "--json")

    assert 91011 in [page["model"]["id"] for page in found]
    assert (fetched.code, made.code) == (0, 0), (fetched.err, made.err)
    with Image.open(made.json["render"][0]["path"]) as image:
        drawn = np.asarray(image.convert("RGB"), np.float32) / 255
    assert obeys(SCENE, shown, drawn)
    assert "Controlnet" in civman("show", "91011", "--offline").out
