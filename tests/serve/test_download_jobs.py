"""Downloads as jobs of a server, asked for by a program and by `civman download --queue`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_running import Served, environment_in, start, stop


@pytest.fixture
def shop(tmp_path: Path, server: Any) -> Iterator[Served]:
    """A server with an empty library and the demo's CivitAI."""
    environment = {**environment_in(tmp_path), "CIVMAN_CIVITAI_URL": server.url, "CIVITAI_API_TOKEN": server.token}
    running = start(tmp_path / "library", environment)
    yield running
    stop(running)


def test_a_download_is_a_job_with_progress(shop: Served, server: Any) -> None:
    served = shop
    found = served.get("/api/v1/civitai/search", limit=5)["models"]
    listed = next(each for each in found if each["versions"] and each["versions"][0]["files"])
    ref = f"{listed['model']['id']}@{listed['versions'][0]['id']}"
    shown = [each["thumb"] for each in listed["versions"][0]["previews"] if each["thumb"]]
    thumb = served.http.get(shown[0])
    assert (thumb.status_code, thumb.content[:4]) == (200, b"RIFF"), thumb.text
    assert served.http.get(shown[0]).content == thumb.content
    assert served.http.get("/api/v1/civitai/previews/" + "0" * 64).status_code == 404

    done = served.ended(served.submit({"kind": "download", "ref": ref}))
    wrong = served.ended(served.submit({"kind": "download", "ref": "999999999"}))

    assert done["state"] == "done", done
    assert served.get(f"/api/v1/models/{done['result']['sha256']}")["about"]["id"] == listed["model"]["id"]
    assert done["progress"]["received_bytes"] == done["progress"]["total_bytes"]
    assert wrong["state"] == "failed"
    assert wrong["error"]["exit_code"] == 3
    again = served.get("/api/v1/civitai/search", limit=5)["models"]
    assert [each["is_here"] for each in again if each["model"]["id"] == listed["model"]["id"]] == [True]
    assert server.token not in served.http.get("/api/v1/jobs").text


def test_the_command_queues_and_the_job_can_be_cancelled_and_continued(shop: Served) -> None:
    slow = shop.civman("download", "91001", "91002", "--queue", "--limit-rate", "100K", "--preview", "none", "--json")
    assert slow.returncode == 0, slow.stderr
    first, second = (job["id"] for job in json.loads(slow.stdout)["jobs"])
    end = time.monotonic() + 60
    while not shop.get(f"/api/v1/jobs/{first}")["progress"].get("received_bytes"):
        assert time.monotonic() < end
        time.sleep(0.05)
    listed = shop.civman("jobs")
    assert "download" in listed.stdout
    assert "%" in listed.stdout

    begun = time.monotonic()
    assert shop.civman("jobs", "--cancel", first).returncode == 0

    assert shop.ended(first)["state"] == "cancelled"
    assert time.monotonic() - begun < 10
    partials = [path for path in (shop.library / "partial").iterdir() if path.stat().st_size]
    assert partials, "what was received is kept"
    shop.http.delete(f"/api/v1/jobs/{second}")
    shop.ended(second)
    again = shop.submit({"kind": "download", "ref": "91001"})
    done = shop.ended(again)
    assert done["state"] == "done", done
    assert done["result"]["was_present"] is False
    followed = shop.civman("jobs", "--follow", again, "--quiet")
    assert (followed.returncode, followed.stdout.strip()) == (0, str(again))
    assert shop.ended(shop.submit({"kind": "download", "ref": "91001"}))["result"]["was_present"] is True


def test_options_of_the_command_reach_the_job(shop: Served) -> None:
    assert shop.ended(shop.submit({"kind": "download", "ref": "91001"}))["state"] == "done"

    refused = shop.civman("download", "60344", "--for", "91001", "--queue", "--quiet")

    assert refused.returncode == 0, refused.stderr
    job = shop.ended(int(refused.stdout))
    assert (job["state"], job["error"]["exit_code"]) == ("failed", 7), job


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--dry-run",), "--dry-run"), (("--offline",), "--offline"), (("--at-once", "2"), "--at-once")],
)
def test_options_that_the_queue_cannot_follow_are_refused(civman: Any, options: tuple[str, ...], word: str) -> None:
    run = civman("download", "5", "--queue", *options)

    assert run.code == 2
    assert word in run.err


def test_without_a_server_there_is_no_queue(civman: Any) -> None:
    run = civman("download", "5", "--queue")

    assert run.code == 3
    assert "no server is running" in run.err


def test_what_a_program_asks_for_is_checked(shop: Served) -> None:
    wrong: dict[str, Any]
    for wrong in ({"ref": ""}, {"ref": 1}, {"connections": 0}, {"preview": "all"}, {"limit_rate": "fast"},
                  {"path": "/tmp"}, {"force": "yes"}):  # fmt: skip
        asked = {"kind": "download", "ref": "5", **wrong}
        assert shop.http.post("/api/v1/jobs", json=asked).status_code == 400, wrong
    for path in ({"ref": "/etc/passwd"}, {"ref": "5", "for": "../a.safetensors"}):
        assert shop.http.post("/api/v1/jobs", json={"kind": "download", **path}).status_code == 403, path
    secret = "https://civitai.com/api/download/models/123456?token=0123456789abcdef0123456789abcdef"
    number = shop.submit({"kind": "download", "ref": secret})
    assert shop.ended(number)["state"] == "failed"
    assert "0123456789abcdef" not in shop.http.get("/api/v1/jobs").text
    assert "0123456789abcdef" not in (shop.library / "serve-jobs.jsonl").read_text()
