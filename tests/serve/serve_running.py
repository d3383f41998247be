"""A running server in a process of its own, with the tiny checkpoint in its library."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

QUICK = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 3.0, "sampler": "Euler"}


@dataclass
class Served:
    """A server's process and how to ask it."""

    process: subprocess.Popen[str]
    library: Path
    environment: dict[str, str]
    url: str
    http: httpx.Client

    @property
    def token(self) -> str:
        return str(json.loads((self.library / "serve.json").read_text())["token"])

    def civman(self, *argv: object) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, as a terminal would."""
        words = [sys.executable, "-m", "civman", *map(str, argv)]
        return subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=300)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, body: dict[str, Any], client: str = "test") -> int:
        answer = self.http.post("/api/v1/jobs", json=body, headers={"X-Civman-Client": client})
        assert answer.status_code == 202, answer.text
        return int(answer.json()["id"])

    def ended(self, number: int, within_s: float = 240) -> Any:
        """Wait until a job is over."""
        return self.until(number, ("done", "failed", "cancelled"), within_s)

    def until(self, number: int, states: tuple[str, ...], within_s: float = 240) -> Any:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            job = self.get(f"/api/v1/jobs/{number}")
            if job["state"] in states:
                return job
            assert job["state"] in ("queued", "running"), job
            time.sleep(0.05)
        raise AssertionError(f"job {number} is still {job}")

    def stepping(self, number: int, within_s: float = 120) -> None:
        """Wait until a job has computed a step."""
        end = time.monotonic() + within_s
        while not (job := self.get(f"/api/v1/jobs/{number}"))["progress"].get("step"):
            assert job["state"] in ("queued", "running"), job
            assert time.monotonic() < end, job
            time.sleep(0.05)


def start(library: Path, environment: dict[str, str], *options: str) -> Served:
    words = [sys.executable, "-m", "civman", "serve", "--port", "0", "--json", *options]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        assert line, "the server ended"
        text += line
    url = json.loads(text)["serve"]["address"]
    return Served(process, library, environment, url, httpx.Client(base_url=url, timeout=60, trust_env=False))


def stop(served: Served) -> None:
    served.http.close()
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(20)
    assert served.process.stdout is not None
    served.process.stdout.close()


def environment_in(folder: Path) -> dict[str, str]:
    """The environment of commands that use a library in this folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CIVMAN_", "CIVITAI_"))}
    return {
        **kept, "CIVMAN_LIBRARY": str(folder / "library"), "CIVMAN_CONFIG_DIR": str(folder / "config"),
        "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture(scope="session")
def stocked_library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A library with a tiny checkpoint, and the environment in which commands use it."""
    pytest.importorskip("torch")
    import tiny_models

    folder = tmp_path_factory.mktemp("served")
    model = folder / "tiny-sd1.safetensors"
    tiny_models.write(model, "sd1")
    environment = environment_in(folder)
    words = [sys.executable, "-m", "civman", "import", "--offline", str(model)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "library", environment


@pytest.fixture(scope="module")
def served(stocked_library: tuple[Path, dict[str, str]]) -> Iterator[Served]:
    """One server for all tests of a module."""
    running = start(*stocked_library)
    yield running
    stop(running)
