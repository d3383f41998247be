"""Flow-matching families render from an input image, in batches, with a second pass and with noise in each step."""

from pathlib import Path

import pytest
import tiny_flows

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from running import Civman
from test_flow_pictures import family_of

# the tensors of tiny models of the other two families are not theirs: they are told from others by their widths
NAMES = [name for name in tiny_flows.TINY if name not in ("z-image", "lumina2")]
QUICK = ("--size", "64x96", "--steps", "2", "--seed", "3", "--threads", "1", "--json")


@pytest.mark.parametrize(
    "name", [name if name == "flux1" else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_input_images_second_passes_batches_and_step_noise_work(civman: Civman, tmp_path: Path, name: str) -> None:
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name))
    sampler = "LCM" if name == "hidream" else "Euler a"
    start, common = tmp_path / "start.png", (str(path), "a cat", *QUICK)

    first = civman("render", *common, "--sampler", sampler, "-o", str(start))
    second = civman("render", *common, "--init", str(start), "--strength", "0.6", "--sampler", "DPM++ SDE")
    larger = civman("render", *common, "--hires", "2")
    several = civman("render", *common, "--sampler", "DPM++ 2M", "--count", "2", "--batch-size", "2")
    made = (first, second, larger, several)

    assert {each.code for each in made} == {0}, [each.json["error"] for each in made if each.code]
    images = [image["pixel_sha256"] for each in made for image in each.json["render"]]
    assert len(images) == len(set(images)) == 5
    hires = larger.json["render"][0]["recipe"]["hires"]
    assert (hires["width"], hires["height"]) == (128, 192)
