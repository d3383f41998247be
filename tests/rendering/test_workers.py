"""Rendering on several processes: the same images as in one, whoever is killed in the meantime."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from running import Civman

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK

from civman.domain.events import Notice, Step
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.render_request import LoraRequest, RenderRequest
from civman.errors import CannotRender, HashMismatch, Incompatible, IntegrityError, NotFound, UsageError
from civman.library import Library
from civman.planning.plan import Conditions
from civman.planning.plan_types import Planned
from civman.workers.blob_server import BlobServer
from civman.workers.choose_pool import choose_pool
from civman.workers.dispatch import Report, work_off
from civman.workers.fetch_files import Source, with_local_files
from civman.workers.inline import Inline
from civman.workers.packed_errors import packed, unpacked
from civman.workers.processes import Processes
from civman.workers.tasks import Task, TaskQueue, tasks_of

ONE = Machine("cpu", threads=1)
MODELS = ("tiny-sd1", "tiny-sd2", "tiny-sdxl")
LARGE = 2**63 + 2**20
"""A seed that floating-point numbers cannot tell from the next one."""
QUICKEST: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 1.0, "sampler": "Euler"}


def plan(library: Library, count: int, models: tuple[str, ...] = MODELS) -> list[Planned]:
    """Plans of `count` images in all, of one batch each, in turn for each model."""
    return [
        library.plan(RenderRequest(models[number % len(models)], f"image {number}", seed=number, **QUICKEST))
        for number in range(count)
    ]


def prompts(path: Path, count: int) -> Path:
    path.write_text("\n".join(f"image {number}" for number in range(count)))
    return path


def pixels(found: list[Any]) -> list[str]:
    return [each["pixel_sha256"] for each in found]


@pytest.mark.usefixtures("stocked")
def test_two_processes_render_what_one_does(civman: Civman, tmp_path: Path) -> None:
    file = prompts(tmp_path / "prompts.txt", 6)
    words = ("render", "tiny-sd1", "--prompts", file, *QUICK, "--count", "2", "--threads", "1", "--json")

    here = civman(*words, "--output", tmp_path / "here")
    there = civman(*words, "--output", tmp_path / "there", "--on", "2")

    assert (here.code, there.code) == (0, 0), there.err
    assert len(here.json["render"]) == 12
    assert pixels(there.json["render"]) == pixels(here.json["render"])
    assert [each["recipe"] for each in there.json["render"]] == [each["recipe"] for each in here.json["render"]]
    assert [each["seed"] for each in there.json["render"]] == [each["seed"] for each in here.json["render"]]
    contents = [{path.read_bytes() for path in (tmp_path / side).iterdir()} for side in ("here", "there")]
    assert contents[0] == contents[1], "the files are equal, too"


@pytest.mark.usefixtures("stocked")
def test_a_job_is_resumed_where_it_was_stopped(civman: Civman, tmp_path: Path) -> None:
    words = ("render", "tiny-sd1", *QUICK, "--threads", "1", "--output", tmp_path / "out", "--json")
    civman(*words, "--prompts", prompts(tmp_path / "first.txt", 3))

    done = civman(*words, "--prompts", prompts(tmp_path / "all.txt", 5), "--resume")
    again = civman(*words, "--prompts", prompts(tmp_path / "all.txt", 5), "--resume", "--on", "2")

    assert len(done.json["render"]) == 2
    assert "3 of 5 images are already finished" in done.err
    assert again.json["render"] == []
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.usefixtures("stocked")
def test_an_image_that_was_saved_but_not_recorded_is_not_rendered_again(civman: Civman, tmp_path: Path) -> None:
    words = ("render", "tiny-sd1", "a cat", *QUICK, "--threads", "1", "--output", tmp_path / "out", "--json")
    civman(*words)
    civman("renders", "--forget", "--yes", "cat")
    (number,) = (each["id"] for each in civman("renders", "--json").json["renders"]["pictures"])
    with Library.open() as library:
        library.pictures.forget(library.pictures.list())
        assert library.pictures.list() == []

    assert civman(*words, "--resume").json["render"] == []
    assert len(civman("renders", "--json").json["renders"]["pictures"]) == 1
    assert number


@pytest.mark.usefixtures("stocked")
def test_resuming_asks_the_index_once_and_renders_what_is_no_longer_in_this_folder(
    library: Library, tmp_path: Path
) -> None:
    plans = plan(library, 5, ("tiny-sd1",))
    twice = library.plan(RenderRequest("tiny-sd1", "a dog", seed=LARGE, count=2, batch_size=2, **QUICKEST))
    whole = library.plan(RenderRequest("tiny-sd1", "a cow", seed=LARGE, count=2, batch_size=2, **QUICKEST))
    folder, other = tmp_path / "out", tmp_path / "other"
    made = library.render([*plans[:3], twice, whole], output=folder, machine=ONE)
    library.render(plans[3:4], output=other, machine=ONE)
    made[1].path.unlink()  # recorded, but gone
    made[4].path.unlink()  # one of the two images of a plan
    asked: list[str] = []
    library.context.index._reader._connection.set_trace_callback(asked.append)

    again = library.render([*plans, twice, whole], output=folder, machine=ONE, resume=True)

    assert [each.record.seed for each in again] == [1, 3, 4, LARGE, LARGE + 1]
    assert len([sql for sql in asked if "json_extract(record" in sql]) == 1
    assert not [sql for sql in asked if "recipe_sha256 >=" in sql], "no query for each task"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("on", [None, "1"])
def test_the_first_error_ends_the_job_and_finished_images_are_kept(
    library: Library, tmp_path: Path, on: str | None
) -> None:
    request = RenderRequest("tiny-sd1", "a cat", seed=1, loras=(LoraRequest("part"),), **QUICKEST)
    partly = replace(library.plan(request, Conditions(allow_partial=True)), allow_partial=False)
    before, after = plan(library, 2, ("tiny-sd1",)), plan(library, 9, ("tiny-sd1",))[2:]

    with pytest.raises(Incompatible) as failed:
        library.render([*before, partly, *after], output=tmp_path / "out", machine=ONE, on=on, resume=True)

    kept = sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert sorted(failed.value.facts["paths"]) == kept  # type: ignore[type-var, arg-type]
    assert len(library.pictures.list()) == len(kept) < 10


@pytest.mark.usefixtures("stocked")
def test_a_bug_in_a_worker_is_told_with_its_traceback(library: Library) -> None:
    (task,) = tasks_of(plan(library, 1))
    pool = Processes([ONE])
    try:
        with pytest.raises(RuntimeError, match=r"StopIteration|KeyError"):
            list(work_off([replace(task, planned=replace(task.planned, files=()))], pool, lambda _: None))
    finally:
        pool.close()


@pytest.mark.long
@pytest.mark.usefixtures("stocked")
def test_a_killed_worker_is_replaced_and_nothing_is_lost(library: Library, tmp_path: Path) -> None:
    plans = plan(library, 12, ("tiny-sd1",))
    expected = [each.pixel_sha256 for each in library.render(plans, output=tmp_path / "here", machine=ONE)]
    notices: list[str] = []
    killed: list[int] = []
    pool = Processes([ONE, ONE])

    def on_event(event: object) -> None:
        if isinstance(event, Notice):
            notices.append(event.message)
        if isinstance(event, Step) and not killed:
            process = pool._running[0].process  # whom to kill
            killed.append(process.pid or 0)
            os.kill(process.pid or 0, signal.SIGKILL)

    try:
        made = {task.number: drawn[0].record.pixel_sha256 for task, drawn in work_off(tasks_of(plans), pool, on_event)}
    finally:
        pool.close()
    assert [made[number] for number in range(12)] == expected
    assert notices == ["a worker was lost; another one renders its images"]


class Mortal:
    """A pool of one worker that renders in this process, and is lost each time it gets to a certain task."""

    size = 1

    def __init__(self, fatal: int, *, times: int, lie: Callable[[Report], Report] = lambda report: report) -> None:
        self._inner, self._fatal, self._times, self._lie = Inline(ONE), fatal, times, lie
        self._tasks: list[Task] = []

    def send(self, worker: int, task: Task) -> None:
        self._tasks.append(task)

    def receive(self) -> Report:
        if self._tasks[0].number == self._fatal and self._times:
            self._times -= 1
            self._tasks.clear()
            return Report(0)
        self._inner.send(0, self._tasks.pop(0))
        return self._lie(self._inner.receive())

    def close(self) -> None:
        self._inner.close()


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("times", [2, 3])
def test_a_task_that_kills_its_worker_again_and_again_is_an_error(library: Library, times: int) -> None:
    tasks, pool = tasks_of(plan(library, 4, ("tiny-sd1",))), Mortal(1, times=times)
    try:
        if times == 2:
            assert len(list(work_off(tasks, pool, lambda _: None))) == 4
        else:
            with pytest.raises(CannotRender) as failed:
                list(work_off(tasks, pool, lambda _: None))
            assert failed.value.code == "worker-lost"
            assert "image 2" in failed.value.message
    finally:
        pool.close()


def _other_pixels(report: Report) -> Report:
    (drawn,) = report.drawn
    return replace(report, drawn=(replace(drawn, pixels=255 - drawn.pixels),))


def _other_recipe(report: Report) -> Report:
    (drawn,) = report.drawn
    recipe = replace(drawn.record.recipe, steps=1)
    return replace(report, drawn=(replace(drawn, record=replace(drawn.record, recipe=recipe)),))


def _nothing(report: Report) -> Report:
    return replace(report, drawn=())


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("lie", [_other_pixels, _other_recipe, _nothing])
def test_a_worker_that_lies_is_caught(library: Library, lie: Callable[[Report], Report]) -> None:
    pool = Mortal(-1, times=0, lie=lie)
    try:
        with pytest.raises(IntegrityError) as failed:
            list(work_off(tasks_of(plan(library, 1)), pool, lambda _: None))
    finally:
        pool.close()
    assert failed.value.code == "worker-lied"


@pytest.mark.usefixtures("stocked")
def test_tasks_are_fixed_before_they_are_distributed(library: Library) -> None:
    planned = library.plan(RenderRequest("tiny-sd1", "a cat", seed=5, count=5, batch_size=2, **QUICKEST))
    tasks = tasks_of([planned, planned])
    assert [(task.plan, task.planned.recipe.seed, task.planned.recipe.count) for task in tasks] == [
        (0, 5, 2), (0, 7, 2), (0, 9, 1), (1, 5, 2), (1, 7, 2), (1, 9, 1),
    ]  # fmt: skip


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_stay_with_their_model(library: Library, workers: int) -> None:
    tasks = tasks_of(plan(library, 60))
    queue, held, loads, order = TaskQueue.of(tasks), [None] * workers, 0, []  # type: ignore[var-annotated]
    while len(queue):
        for worker in range(workers):
            task = queue.take(held[worker])
            if task is not None:
                loads += task.model != held[worker]
                held[worker] = task.model  # type: ignore[call-overload]
                order.append(task.number)
    assert sorted(order) == list(range(60))
    assert loads <= 3 + 2 * (workers - 1)


@pytest.mark.parametrize(
    "error",
    [
        NotFound("there is none", hint="look elsewhere", name="x"),
        HashMismatch(name="x", expected="a" * 64, actual="b" * 64),  # type: ignore[arg-type]
        Incompatible("it does not fit"),
    ],
)
def test_errors_travel_between_processes(error: Any) -> None:
    there = unpacked(pickle.loads(pickle.dumps(packed(error))))
    assert type(there) is type(error)
    assert (str(there), there.hint, there.code, there.exit_code, there.facts) == (
        str(error), error.hint, error.code, error.exit_code, error.facts,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["", "0", "-1", "999", "two", "rays", "http://x"])
def test_where_to_render_is_refused_with_what_is_possible(where: str) -> None:
    with pytest.raises(UsageError) as failed:
        choose_pool(where, ONE)
    assert failed.value.code == "bad-workers"


def test_a_plain_render_imports_nothing_of_workers() -> None:
    code = "import sys, civman.cli.render_command, civman.rendering.render_and_save; "
    code += "print([name for name in sys.modules if name.startswith(('civman.workers', 'ray', 'obstore'))])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("is_honest", [True, False])
def test_files_are_fetched_by_digest_and_a_lie_is_caught(library: Library, tmp_path: Path, is_honest: bool) -> None:
    (planned,) = plan(library, 1)
    (file,) = planned.files
    other = tmp_path / "other.safetensors"
    other.write_bytes(bytes([*file.path.read_bytes()[:-1], 7]))
    with BlobServer({file.sha256: file.path if is_honest else other}, "127.0.0.1") as server:
        source = Source(server.origin, server.token)
        if is_honest:
            (local,) = with_local_files(planned, source, tmp_path / "cache").files
            assert local.path.read_bytes() == file.path.read_bytes()
            assert local.path.is_relative_to(tmp_path / "cache")
            with pytest.raises(HTTPError, match="401"):
                urlopen(f"http://{server.origin}/blobs/sha256/{file.sha256}")
        else:
            with pytest.raises(IntegrityError):
                with_local_files(planned, source, tmp_path / "cache")
            assert not list((tmp_path / "cache").rglob("*.safetensors"))
