"""A project's models as civman.toml and civman.lock: added on one machine, synced on another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from running import Civman

from civman.demo.demo_weights import sd1_lora
from civman.demo.server import CivitaiServer

TOML = """# our settings   (kept as they are)
library = "../library"  # beside the project

[[models]]
# the one everybody uses
ref = "civitai:70115"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "deep").mkdir(parents=True)
    (folder / "civman.toml").write_text(TOML)
    monkeypatch.chdir(folder / "deep")
    return folder


@pytest.fixture
def on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    def move() -> Path:
        monkeypatch.setenv("CIVMAN_LIBRARY", str(tmp_path / "another"))
        return tmp_path / "another"

    return move


def blobs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "blobs").rglob("*.safetensors")}


def test_what_is_added_here_is_synced_there_byte_for_byte(
    online: CivitaiServer, civman: Civman, project: Path, root: Path, on_another_machine: Callable[[], Path]
) -> None:
    added = civman("add", "civitai:139562", "https://civitai.com/models/71820", "70115", "--json")
    assert added.code == 0
    assert [each["entry"]["ref"] for each in added.json["add"]] == ["civitai:139562", "civitai:71820", "civitai:70115"]
    assert [each["is_new"] for each in added.json["add"]] == [True, True, False]
    text = (project / "civman.toml").read_text()
    assert text.startswith(TOML)
    assert 'ref = "civitai:139562"\nname = "Ink Wash Sketch v1.1"\n' in text
    lock = (project / "civman.lock").read_text()
    here = blobs(root)
    assert all(name.partition(".")[0] in lock for name in here)

    there = on_another_machine()
    told = civman("sync", "--check")
    assert told.code == 3
    assert not blobs(there)
    synced = civman("sync", "--json")
    assert synced.code == 0
    assert [each["was_present"] for each in synced.json["sync"]] == [False, False, False]
    assert blobs(there) == here
    assert civman("sync", "--check").code == 0
    assert (project / "civman.lock").read_text() == lock


def test_the_lock_is_the_same_text_whatever_the_order(online: CivitaiServer, civman: Civman, project: Path) -> None:
    civman("add", "civitai:139562", "71820", "70115")
    lock, toml = (project / "civman.lock").read_text(), (project / "civman.toml").read_text()

    for name in ("civman.lock", "civman.toml"):
        (project / name).unlink()
    (project / "civman.toml").write_text(TOML)
    for ref in ("70115", "71820", "civitai:139562"):
        assert civman("add", ref).code == 0
    assert (project / "civman.lock").read_text() == lock

    assert civman("add", "71820").code == 0
    assert (project / "civman.lock").read_text() == lock
    assert sorted((project / "civman.toml").read_text().splitlines()) == sorted(toml.splitlines())


def test_changed_bytes_upstream_are_refused_by_the_lock_before_they_are_fetched(
    online: CivitaiServer, civman: Civman, project: Path, on_another_machine: Callable[[], Path]
) -> None:
    civman("add", "civitai:139562", "70115")
    online.catalogue.replace_bytes(133701, sd1_lora("other bytes", tags={"x": 1}))
    there = on_another_machine()
    before = len(online.requests_to("storage"))

    refused = civman("sync", "--json")

    assert refused.code == 6
    ink, vae = (next(each for each in refused.json["sync"] if each["entry"]["ref"] == ref)
                for ref in ("civitai:139562", "civitai:70115"))  # fmt: skip
    assert ink["error"]["code"] == "lock-mismatch"
    assert not ink["is_here"]
    assert vae["is_here"]
    assert set(blobs(there)) == {vae["entry"]["sha256"] + ".safetensors"}
    asked = [request.path for request in online.requests_to("storage")[before:]]
    assert not any("ink" in path for path in asked)


def test_other_bytes_than_declared_are_refused_too(
    online: CivitaiServer, civman: Civman, project: Path, on_another_machine: Callable[[], Path]
) -> None:
    civman("add", "civitai:139562", "70115")
    online.catalogue.replace_bytes(133701, sd1_lora("other bytes", tags={"x": 1}), declare=False)
    there = on_another_machine()

    assert civman("sync").code == 6
    assert len(blobs(there)) == 1


def test_a_missing_and_a_stale_lock_are_told_and_mended(online: CivitaiServer, civman: Civman, project: Path) -> None:
    missing = civman("sync", "--json")
    assert (missing.code, missing.json["error"]["code"]) == (2, "lock-missing")

    assert civman("sync", "--lock").code == 0
    toml = project / "civman.toml"
    toml.write_text(toml.read_text().replace("civitai:70115", "71820@141008"))
    stale = civman("sync", "--json")
    assert (stale.code, stale.json["error"]["code"]) == (2, "lock-stale")
    assert stale.json["error"]["facts"] == {"missing": ["71820@141008"], "extra": ["civitai:70115"]}

    assert civman("sync", "--lock").code == 0
    assert "70115" not in (project / "civman.lock").read_text()


def test_an_entry_is_dropped_by_any_of_its_names_and_comments_stay(
    online: CivitaiServer, civman: Civman, project: Path, root: Path
) -> None:
    civman("add", "civitai:139562", "71820", "70115")
    held = blobs(root)

    assert civman("drop", "ink_wash_sketch_v1.1.safetensors").code == 0
    assert civman("drop", "@141008").code == 0

    assert (project / "civman.toml").read_text().strip() == TOML.strip()
    assert (project / "civman.lock").read_text().count("[[models]]") == 1
    assert blobs(root) == held
    assert civman("drop", "civitai:139562").code == 3


def test_locking_unseen_fetches_nothing_and_says_the_same_as_fetching(
    online: CivitaiServer, civman: Civman, project: Path, root: Path
) -> None:
    assert civman("add", "--no-download", "civitai:139562", "70115").code == 0
    unseen = (project / "civman.lock").read_text()
    assert not (root / "blobs").exists()

    civman("add", "civitai:139562", "70115")
    assert (project / "civman.lock").read_text() == unseen


def test_one_failure_among_several_writes_the_others(online: CivitaiServer, civman: Civman, project: Path) -> None:
    failed = civman("add", "civitai:139562", "85102", "--json")

    assert failed.code == 3
    assert [each["error"] is None for each in failed.json["add"]] == [True, False]
    assert "85102" not in (project / "civman.toml").read_text()
    assert "civitai:139562" in (project / "civman.lock").read_text()


def test_a_project_begins_where_there_is_none(
    online: CivitaiServer, civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    monkeypatch.chdir(folder)

    assert civman("add", "@151090").code == 0

    assert (folder / "civman.toml").read_text() == '[[models]]\nref = "@151090"\nname = "Ink Wash Sketch v1.0"\n'
    assert civman("sync", "--check").code == 0


def test_models_in_one_line_stay_in_one_line(online: CivitaiServer, civman: Civman, project: Path) -> None:
    (project / "civman.toml").write_text('models = [{ref = "civitai:70115"}]  # short\noffline = false\n')

    assert civman("add", "@151090").code == 0
    text = (project / "civman.toml").read_text()
    assert text.count("[[models]]") == 0
    assert "# short" in text
    assert civman("sync", "--lock").code == 0
    assert civman("drop", "@151090").code == 0
    assert "151090" not in (project / "civman.toml").read_text()


@pytest.mark.parametrize("text", ["version = 99\n", "version = 1\n[[models]]\nref = 'x'\n", "nonsense"])
def test_a_lock_that_cannot_be_read_is_refused(civman: Civman, project: Path, text: str) -> None:
    (project / "civman.lock").write_text(text)

    assert civman("sync").code == 2
