"""The real journeys on a system without POSIX functions, and on one with Windows' rules for files."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from faults import FaultyServer, Hold, faulty_server
from running import Run

from civman.demo.demo_catalog import Catalogue, Content, DemoFile, DemoImage, DemoModel, DemoVersion
from civman.store.resume_journal import Journal
from civman.system.process_lock import FileLock

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="another system's rules are kept with Linux's means"),
]
HERE = Path(__file__).parent
QUICK = ("--size", "64x64", "--steps", "2", "--cfg", "3", "--seed", "7", "--device", "cpu", "--sampler", "Euler")


@pytest.fixture(params=["bare", "windows"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(kind: str, folder: Path, *commands: list[str], server: FaultyServer | None = None) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CIVMAN_", "CIVITAI_"))}
    own = {
        "CIVMAN_LIBRARY": str(folder / "library"), "CIVMAN_CONFIG_DIR": str(folder / "config"),
        "COLUMNS": "200", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if server is not None:
        own |= {"CIVMAN_CIVITAI_URL": server.url, "CIVITAI_API_TOKEN": server.token}
    else:
        own["CIVMAN_OFFLINE"] = "1"
    words = [sys.executable, str(HERE / "other_system.py"), kind, str(folder), json.dumps(commands)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, env=kept | own, text=True, stdout=pipe, stderr=pipe)


def finish(process: "subprocess.Popen[str]") -> list[Run]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return [Run(*each) for each in json.loads(out)]


def civman(kind: str, folder: Path, *commands: list[str], server: FaultyServer | None = None) -> list[Run]:
    done = finish(start(kind, folder, *commands, server=server))
    for command, each in zip(commands, done, strict=True):
        assert each.code == 0, (command, each.out, each.err)
    return done


def weights(size_bytes: int) -> bytes:
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + os.urandom(size_bytes)


def serve(data: bytes, *faults: Hold) -> FaultyServer:
    file = DemoFile(id=702, name="AUX.safetensors", content=Content.of(data))
    version = DemoVersion(701, "v1", "SD 1.5", (file,), (DemoImage(703),))
    return faulty_server(Catalogue([DemoModel(700, "Con", "LORA", (version,))]), *faults)


def test_a_killed_download_goes_on_where_the_disk_had_it(kind: str, tmp_path: Path) -> None:
    data = weights(24 << 20)
    key, half = hashlib.sha256(data).hexdigest(), 12 << 20
    journal = Journal(tmp_path / "library" / "partial", key)
    with serve(data, Hold(after=half, released=threading.Event())) as server:
        fetch = ["download", "@701", "--preview", "none", "--connections", "1"]
        process = start(kind, tmp_path, fetch, server=server)
        deadline = time.monotonic() + 120
        while (kept := journal.recall()) is None or kept.ranges.total_bytes < half // 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "nothing is synced"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = journal.recall()
        server.heal()
        before = server.sent_bytes
        (again,) = civman(kind, tmp_path, fetch, server=server)

    assert kept is not None
    assert "already received" in again.err
    assert server.sent_bytes - before <= len(data) - kept.ranges.total_bytes
    (blob,) = (tmp_path / "library" / "blobs").rglob("*.safetensors")
    assert blob.name.startswith(key)
    assert blob.read_bytes() == data
    assert list((tmp_path / "library" / "partial").iterdir()) == []


def test_store_views_trash_and_bundles(kind: str, tmp_path: Path) -> None:
    data = weights(100_000)
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights(5_000))
    view, bundle = tmp_path / "view", tmp_path / "all.civman"
    with serve(data) as server:
        done = civman(
            kind, tmp_path,
            ["download", "@701", "--preview", "none"],
            ["import", "--offline", "--move", str(other)],
            ["list", "--json"],
            ["link", str(view), "--layout", "comfyui", "--json"],
            ["link", str(view), "--layout", "comfyui", "--json"],
            ["export", str(bundle), "--all"],
            ["remove", "@701", "--yes"],
            ["link", str(view), "--layout", "comfyui"],
            ["restore"],
            ["link", str(view), "--layout", "comfyui"],
            ["verify"],
            server=server,
        )  # fmt: skip

    names = [path.name for path in view.rglob("*.safetensors")]
    assert len(done[2].json["list"]["assets"]) == 2
    assert names == ["_AUX.safetensors"]
    assert {path.read_bytes() for path in view.rglob("_AUX.safetensors")} == {data}
    assert not other.exists()
    assert not any(path.is_symlink() for path in view.rglob("*"))
    entries = json.loads(next(view.glob(".civman*")).read_text())["entries"]
    methods = {entry["method"] for entry in entries if entry["kind"] == "model"}
    assert methods == ({"copy"} if kind == "bare" else {"hardlink"})

    blobs = sorted((tmp_path / "library" / "blobs").rglob("*.safetensors"))
    civman(kind, tmp_path, ["link", str(view), "--remove"], ["verify"])
    assert list(view.rglob("*.safetensors")) == []
    assert [blob.stat().st_mode & 0o222 for blob in blobs] == [0, 0]

    civman(
        kind,
        tmp_path,
        ["remove", "@701", "--yes"],
        ["gc", "--trash", "0", "--yes"],
        ["import", str(bundle)],
        ["verify"],
    )
    assert sorted((tmp_path / "library" / "blobs").rglob("*.safetensors")) == blobs


def test_another_process_holds_what_is_being_downloaded(kind: str, tmp_path: Path) -> None:
    data = weights(1000)
    lock = FileLock(tmp_path / "library" / "partial" / f"{hashlib.sha256(data).hexdigest()}.lock")
    with serve(data) as server:
        assert lock.acquire()
        process = start(kind, tmp_path, ["download", "@701", "--preview", "none"], server=server)
        deadline = time.monotonic() + 120
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(3)  # from the question about the version to the lock it is milliseconds
        assert process.poll() is None
        lock.release()
        (done,) = finish(process)

    assert done.code == 0, done.err
    assert "another civman" in done.err


def test_a_picture_is_drawn_and_drawn_again(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    import tiny_models

    tiny_models.write(tmp_path / "tiny.safetensors", "sd1")
    done = civman(
        kind, tmp_path,
        ["import", "--offline", "--move", "tiny.safetensors"],
        ["render", "tiny", "NUL: a con? a <cat>*", *QUICK, "--json"],
        ["render", "tiny", "nul: A CON? a <Cat>*", *QUICK, "--json"],
        ["render", "tiny", "a cat", *QUICK, "--low-vram", "--json"],
        ["verify"],
    )  # fmt: skip

    assert len({each["path"].casefold() for run in done[1:4] for each in run.json["render"]}) == 3
    path = done[1].json["render"][0]["path"]
    (again,) = civman(kind, tmp_path, ["replay", path, "--json"])
    assert again.json["replay"]
