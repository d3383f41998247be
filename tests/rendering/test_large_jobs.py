"""Three hundred images on several workers: none is lost and none is made twice, whoever is killed in the meantime."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from large_job import MODELS, request
from ray_cluster import kill_first, ray_cluster
from running import Civman

from civman.domain.recipes.machine import Machine
from civman.library import Library

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="kills processes by SIGKILL")]
COUNT = 300
PATIENCE_S = 300


class Job:
    """A job of 300 images in a folder, which can be started again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, where: str) -> "subprocess.Popen[str]":
        words = [str(Path(__file__).with_name("large_job.py")), str(COUNT), str(self.folder), where]
        impatient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}  # how long Ray waits for a lost head; default 60
        return subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | impatient,
        )  # fmt: skip

    def finished(self) -> int:
        return len(list(self.folder.glob("*.png")))

    def wait_until(self, running: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            assert running.poll() is None, running.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for(self, running: "subprocess.Popen[str]", count: int) -> None:
        self.wait_until(running, lambda: self.finished() >= count)
        assert self.finished() < count + 60, "the job is in the middle"


def require_all_once(library: Library, folder: Path, tmp_path: Path) -> None:
    """Check that each image is recorded once and saved once, and that some are the same as in one process."""
    pictures = library.pictures.list()
    assert len(pictures) == COUNT
    assert {each.record.seed for each in pictures} == set(range(COUNT))
    assert {Path(each.path) for each in pictures} == set(folder.glob("*.png"))
    assert len(list(folder.glob("*.png"))) == COUNT
    made = {each.record.seed: each.record.pixel_sha256 for each in pictures}
    some = range(0, COUNT, 7)
    here = library.render(
        [library.plan(request(number)) for number in some],
        output=tmp_path / "here", machine=Machine("cpu", threads=1),
    )  # fmt: skip
    assert [each.pixel_sha256 for each in here] == [made[number] for number in some]


@pytest.mark.usefixtures("stocked")
def test_a_worker_and_the_command_are_killed(library: Library, tmp_path: Path) -> None:
    job = Job(tmp_path / "out")
    running = job.start("2")
    job.wait_for(running, 30)
    assert kill_first("spawn_main", among=running.pid), "a worker was killed"
    job.wait_for(running, 120)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert job.finished() < COUNT

    again = job.start("2")
    assert (again.communicate()[0], again.returncode) == ("", 0)

    require_all_once(library, job.folder, tmp_path)


@pytest.mark.usefixtures("stocked")
def test_a_worker_the_command_and_the_head_of_a_ray_cluster_are_killed(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra cluster")
    job, cache = Job(tmp_path / "out"), tmp_path / "cache"
    with ray_cluster(cache) as address:
        running = job.start(f"ray://{address}")
        job.wait_for(running, 30)
        assert kill_first("ray::_Actor"), "a worker was killed"
        job.wait_for(running, 90)
        running.send_signal(signal.SIGKILL)
        running.communicate()

        running = job.start(f"ray://{address}")
        job.wait_for(running, 150)
        assert kill_first("gcs_server"), "Ray's head was killed"
        told, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode not in (0, None), told
        assert job.finished() < COUNT

    with ray_cluster(cache) as address:
        again = job.start(f"ray://{address}")
        told, _ = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, told

    require_all_once(library, job.folder, tmp_path)
    fetched = list(cache.glob("*/blobs/**/*.safetensors"))
    assert len({path.stem for path in fetched}) == len(MODELS) + 1, "three checkpoints and a LoRA arrived over HTTP"
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in fetched)
    assert {path.relative_to(cache).parts[0] for path in fetched} == {"one", "two"}


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("ray://127.0.0.1:9", 5, "no Ray cluster answers at"),
        ("ray://nowhere.invalid:6379", 5, "no Ray cluster answers at `nowhere.invalid:6379`"),
        ("ray://192.0.2.7", 2, "does not have the form ray://HOST:PORT"),
        ("ray://192.0.2.7:99999", 2, "does not have the form ray://HOST:PORT"),
    ],
)
def test_a_cluster_that_does_not_answer_is_an_error_at_once(
    civman: Civman, tmp_path: Path, where: str, code: int, message: str
) -> None:
    pytest.importorskip("ray", reason="needs the extra cluster")
    done = civman("render", "tiny-sd1", "a cat", "--steps", "1", "--on", where, "--output", tmp_path / "out")
    assert done.code == code
    assert message in done.err
