"""Whole folders of several programs: every file is accounted for, and nothing is lost when they are moved."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_folders import LORAS, make
from running import Civman

from civman.demo.server import CivitaiServer


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        yield Path(folder)


def entries(folder: Path) -> int:
    """All files and links below a folder, counted without civman."""
    count = 0
    for place, folders, names in os.walk(folder):
        count += len(names) + sum(Path(place, name).is_symlink() for name in folders)
    return count


def check_accounts(done: dict[str, object]) -> None:
    left_out = sum(group["count"] for group in done["left_out"])  # type: ignore[attr-defined]
    assert done["entries"] == done["found"] + left_out  # type: ignore[operator]
    assert done["found"] == done["taken"] + done["known_before"] + done["duplicates"] + len(done["broken"])  # type: ignore[operator,arg-type]


@pytest.mark.parametrize("count", [80, pytest.param(5000, marks=pytest.mark.long)])
def test_every_file_is_accounted_for_and_found_again_after_a_move(
    online: CivitaiServer, civman: Civman, tmp_path: Path, other_device: Path, count: int
) -> None:
    folder, elsewhere = tmp_path / "programs", tmp_path / "disk2"
    intact = make(folder, elsewhere, count)
    expected = entries(folder) - 1 + entries(elsewhere)  # the link to the other disk is followed

    done = civman("import", folder, "--json").json["import"]

    check_accounts(done)
    assert done["entries"] == expected
    assert done["taken"] == intact
    reasons = {group["reason"]: group["count"] for group in done["left_out"]}
    for reason in (
        "companion", "unfinished", "dead link", "reached before", "trash", "hidden", "program folder", "shards",
        "archive", "picture",
    ):  # fmt: skip
        assert reasons.get(reason), reason
    assert reasons["diffusers folder"] == 3

    before = civman("list", "--json", "--limit", "0").json["list"]["assets"]
    chosen = before[len(before) // 2]
    assert civman("edit", f"sha256:{chosen['blob']['sha256']}", "--note", "keep me", "--rating", "4").code == 0
    new = tmp_path / "renamed"
    folder.rename(new)
    for program in LORAS[:2]:
        top = program.split("/", maxsplit=1)[0]
        shutil.move(new / top, other_device / top)
    moved = {path.stat().st_ino: path for path in other_device.rglob("*") if path.is_file() and not path.is_symlink()}
    read = {
        path.read_bytes() for path in moved.values()
        if path.suffix in (".safetensors", ".sft") and "-of-" not in path.name and "diffusers" not in path.parts
    }  # fmt: skip

    again = civman("import", new, other_device, elsewhere, "--json").json["import"]

    check_accounts(again)
    assert again["taken"] == 0
    assert again["read_bytes"] >= sum(map(len, read))  # a double on the same device is read once more
    assert again["read_bytes"] <= sum(path.stat().st_size for path in moved.values())
    after = {
        asset["blob"]["sha256"]: asset for asset in civman("list", "--json", "--limit", "0").json["list"]["assets"]
    }
    assert after.keys() == {asset["blob"]["sha256"] for asset in before}
    for sha256, asset in after.items():
        assert hashlib.sha256(Path(asset["path"]).read_bytes()).hexdigest() == sha256
    assert after[chosen["blob"]["sha256"]]["own"]["note"] == "keep me"
    assert civman("verify", "--full").code == 0
    assert not [request for request in online.requests if "/download/" in request.path]
