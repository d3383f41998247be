"""A running server: renders, the queue, crashes of the engine, and commands handed over."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serve_running import QUICK, Served

TIMES = ("--size", "64x64", "--steps", "2", "--cfg", "3", "--device", "cpu", "--sampler", "Euler", "--threads", "1")


def render(prompt: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"kind": "render", "device": "cpu",
            "request": {"checkpoint": "tiny-sd1", "prompt": prompt, "seed": seed, **QUICK, **more}}  # fmt: skip


def test_a_render_is_saved_listed_and_shown(served: Served) -> None:
    done = served.ended(served.submit(render("a listed red cat", 5)))

    assert done["state"] == "done", done
    (made,) = done["result"]["pictures"]
    assert done["progress"]["step"] == 2
    listed = served.get("/api/v1/pictures", q="listed red cat")["pictures"]
    assert [each["id"] for each in listed] == [made["id"]]
    assert "path" not in listed[0]
    file = served.http.get(f"/api/v1/pictures/{made['id']}/file")
    assert file.content == Path(made["path"]).read_bytes()
    thumb = served.http.get(f"/api/v1/pictures/{made['id']}/thumb")
    assert thumb.headers["content-type"] == "image/webp"
    assert thumb.content[:4] == b"RIFF"
    read = served.http.post(
        "/api/v1/pictures/read", content=file.content, headers={"Content-Type": "application/octet-stream"}
    )
    assert read.json()["recipe"]["prompt"] == "a listed red cat"
    same = served.get("/api/v1/compare", a=made["id"], b=made["id"])
    assert same["verdict"] == "identical"
    assert same["recipe_differences"] == {}


def test_a_plan_says_what_a_render_would_do(served: Served) -> None:
    answer = served.http.post("/api/v1/plan", json={"request": render("a", 5)["request"], "device": "cpu"}).json()

    assert answer["recipe"]["steps"] == 2
    assert answer["licence"]["words"]
    assert [file["role"] for file in answer["files"]] == ["checkpoint"]
    wrong = served.http.post("/api/v1/plan", json={"request": {"checkpoint": "no such", "prompt": "a"}})
    assert wrong.status_code == 404
    assert wrong.json()["code"]


def test_models_are_listed_filtered_and_described(served: Served) -> None:
    listed = served.get("/api/v1/models", type="Checkpoint")

    assert [each["name"] for each in listed["models"]] == ["tiny-sd1.safetensors"]
    assert served.get("/api/v1/models", q="nothing like it")["models"] == []
    about = served.get(f"/api/v1/models/{listed['models'][0]['blob']['sha256']}")
    assert about["licence"]["words"]
    assert "path" not in about["model"]


def test_a_handed_over_render_prints_and_draws_the_same(served: Served) -> None:
    argv = ("render", "tiny-sd1", "a blue bird", *TIMES, "--seed", "9", "--json")

    over, here = served.civman(*argv), served.civman(*argv, "--here")

    assert (over.returncode, here.returncode) == (0, 0), over.stderr + here.stderr
    (one,), (other,) = json.loads(over.stdout)["render"], json.loads(here.stdout)["render"]
    assert Path(one["path"]).read_bytes() == Path(other["path"]).read_bytes()
    assert {**one, "path": 0, "id": 0} == {**other, "path": 0, "id": 0}
    assert over.stderr == here.stderr
    jobs = served.get("/api/v1/jobs")["jobs"]
    assert [job["kind"] for job in jobs if "a blue bird" in job["title"]] == ["command"]


@pytest.mark.parametrize(
    "argv",
    [
        ("render", "tiny-sd1", "a", "--steps", "0"),
        ("render", "no-such-model", "a", "--json"),
        ("render", "tiny-sd1", "a", "--no-such-option"),
        ("render", "tiny-sd1", "a", *TIMES, "--seed", "3", "--dry-run"),
        ("replay", "picture:999"),
    ],
)
def test_what_fails_or_only_plans_is_printed_the_same(served: Served, argv: tuple[str, ...]) -> None:
    over, here = served.civman(*argv), served.civman(*argv, "--here")

    assert (over.returncode, over.stdout, over.stderr) == (here.returncode, here.stdout, here.stderr)


def test_a_grid_and_a_relative_output_are_handed_over(served: Served, tmp_path: Path) -> None:
    argv = ["render", "tiny-sd1", "a", *TIMES, "--seed", "1", "--grid", "cfg=2,3", "--output", "out", "--quiet"]
    words = [sys.executable, "-m", "civman", *argv]

    done = subprocess.run(words, env=served.environment, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert [(tmp_path / line).parent for line in done.stdout.split()] == [tmp_path / "out"] * 3


def test_ctrl_c_cancels_a_handed_over_render(served: Served) -> None:
    words = [
        sys.executable,
        "-m",
        "civman",
        "render",
        "tiny-sd1",
        "long",
        *TIMES,
        "--steps",
        "1000",
        "--size",
        "128x128",
    ]
    process = subprocess.Popen(words, env=served.environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    job: dict[str, Any] = {}
    while not job:
        assert time.monotonic() < end
        time.sleep(0.05)
        jobs = served.get("/api/v1/jobs")["jobs"]
        job = next((each for each in jobs if each["state"] == "running" and " long " in each["title"]), {})
    number = job["id"]
    served.stepping(number)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130, err
    assert served.ended(number)["state"] == "cancelled"
    assert "Error [interrupted]" in err


def test_the_engine_may_be_killed_in_a_job_and_the_next_job_runs(served: Served) -> None:
    number = served.submit(render("doomed", 1, steps=1000, width=128, height=128))
    served.stepping(number)

    os.kill(served.get("/api/v1/server")["engine"]["pid"], signal.SIGKILL)

    failed = served.ended(number)
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "worker-lost"
    assert "signal 9" in failed["error"]["message"]
    assert served.ended(served.submit(render("next", 2)))["state"] == "done"


def test_jobs_of_the_terminal(served: Served) -> None:
    number = served.ended(served.submit(render("listed", 4)))["id"]

    listed = served.civman("jobs", "--json")

    assert number in [job["id"] for job in json.loads(listed.stdout)["jobs"]]
    assert served.civman("jobs", "--follow", number).returncode == 0
    assert served.civman("jobs", "--cancel", 99999).returncode == 3


def test_events_tell_every_step_and_the_end(served: Served) -> None:
    told: list[tuple[str, Any]] = []
    ready = threading.Event()

    def listen() -> None:
        with served.http.stream("GET", "/api/v1/events") as stream:
            name = ""
            for line in stream.iter_lines():
                ready.set()
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    told.append((name, json.loads(line.removeprefix("data: "))))
                    if told[-1][1].get("title") == "told" and told[-1][1].get("state") == "done":
                        return

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(20)
    number = served.submit(render("told", 4))
    thread.join(120)

    mine = [(name, value) for name, value in told if value["id"] == number]
    states = [value["state"] for name, value in mine if name == "job"]
    assert list(dict.fromkeys(states)) == ["queued", "running", "done"]
    assert [value["progress"]["step"] for name, value in mine if name == "step" and "step" in value["progress"]]


def test_gc_drops_thumbnails_which_are_made_again(served: Served) -> None:
    made = served.ended(served.submit(render("small", 6)))["result"]["pictures"][0]["id"]
    before = served.http.get(f"/api/v1/pictures/{made}/thumb").content
    kept = list((served.library / "thumbnails").glob("*/*.webp"))
    assert before in [path.read_bytes() for path in kept]

    done = served.civman("gc", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gc"]["freed_bytes"] >= len(before)
    assert not list((served.library / "thumbnails").glob("*/*"))
    assert served.http.get(f"/api/v1/pictures/{made}/thumb").content == before


@pytest.mark.long
def test_fifty_jobs_of_four_clients_with_cancels_and_a_kill_all_end(served: Served) -> None:
    """Every job ends with its image, or with the reason why it has none."""
    numbers: dict[int, int] = {}

    def submit(client: int) -> None:
        for n in range(client, 50, 4):
            numbers[n] = served.submit(render(f"job {n}", n), client=f"client {client}")

    threads = [threading.Thread(target=submit, args=(client,)) for client in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cancelled = {numbers[30], numbers[44]}
    for number in cancelled:
        assert served.http.delete(f"/api/v1/jobs/{number}").status_code == 200
    served.ended(numbers[12])
    os.kill(served.get("/api/v1/server")["engine"]["pid"], signal.SIGKILL)

    ended = {n: served.ended(number) for n, number in numbers.items()}

    assert len(ended) == 50
    states = [job["state"] for job in ended.values()]
    assert states.count("failed") <= 1
    for n, job in ended.items():
        if job["id"] in cancelled:
            assert job["state"] == "cancelled"
        elif job["state"] == "failed":
            assert job["error"]["code"] == "worker-lost"
            assert "signal 9" in job["error"]["message"]
        else:
            (made,) = job["result"]["pictures"]
            assert (made["seed"], made["recipe"]["prompt"]) == (n, f"job {n}")
            with Image.open(made["path"]) as image:
                assert hashlib.sha256(image.convert("RGB").tobytes()).hexdigest() == made["pixel_sha256"]


@pytest.mark.long
def test_a_warm_render_reaches_its_first_step_within_half_a_second(served: Served) -> None:
    argv = ("render", "tiny-sd1", "quick", *TIMES, "--quiet")
    assert served.civman(*argv, "--seed", "1").returncode == 0

    took = []
    for seed in range(2, 7):
        begun = time.monotonic()
        assert served.civman(*argv, "--seed", seed).returncode == 0
        took.append(time.monotonic() - begun)

    assert min(took) <= 0.5 + 0.4, took  # the whole command: start, two steps, decoding, saving


def test_a_stale_file_of_a_killed_server_is_noticed(served: Served, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    stale = {"pid": 1, "port": 9, "token": "x", "version": "0", "protocol": 1}
    (library / "serve.json").write_text(json.dumps(stale))
    environment = {**served.environment, "CIVMAN_LIBRARY": str(library)}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "civman", *argv], env=environment, capture_output=True, text=True)

    assert run("render", "a cat").stderr == run("render", "a cat", "--here").stderr
    none = run("jobs")
    assert none.returncode == 3
    assert "no server is running" in none.stderr
