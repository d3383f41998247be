"""Read-only folders, full disks, drives that are away, a dead site and one that is back: words and exit codes."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_folders import model
from running import Civman

from civman.demo.demo_weights import safetensors_bytes
from civman.demo.server import CivitaiServer


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        if not self._mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)):
            pytest.skip("file systems cannot be mounted here")

    def make_read_only(self) -> None:
        assert self._mount("-o", "remount,ro", str(self.folder))

    def take_away(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=False, capture_output=True)

    @staticmethod
    def _mount(*words: str) -> bool:
        try:
            return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
        except OSError:
            return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.take_away()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")


def error_of(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text)["error"]
    return found


@pytest.mark.usefixtures("offline")
def test_a_read_only_folder_is_imported_in_place_and_loses_nothing_when_moved(
    disk: Disk, civman: Civman, root: Path
) -> None:
    source = disk.folder / "a.safetensors"
    source.write_bytes(model(1))
    source.chmod(0o664)
    disk.make_read_only()

    assert civman("import", disk.folder).code == 0
    moved = civman("import", disk.folder, "--move", "--json")

    assert moved.code == 1
    assert "read-only" in str(error_of(moved.out)["message"])
    assert (source.read_bytes(), source.stat().st_mode & 0o777) == (model(1), 0o664)
    blobs = list((root / "blobs").rglob("*.safetensors"))
    assert [path.read_bytes() for path in blobs] == [model(1)]
    assert [asset["path"] for asset in civman("list", "--json").json["list"]["assets"]] == [str(blobs[0])]


@pytest.mark.usefixtures("offline")
def test_a_full_disk_is_said_before_anything_is_copied_and_can_be_listed(
    disk: Disk, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVMAN_LIBRARY", str(disk.folder / "library"))
    source = tmp_path / "big.safetensors"
    source.write_bytes(safetensors_bytes({"x.lora_down.weight": (4, 600_000)}, seed="big"))
    civman("list")
    before = sum(path.stat().st_size for path in disk.folder.rglob("*") if path.is_file())

    for mode in ("--copy", "--move"):
        refused = civman("import", source, mode, "--json")
        assert (refused.code, error_of(refused.out)["code"]) == (1, "disk-full")
        assert source.exists()
    after = sum(path.stat().st_size for path in disk.folder.rglob("*") if path.is_file())
    assert after - before < 100_000
    assert civman("import", source).code == 0

    with (disk.folder / "fill").open("wb", buffering=0) as fill, contextlib.suppress(OSError):
        while True:
            fill.write(b"x" * 4096)
    listed = civman("list", "--json")
    assert (listed.code, listed.json["list"]["total"]) == (0, 1)
    noted = civman("edit", "big", "--note", "n" * 9000, "--json")
    assert (noted.code, error_of(noted.out)["code"]) == (1, "disk-full")
    (disk.folder / "fill").unlink()
    assert civman("edit", "big", "--note", "n" * 9000).code == 0


@pytest.mark.usefixtures("offline")
def test_a_drive_that_is_away_is_away_and_not_missing(disk: Disk, civman: Civman, tmp_path: Path) -> None:
    (disk.folder / "models").mkdir()
    (disk.folder / "models" / "a.safetensors").write_bytes(model(1))
    here = tmp_path / "here"
    here.mkdir()
    (here / "b.safetensors").write_bytes(model(2))
    civman("import", disk.folder, here)
    disk.take_away()

    checked = civman("verify", "--json")
    states = {Path(each["path"]).name: each["state"] for each in checked.json["verify"]}
    assert states == {"a.safetensors": "away", "b.safetensors": "unchanged"}
    assert (checked.code, error_of(checked.out)["code"]) == (1, "away")
    inspected = civman("inspect", "a", "--json")
    assert (inspected.code, error_of(inspected.out)["code"]) == (3, "away")

    (here / "b.safetensors").unlink()
    gone = civman("verify", "--json")
    assert {each["state"] for each in gone.json["verify"]} == {"away", "missing"}
    assert (gone.code, "import" in str(error_of(gone.out)["hint"])) == (6, True)

    (here / "copy.safetensors").write_bytes(model(1))
    found = civman("import", here, "--json").json["import"]
    assert (found["taken"], found["rehomed"]) == (0, 1)
    assert civman("verify", "copy").code == 0


@pytest.mark.usefixtures("offline")
def test_the_same_bytes_at_another_place_repair_without_the_site(civman: Civman, tmp_path: Path, root: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.safetensors").write_bytes(model(1))
    civman("import", tmp_path / "one", tmp_path / "two")
    (tmp_path / "one" / "a.safetensors").unlink()

    assert civman("inspect", "a").code == 0
    assert civman("verify").code == 6
    repaired = civman("verify", "--repair", "--json")

    assert (repaired.code, [each["state"] for each in repaired.json["verify"]]) == (0, ["repaired"])
    assert civman("import", tmp_path / "two", "--copy").code == 0
    blob = next((root / "blobs").rglob("*.safetensors"))
    blob.chmod(0o644)
    blob.write_bytes(b"spoilt")
    assert civman("verify", "--repair").code == 0
    assert next((root / "blobs").rglob("*.safetensors")).read_bytes() == model(1)


def test_a_dead_site_an_offline_run_and_a_site_that_is_back(
    online: CivitaiServer, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = next(file for file in online.catalogue.version(160211)[1].files if file.name.endswith("safetensors"))
    (tmp_path / "L").mkdir()
    (tmp_path / "L" / "ink.safetensors").write_bytes(lora.content.data)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"

    alone = civman("import", tmp_path / "L", "--offline", "--json").json["import"]
    assert (alone["taken"], alone["on_civitai"], alone["unanswered"]) == (1, 0, [])
    asked = civman("download", "@160211", "--offline", "--json")
    assert (asked.code, "civman is offline" in str(error_of(asked.out)["message"])) == (3, True)

    with monkeypatch.context() as changed:
        changed.setenv("CIVMAN_CIVITAI_URL", dead)
        began = time.monotonic()
        down = civman("import", tmp_path / "L")
        assert time.monotonic() - began < 1  # a second attempt comes after a second
        assert (down.code, "CivitAI could not be asked: cannot reach" in down.err) == (0, True)
        assert "the files are imported, and the next import asks about them again" in down.err
        assert "trying again" not in down.err

    back = civman("import", tmp_path / "L", "--json").json["import"]
    assert (back["taken"], back["identified_later"]) == (0, 1)
    blobs = len([request for request in online.requests if "/download/" in request.path])
    assert civman("download", "@160211").code == 0
    assert len([request for request in online.requests if "/download/" in request.path]) == blobs
