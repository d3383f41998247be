"""The queue outlives the server: after a kill or a stop, queued jobs run and the others say what happened."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rendering_stock import picture
from serve_running import QUICK, Served, start, stop

Stocked = tuple[Path, dict[str, str]]


def render(prompt: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"kind": "render", "device": "cpu",
            "request": {"checkpoint": "tiny-sd1", "prompt": prompt, "seed": seed, **QUICK, **more}}  # fmt: skip


def kill(served: Served) -> None:
    served.http.close()
    served.process.kill()
    served.process.wait(20)
    assert served.process.stdout is not None
    served.process.stdout.close()


def listed(served: Served) -> dict[int, Any]:
    return {job["id"]: job for job in served.get("/api/v1/jobs")["jobs"]}


def test_after_a_kill_queued_jobs_run_and_the_running_one_says_what_happened(
    stocked_library: Stocked, tmp_path: Path
) -> None:
    import base64

    image = base64.b64encode(picture(tmp_path / "start.png", (64, 64)).read_bytes()).decode()
    first = start(*stocked_library)
    done = first.ended(first.submit(render("done before", 1)))
    running = first.submit(render("running", 2, steps=1000, width=128, height=128))
    queued = [first.submit(render("queued", 3), "one"), first.submit(render("second", 4, init_image=image), "two")]
    cancelled = first.submit(render("cancelled", 5))
    assert first.http.delete(f"/api/v1/jobs/{cancelled}").status_code == 200
    first.stepping(running)
    command = subprocess.Popen(
        [sys.executable, "-m", "civman", "render", "tiny-sd1", "of a terminal", "--steps", "2"], env=first.environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not [job for job in listed(first).values() if "of a terminal" in job["title"]]:
        assert command.poll() is None
    kill(first)
    assert command.communicate(timeout=60)[1].startswith("Error [worker-lost]")
    assert command.returncode == 8
    kept = stocked_library[0] / "serve-jobs.jsonl"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with kept.open("a") as file:
        file.write('{"id": 99, "kind": "ren')  # as if the kill had come while a line was written

    second = start(*stocked_library)
    try:
        jobs = listed(second)
        assert jobs[done["id"]] == {name: value for name, value in done.items() if name != "written"}
        assert jobs[running]["state"] == "failed"
        assert jobs[running]["error"]["code"] == "worker-lost"
        assert "while this job was running" in jobs[running]["error"]["message"]
        assert jobs[cancelled]["state"] == "cancelled"
        (terminal,) = [job for job in jobs.values() if "of a terminal" in job["title"]]
        assert (terminal["state"], terminal["error"]["exit_code"]) == ("failed", 8)
        ended = [second.ended(number) for number in queued]
        assert [job["state"] for job in ended] == ["done", "done"]
        assert [job["client"] for job in ended] == ["one at 127.0.0.1", "two at 127.0.0.1"]
        assert ended[1]["result"]["pictures"][0]["recipe"]["start"]["sha256"]
        assert second.submit(render("new", 6)) > max(jobs), "no number is used twice"
    finally:
        stop(second)


@pytest.mark.long
def test_after_a_stop_the_queue_is_there_again(stocked_library: Stocked) -> None:
    first = start(*stocked_library)
    running = first.submit(render("running", 2, steps=1000, width=128, height=128))
    queued = first.submit(render("queued", 3))
    first.stepping(running)
    stop(first)

    second = start(*stocked_library)
    try:
        assert listed(second)[running]["state"] == "failed"
        assert second.ended(queued)["state"] == "done"
    finally:
        stop(second)


def test_two_servers_of_one_library_are_refused_and_a_damaged_list_is_named(stocked_library: Stocked) -> None:
    def serve() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "civman", "serve", "--port", "0"]
        return subprocess.run(words, env=stocked_library[1], capture_output=True, text=True, timeout=60)

    first = start(*stocked_library)
    os.kill(first.process.pid, signal.SIGSTOP)  # it cannot answer, but it is there
    again = serve()
    os.kill(first.process.pid, signal.SIGCONT)
    stop(first)
    kept = stocked_library[0] / "serve-jobs.jsonl"
    before = kept.read_text()
    kept.write_text(before + "nonsense\n")
    damaged = serve()
    kept.write_text(before)

    assert again.returncode == 4
    assert f"process {first.process.pid}" in again.stderr
    assert damaged.returncode == 1
    assert str(kept) in damaged.stderr
    assert "delete the file" in damaged.stderr
    for line in before.splitlines():
        assert json.loads(line)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_download_continues(state: str, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from civman.serve.job_journal import JobJournal
    from civman.serve.jobs import JobKind, JobQueue, JobState

    journal = JobJournal(tmp_path)
    queue = JobQueue(journal)
    job = queue.submit(JobKind.DOWNLOAD, "a", "5@7", {"ref": "5@7"}, lasts=True)
    if state == "running":
        assert queue.take(engine=False) is job
    journal.close()

    later = JobJournal(tmp_path)
    again = JobQueue(later).take(engine=False)
    later.close()
    assert again is not None
    assert (again.number, again.payload, again.state) == (job.number, {"ref": "5@7"}, JobState.RUNNING)


def test_a_long_list_is_shortened_and_says_the_same(tmp_path: Path) -> None:
    from civman.serve import job_journal
    from civman.serve.jobs import JobKind, JobQueue, JobState

    journal = job_journal.JobJournal(tmp_path)
    queue = JobQueue(journal)
    for number in range(1, 3001):
        job = queue.submit(JobKind.DOWNLOAD, "a", f"job {number}", {}, lasts=True)
        assert queue.take(engine=False) is job
        queue.end(job, JobState.DONE, result=number)
    journal.close()

    again = job_journal.JobJournal(tmp_path)

    lines = (tmp_path / "serve-jobs.jsonl").read_text().count("\n")
    assert lines < 6000
    assert [job.value() for job in JobQueue(again).all()][-500:] == [job.value() for job in queue.all()][-500:]
    again.close()
