# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Upscales and redraws of images on CivitAI on several processes: the same files as in one, whoever fails."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image
from running import Civman

from civman.domain.recipes.enlargement import UpscaleRequest
from civman.domain.recipes.machine import Machine
from civman.library import Library
from civman.planning.plan_upscale import PlannedUpscale
from civman.workers.blob_server import BlobServer
from civman.workers.fetch_files import Source, with_local_files
from civman.workers.warm_worker import WarmWorker


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Five images, the last one with transparency."""
    generator = torch.Generator().manual_seed(2)
    paths = []
    for number in range(5):
        values = torch.randint(0, 256, (12 + number, 16, 4 if number == 4 else 3), generator=generator)
        paths.append(tmp_path / f"scan {number}.png")
        Image.fromarray(values.to(torch.uint8).numpy()).save(paths[-1])
    return paths


@pytest.fixture
def upscaler(tmp_path: Path, civman: Civman) -> str:
    """A small compact upscaler with a scale of 2, in the library."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(4)
    tensors = {"body.0.weight": torch.randn(6, 3, 3, 3, generator=generator) * 0.1, "body.0.bias": torch.zeros(6),
               "body.1.weight": torch.full((6,), 0.2), "body.2.bias": torch.zeros(12),
               "body.2.weight": torch.randn(12, 6, 3, 3, generator=generator) * 0.1}  # fmt: skip
    path = tmp_path / "2x-soft.safetensors"
    save_file(tensors, path)
    assert civman("import", "--offline", path).code == 0
    return "2x-soft"


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_two_processes_upscale_to_the_same_files_and_a_stopped_job_is_continued(
    civman: Civman, scans: list[Path], upscaler: str, tmp_path: Path
) -> None:
    words: tuple[Any, ...] = ("upscale", *scans, "-m", upscaler, "--scale", "1.5", "--threads", "1", "--json")
    here = civman(*words, "-o", tmp_path / "here")
    there = civman(*words, "-o", tmp_path / "there", "--on", "2")

    assert (here.code, there.code) == (0, 0), there.err
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert len(files(tmp_path / "here")) == 5
    sources = [[each["record"]["picture_name"] if "record" in each else each["path"] for each in run.json["upscale"]]
               for run in (here, there)]  # fmt: skip
    assert [Path(path).name for path in sources[0]] == [Path(path).name for path in sources[1]], "in the given order"

    (tmp_path / "there" / Path(there.json["upscale"][1]["path"]).name).unlink()
    again = civman(*words, "-o", tmp_path / "there", "--on", "2", "--resume")

    assert len(again.json["upscale"]) == 1
    assert "4 of 5 images are already finished" in again.err
    assert files(tmp_path / "there") == files(tmp_path / "here")
    replayed = civman("replay", again.json["upscale"][0]["path"], "--json")
    assert replayed.code == 0, replayed.err


def test_the_image_and_the_model_reach_another_machine_and_the_result_keeps_the_images_name(
    library: Library, scans: list[Path], upscaler: str, tmp_path: Path
) -> None:
    (planned,) = library.upscaling.plan(scans[:1], UpscaleRequest(upscaler, 1.5))
    with BlobServer({file.sha256: file.path for file in planned.files}, "127.0.0.1") as server:
        away = with_local_files(planned, Source(server.origin, server.token), tmp_path / "cache")
    assert isinstance(away, PlannedUpscale)
    assert all(file.path.is_relative_to(tmp_path / "cache") for file in away.files)
    assert away.picture.name != planned.picture.name

    worker = WarmWorker(Machine("cpu", threads=1))
    near, far = worker.draw([planned, away])
    worker.close()

    assert far.record == near.record
    assert (far.pixels == near.pixels).all()


@pytest.mark.long
@pytest.mark.usefixtures("online")
def test_images_on_civitai_are_drawn_on_two_processes_with_the_verdicts_of_one(civman: Civman, tmp_path: Path) -> None:
    listed = tmp_path / "images.txt"
    listed.write_text("12100402\n12100204\n12100201\n12100902\n", encoding="utf-8")
    words = ("replay", "--images", listed, "--fetch", "--device", "cpu", "--threads", "1", "--json")

    here = civman(*words, "-o", tmp_path / "here")
    there = civman(*words, "-o", tmp_path / "there", "--on", "2")

    def verdicts(run: Any) -> dict[str, Any]:
        return {each["image"]: (each["verdict"], each["compared"]) for each in run.json["replays"]}

    assert there.code == here.code, there.err
    assert verdicts(there) == verdicts(here)
    assert verdicts(there)["12100204"][0] == "not drawn"
    drawn = [Path(each["path"]) for each in there.json["replays"] if each["path"]]
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn) == sorted(
        hashlib.sha256(Path(each["path"]).read_bytes()).hexdigest() for each in here.json["replays"] if each["path"]
    )

    again = civman(*words, "-o", tmp_path / "there", "--resume")
    assert verdicts(again) == verdicts(here)
    by_image = {each["image"]: each["path"] for each in again.json["replays"]}
    assert by_image["12100402"] == {each["image"]: each["path"] for each in there.json["replays"]}["12100402"]


@pytest.mark.usefixtures("online")
def test_workers_are_for_many_images(civman: Civman, tmp_path: Path) -> None:
    single = civman("replay", "https://civitai.com/images/12100402", "--on", "2")
    listed = tmp_path / "images.txt"
    listed.write_text("12100402\n", encoding="utf-8")
    cards = civman("replay", "--images", listed, "--try-cards", "--resume")

    assert (single.code, cards.code) == (2, 2)
    assert "--images-of MODEL or --images FILE" in single.err
    assert "--try-cards" in cards.err
