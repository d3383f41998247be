"""Random sequences of importing, renaming, deleting, editing, repairing and kills: no byte is lost, nothing is claimed.

A kill is real: a child process of this one, with the same library, kills itself at the n-th change of a file.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from civman.demo.demo_weights import safetensors_bytes
from civman.errors import CivmanError
from civman.library import Library
from civman.manage.import_files import ImportMode

FOLDERS = ("a", "b", "c")
CHANGES = ("open", "os.rename", "os.remove", "os.link", "os.chmod", "os.truncate")
MODES = tuple(ImportMode)
NUMBER = st.integers(0, 30)
STEP = st.one_of(
    st.tuples(st.sampled_from(("create", "double", "hard_link", "symlink", "rename", "delete", "edit")), NUMBER),
    st.tuples(st.just("rename_folder"), NUMBER),
    st.tuples(st.sampled_from(("import", "import", "import_one")), NUMBER),
    st.tuples(st.sampled_from(("remove", "restore", "gc", "verify", "repair")), NUMBER),
    st.tuples(st.just("kill"), st.integers(0, 90)),
)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill needs a child process")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """A library, and folders of another program with the user's files."""

    def __init__(self, root: Path, empty: Path) -> None:
        self.root, self.theirs = root, root / "theirs"
        self.library = root / "library"
        shutil.copytree(empty, self.library)
        for name in FOLDERS:
            (self.theirs / name).mkdir(parents=True)
        self.alive: set[str] = set()
        """Contents that the user made and did not delete or overwrite the last copy of."""
        self.count = 0

    def run(self, steps: list[tuple[str, int]]) -> None:
        for name, number in steps:
            getattr(self, name)(number)
            self.check()
        self.end()

    def open(self) -> Library:
        return Library.open(self.library, offline=True)

    # what a user does

    def create(self, number: int) -> None:
        self.count += 1
        shapes = {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)}
        data = safetensors_bytes(shapes, seed=f"{self.count}")
        self._new(number).write_bytes(data)
        self.alive.add(digest(data))

    def double(self, number: int) -> None:
        if (path := self._file(number)) is not None:
            shutil.copyfile(path, self._new(number))

    def hard_link(self, number: int) -> None:
        if (path := self._file(number)) is not None:
            os.link(path.resolve(), self._new(number))

    def symlink(self, number: int) -> None:
        if (path := self._file(number)) is not None:
            self._new(number).symlink_to(path)

    def rename(self, number: int) -> None:
        if (path := self._file(number)) is not None:
            path.rename(self._new(number))

    def rename_folder(self, number: int) -> None:
        folders = sorted(self.theirs.iterdir())
        folder = folders[number % len(folders)]
        self.count += 1
        folder.rename(self.theirs / f"f{self.count}")

    def delete(self, number: int) -> None:
        if (path := self._file(number)) is not None:
            path.unlink()
            self.alive &= self.on_disk()

    def edit(self, number: int) -> None:
        path = self._file(number)
        if path is not None and os.access(path, os.W_OK) and path.resolve().stat().st_mode & 0o200:
            self.count += 1
            shapes = {"lora_unet_y.lora_down.weight": (4, 8), "lora_unet_y.lora_up.weight": (8, 4)}
            data = safetensors_bytes(shapes, seed=f"edit{self.count}")
            path.write_bytes(data)
            self.alive = (self.alive & self.on_disk()) | {digest(data)}

    # what civman does

    def import_(self, number: int) -> None:
        with self.open() as library:
            library.files.import_files([self.theirs], mode=MODES[number % len(MODES)])

    def import_one(self, number: int) -> None:
        if (path := self._file(number)) is not None and path.exists():
            with self.open() as library:
                library.files.import_files([path.parent], mode=MODES[number % len(MODES)])

    def remove(self, number: int) -> None:
        with self.open() as library:
            assets = sorted(library.list(), key=lambda asset: asset.blob.sha256)
            if assets:
                library.remove([f"sha256:{assets[number % len(assets)].blob.sha256}"])

    def restore(self, _: int) -> None:
        with self.open() as library, contextlib.suppress(CivmanError):
            library.trash.restore()

    def gc(self, _: int) -> None:
        with self.open() as library, contextlib.suppress(CivmanError):
            library.maintenance.gc(
                library.maintenance.plan_gc(partials_after=timedelta(0), trash_after=timedelta(days=9))
            )

    def verify(self, number: int) -> None:
        with self.open() as library:
            self._judge(list(library.verify(is_full=number % 2 == 0)))

    def repair(self, _: int) -> None:
        with self.open() as library:
            self._judge(list(library.maintenance.repair(list(library.verify()))))

    def kill(self, number: int) -> None:
        """Import in a child process that dies at a change of a file."""
        child = os.fork()
        if child == 0:
            _die_at(number)
            try:
                self.import_(number)
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    # what must hold

    def check(self) -> None:
        assert self.alive <= self.on_disk(), "bytes were lost that the user did not remove"
        for path in (self.library / "blobs").rglob("*.safetensors"):
            assert not path.is_symlink()
            assert digest(path.read_bytes()) == path.name[:64]

    def end(self) -> None:
        self.import_(0)
        with self.open() as library:
            library.maintenance.rebuild()
            bad = {each.sha256 for each in library.verify(is_full=True) if each.state not in ("ok", "unchanged")}
            assert not bad & self.alive
        self.check()

    def on_disk(self) -> set[str]:
        found = [path for path in self.theirs.rglob("*") if path.is_file()]
        found += [path for path in self.library.rglob("*") if path.is_file() and path.name[:64].isalnum()]
        return {digest(path.read_bytes()) for path in found}

    def _judge(self, verdicts: list[object]) -> None:
        for each in verdicts:
            is_there = Path(each.path).is_file() and digest(Path(each.path).read_bytes()) == each.sha256  # type: ignore[attr-defined]
            assert is_there or each.state not in ("ok", "unchanged", "repaired"), each  # type: ignore[attr-defined]

    def _file(self, number: int) -> Path | None:
        files = sorted(path for path in self.theirs.rglob("*.safetensors") if path.is_file())
        return files[number % len(files)] if files else None

    def _new(self, number: int) -> Path:
        self.count += 1
        folders = sorted(self.theirs.iterdir())
        return folders[number % len(folders)] / f"n{self.count}.safetensors"


setattr(World, "import", World.import_)


def _die_at(number: int) -> None:
    left = number

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty library, made once."""
    folder = tmp_path_factory.mktemp("empty") / "library"
    with Library.open(folder, offline=True) as library:
        library.list()
    return folder


def play(empty: Path, examples: int, steps: int) -> Callable[[], None]:
    @settings(
        max_examples=examples, deadline=None, derandomize=examples < 20, database=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    @given(st.lists(STEP, min_size=steps // 2, max_size=steps))
    def run(given_steps: list[tuple[str, int]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            World(Path(folder), empty).run([("create", 0), ("create", 1), ("create", 2), *given_steps])

    return run


def test_no_byte_is_lost_and_no_row_is_false(empty: Path) -> None:
    play(empty, examples=5, steps=12)()


@pytest.mark.long
def test_no_byte_is_lost_in_many_sequences(empty: Path) -> None:
    play(empty, examples=120, steps=40)()


@pytest.mark.long
def test_a_kill_at_any_change_while_moving_loses_nothing(empty: Path, tmp_path: Path) -> None:
    world = World(tmp_path, empty)
    for at in range(3, 100, 4):  # 3 modulo 4: the mode is move
        world.create(at)
        world.kill(at)
        world.check()
    world.end()
