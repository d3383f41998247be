"""Mistakes that look like empty results end with an exit code of their own, and empty results name the next command."""

from pathlib import Path

import pytest
from running import Civman

from civman.errors import Cause


@pytest.mark.parametrize(
    "words", [["verify"], ["list"], ["du"], ["gc"], ["renders"], ["outdated"], ["restore", "--list"], ["remove", "@1"]]
)
def test_a_mistyped_library_is_refused_and_not_created(civman: Civman, tmp_path: Path, words: list[str]) -> None:
    run = civman(*words, "--library", tmp_path / "typo", "--json")

    assert (run.code, run.json["error"]["code"]) == (3, Cause.NO_LIBRARY)
    assert not (tmp_path / "typo").exists()


def test_commands_that_add_files_create_the_library(civman: Civman, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    civman("import", tmp_path / "broken.safetensors", "--library", tmp_path / "new", "--offline")

    assert civman("verify", "--library", tmp_path / "new").code == 0


def test_an_import_of_nothing_and_of_rejected_files_only_fails(civman: Civman, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "notes.txt").write_text("no model")
    nothing = civman("import", folder, "--offline", "--json")
    (folder / "broken.safetensors").write_bytes(b"<html>")
    rejected = civman("import", folder, "--offline", "--json")

    assert (nothing.code, nothing.json["error"]["code"]) == (3, Cause.NO_FILES)
    assert rejected.code == 6
    assert rejected.json["import"]["broken"]


@pytest.mark.parametrize("words", [["sync"], ["sync", "--check"], ["sync", "--offline"]])
def test_sync_outside_a_project_says_how_to_start_one(
    civman: Civman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    run = civman(*words)

    assert (run.code, f"[{Cause.NO_PROJECT}]" in run.err) == (3, True)
    assert "civman add REF" in run.err


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["list"], "civman download REF"), (["verify"], "civman import FOLDER"), (["renders"], "civman render"),
        (["restore", "--list"], "civman remove REF"),
    ],
)  # fmt: skip
def test_an_empty_library_names_the_next_command(civman: Civman, words: list[str], step: str) -> None:
    run = civman(*words)

    assert (run.code, step in run.out) == (0, True)
