"""Images are saved beside the computation: in order, few at a time, and none is lost or saved after an error."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import tiny_models

from civman.errors import StoreError
from civman.rendering.save_pictures import _renamed
from civman.rendering.saver import Saver


def test_items_are_saved_in_order_in_another_thread_and_few_wait() -> None:
    gate, saved, done = threading.Semaphore(0), [], []
    put = []

    def save(item: int) -> int:
        gate.acquire()
        saved.append((item, threading.current_thread() is threading.main_thread()))
        return item * 10

    def feed() -> None:
        with Saver(save, done.append) as saver:
            for item in range(20):
                saver.put(item)
                put.append(item)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for saves in range(20):
        while len(put) < min(saves + 3, 20):  # it goes on until three are unsaved
            pass
        assert len(put) <= saves + 3
        gate.release()
        while len(saved) <= saves:
            pass
    feeder.join()

    assert saved == [(item, False) for item in range(20)]
    assert done == [item * 10 for item in range(20)]


def run(items: list[int], save: Callable[[int], int], error: BaseException | None = None) -> tuple[list[int], int]:
    """Put all items, then raise the error. Returns what was saved, even if an exception leaves the block, and put."""
    done, put = DONE, 0
    done.clear()
    with Saver(save, done.append) as saver:
        for item in items:
            saver.put(item)
            put += 1
        if error is not None:
            raise error
    return done, put


DONE: list[int] = []


def test_the_first_error_ends_it_and_nothing_is_saved_after_it() -> None:
    tried = []

    def save(item: int) -> int:
        tried.append(item)
        if item == 2:
            raise StoreError("the disk is full")
        return item

    with pytest.raises(StoreError, match="the disk is full"):
        run(list(range(100)), save)

    assert tried == [0, 1, 2]
    assert DONE == [0, 1]


@pytest.mark.parametrize("error", [StoreError("elsewhere"), KeyboardInterrupt()])
def test_what_was_put_before_an_error_or_an_interruption_is_saved(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run([1, 2, 3], int, error)

    assert DONE == [1, 2, 3]


def test_a_failure_to_save_an_earlier_item_comes_before_a_later_error() -> None:
    def save(item: int) -> int:
        raise StoreError(f"item {item}")

    with pytest.raises(StoreError, match="item 1"):
        run([1], save, ValueError("computing item 2"))


JOB = """
import os, sys
from pathlib import Path
from civman.domain.recipes.recipe import RenderRequest
from civman.domain.events import Step
from civman.library import Library

def tell(event):
    if isinstance(event, Step) and event.step == event.steps:
        print(event.first, flush=True)

with Library.open(Path(sys.argv[1]), offline=True) as library:
    request = RenderRequest(sys.argv[2], "a fox", steps=1, width=64, height=64, seed=5, count=40)
    library.render(library.plan(request), output=Path(sys.argv[3]), on_event=tell)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_kill_loses_only_what_was_not_saved_yet(tmp_path: Path) -> None:
    from civman.index import Index
    from civman.index.read_pictures import PictureFilter
    from civman.pictures import image_text

    checkpoint = tiny_models.write(tmp_path / "tiny.safetensors", "sd1")
    root, out = tmp_path / "library", tmp_path / "out"
    job = [sys.executable, "-c", JOB, str(root), str(checkpoint), str(out)]
    running = subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if int(line) == 12:
            running.send_signal(signal.SIGKILL)
            break
    running.stdout.close()
    running.wait()

    whole = list(out.glob("[0-9]*.png"))
    for path in whole:
        image_text.read(path)  # raises if an image is empty or cut off
    with Index.open(root / "library.db") as index:
        recorded = [Path(each.path) for each in index.pictures(PictureFilter())]
    assert len(whole) >= 12 - 4
    assert set(recorded) <= set(whole)
    assert len(whole) - len(recorded) <= 1, "one image may be between its file and its row"


def test_a_kill_while_a_file_is_written_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    job = "import sys; from pathlib import Path; from civman.rendering.save_pictures import keep_new\n"
    job += "while True: print(keep_new(Path(sys.argv[1]), 'image.png', b'x' * 100_000).name, flush=True)"
    for _ in range(5):
        running = subprocess.Popen([sys.executable, "-c", job, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        for _, line in zip(range(20), running.stdout, strict=False):
            assert line.startswith("image")
        running.kill()
        running.communicate()

    sizes = [path.stat().st_size for path in tmp_path.glob("image*.png")]
    assert len(sizes) >= 100
    assert set(sizes) == {100_000}


def test_files_get_their_names_on_file_systems_without_hard_links_too(tmp_path: Path) -> None:
    unnamed = [tmp_path / f".civman-{number}" for number in range(3)]
    for number, path in enumerate(unnamed):
        path.write_text(str(number))
    names = [_renamed(path, tmp_path, "image.png").name for path in unnamed]
    assert names == ["image.png", "image-2.png", "image-3.png"]
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]
    assert not any(path.exists() for path in unnamed)
