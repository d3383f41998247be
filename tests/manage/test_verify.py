"""Every byte proven, once; what is broken comes back; the index comes back from the files alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import Civman

from civman.demo.server import CivitaiServer
from civman.domain.catalog import ModelId, VersionId
from civman.library import Library

CHECKPOINT, LORA = "51207", "60344"
REPOSITORY = Path(__file__).parents[2]


def blobs(root: Path) -> list[Path]:
    return sorted((root / "blobs").rglob("*.safetensors"))


def spoil(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def states(civman: Civman, *options: str) -> list[str]:
    answer = civman("verify", *options, "--json").json
    return sorted(verdict["state"] for verdict in answer["verify"])


@pytest.fixture
def two(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    assert civman("download", CHECKPOINT, LORA).code == 0
    return online


def test_unchanged_files_are_not_read_and_said_so(two: CivitaiServer, civman: Civman, root: Path) -> None:
    assert states(civman) == ["unchanged", "unchanged"]
    assert states(civman, "--full") == ["ok", "ok"]
    assert "2 files unchanged since the last verification" in civman("verify").out

    os.utime(blobs(root)[0])

    assert states(civman) == ["ok", "unchanged"], "touched: read again"
    assert states(civman) == ["unchanged", "unchanged"]


def test_a_library_that_was_moved_is_still_known(
    two: CivitaiServer, civman: Civman, root: Path, tmp_path: Path
) -> None:
    root.rename(tmp_path / "moved")

    assert states(civman, "--library", str(tmp_path / "moved")) == ["unchanged", "unchanged"]


def test_bytes_that_changed_behind_an_old_date_need_full(two: CivitaiServer, civman: Civman, root: Path) -> None:
    blob = blobs(root)[0]
    stats = blob.stat()
    spoil(blob)
    os.utime(blob, ns=(stats.st_atime_ns, stats.st_mtime_ns))

    assert "corrupt" not in states(civman)
    assert states(civman, "--full") == ["corrupt", "ok"]


def test_broken_and_missing_files_are_fetched_again(two: CivitaiServer, civman: Civman, root: Path) -> None:
    corrupt, missing = blobs(root)
    spoil(corrupt)
    missing.unlink()
    broken = corrupt.read_bytes()

    assert civman("verify").code == 6
    repaired = civman("verify", "--repair", "--json")

    assert (repaired.code, [one["state"] for one in repaired.json["verify"]]) == (0, ["repaired", "repaired"])
    assert states(civman, "--full") == ["ok", "ok"]
    assert [path.read_bytes() for path in (root / "trash").rglob("*.safetensors")] == [broken], (
        "moved aside, not deleted"
    )


def test_what_cannot_be_fetched_stays_told_and_the_broken_bytes_stay(
    two: CivitaiServer, civman: Civman, root: Path
) -> None:
    corrupt = blobs(root)[0]
    spoil(corrupt)
    for model_id in (51207, 60344):
        two.catalogue.remove(model_id)

    repaired = civman("verify", "--repair", "--json")

    assert repaired.code == 6
    assert "downloading it again failed" in json.dumps(repaired.json["verify"])
    assert len(list((root / "trash").rglob("*.safetensors"))) == 1
    assert len(civman("list", "--json").json["list"]["assets"]) == 2, "still known, with all that is said of it"


def test_other_bytes_upstream_are_no_repair(two: CivitaiServer, civman: Civman, root: Path) -> None:
    library = Library.open(root)
    asset = library.files.find(CHECKPOINT)[0]
    library.close()
    Path(asset.path).unlink()
    two.catalogue.replace_bytes(asset.file_id, two.catalogue.file(asset.file_id).content.data + b"")  # type: ignore[union-attr, arg-type]
    assert states(civman, "--repair") == ["repaired", "unchanged"]
    Path(asset.path).unlink()
    other = next(
        file for _, _, file in two.catalogue.files() if file.name.endswith(".safetensors") and file.id != asset.file_id
    )
    two.catalogue.replace_bytes(asset.file_id, other.content.data)  # type: ignore[arg-type]

    repaired = civman("verify", "--repair", "--json")

    assert repaired.code == 6
    assert "a different file" in json.dumps(repaired.json)
    assert len(blobs(root)) == 1


def test_the_index_comes_back_with_all_that_the_user_said_and_civitai_once_said(
    two: CivitaiServer, civman: Civman, root: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF" + bytes(100))
    assert civman("import", mine, "--offline").code == 0
    said = ("--note", "warm", "--tag", "boats", "--tag", "sea", "--rating", "4", "--favourite", "--alias", "harbour",
            "--trigger", "golden hour", "--pin")  # fmt: skip
    assert civman("edit", CHECKPOINT, *said).code == 0
    assert civman("edit", "mine", "--note", "home-made").code == 0
    two.catalogue.remove(51207)
    assert civman("show", CHECKPOINT).code == 0, "and CivitAI's answer, that it is gone, is kept"
    before = civman("list", "--json").json["list"]["assets"]
    with Library.open(root) as library:
        gone = library.context.index.snapshot_of_model(ModelId(51207))
        version = library.context.index.version(VersionId(114620))
        hashes = library.context.index.hashes(library.files.find("harbour")[0].blob.sha256)
    assert gone is not None
    assert gone.gone_at is not None

    for path in root.glob("library.db*"):
        path.unlink()
    assert civman("verify", "--rebuild").code == 0

    def facts(assets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for asset in assets:
            asset["blob"].pop("verified_at")
        return sorted(assets, key=lambda asset: str(asset["name"]))

    after = civman("list", "--json").json["list"]["assets"]
    assert facts(after) == facts(before)
    assert len(after) == 3
    with Library.open(root) as library:
        again = library.context.index.snapshot_of_model(ModelId(51207))
        assert again is not None
        assert (again.gone_at, again.gone_status) == (gone.gone_at, gone.gone_status)
        assert library.context.index.version(VersionId(114620)) == version
        assert library.context.index.hashes(library.files.find("harbour")[0].blob.sha256) == hashes
    assert [asset["alias"] for asset in civman("list", "boats", "--json").json["list"]["assets"]] == ["harbour"]
    assert states(civman) == ["unchanged"] * 3


def test_sidecars_of_the_first_format_are_still_read(two: CivitaiServer, civman: Civman, root: Path) -> None:
    for path in (root / "blobs").rglob("*.civman.json"):
        facts = json.loads(path.read_text())
        old = {name: facts[name] for name in ("size_bytes", "declared_by")} | {"format": 1, "assets": []}
        kept = ("name", "origin", "added_at", "alias", "type", "file_id", "air", "usage_control", "model", "version")
        old["assets"] = [{name: entry[name] for name in kept} for entry in facts["assets"]]
        path.write_text(json.dumps(old))
    before = [asset["name"] for asset in civman("list", "--json").json["list"]["assets"]]
    for path in root.glob("library.db*"):
        path.unlink()

    assert civman("verify", "--rebuild").code == 0

    assert [asset["name"] for asset in civman("list", "--json").json["list"]["assets"]] == before


def test_a_sidecar_that_could_not_be_written_is_written_by_the_next_command(
    two: CivitaiServer, library: Library, civman: Civman
) -> None:
    asset = library.files.find(CHECKPOINT)[0]
    from dataclasses import replace

    library.context.index.annotate(asset, replace(asset.own, note="said before the crash"))  # and here the process dies
    assert "said before" not in json.dumps(library.context.store.read_sidecar(asset.blob.sha256))

    civman("edit", LORA, "--rating", "3")

    assert "said before the crash" in json.dumps(library.context.store.read_sidecar(asset.blob.sha256))
    assert library.context.index.sidecars_due() == []


BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
"""Makes root obey permissions like everybody else."""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_a_library_that_cannot_be_written_is_read_and_says_what_it_cannot_do(
    two: CivitaiServer, civman: Civman, root: Path
) -> None:
    prefix = BOUND if os.geteuid() == 0 else []
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("root obeys no permissions, and setpriv is not here")

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*prefix, sys.executable, "-m", "civman", *argv], cwd=REPOSITORY, capture_output=True,
                              text=True, timeout=60)  # fmt: skip

    everything = [root, *root.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything}
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert json.loads(run("list", "--json").stdout)["list"]["total"] == 2
        full = run("verify", "--full")
        assert full.returncode == 0, full.stderr
        assert "the next run will read all files again" in full.stderr
        for command in (("remove", CHECKPOINT, "--yes"), ("edit", CHECKPOINT, "--rating", "3")):
            refused = run(*command)
            assert refused.returncode == 1, command
            assert "Error [" in refused.stderr
            assert "Hint: " in refused.stderr, "says the way out"
        assert run("gc").returncode == 0, "there is nothing to free"
        assert json.loads(run("list", "--json").stdout)["list"]["total"] == 2
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
