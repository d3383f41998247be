"""The boundary: exit codes, the three output modes, messages that help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import Civman

from civman import __version__
from civman.demo.server import CivitaiServer

COMMANDS = ("search", "show", "download", "list", "verify", "remove", "login", "doctor")


def test_the_version_is_told(civman: Civman) -> None:
    assert civman("--version").out == f"civman {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(civman: Civman, command: str) -> None:
    result = civman(command, "--help")

    assert result.code == 0
    assert "--json" in result.out


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("lst",), "lst"),
        (("list", "--colour"), "--colour"),
        (("search", "--limit", "many"), "whole number"),
        (("search", "--type", "Lorra"), "LORA"),
        (("search", "--sort", "newst"), "Newest"),
        (("download",), "REF"),
        (("download", "51207", "--limit-rate", "fast"), "20M"),
        (("download", "51207", "--preview", "big"), "safe"),
    ],
)
def test_a_slip_on_the_command_line_ends_with_2_and_says_what_was_wrong(
    civman: Civman, argv: tuple[str, ...], word: str
) -> None:
    result = civman(*argv)

    assert result.code == 2
    assert word in result.err
    assert "Hint:" in result.err
    assert "Traceback" not in result.err


def test_failures_are_json_too_and_nothing_else_is_on_stdout(civman: Civman) -> None:
    result = civman("show", "https://example.org/x", "--json")

    assert result.code == 2
    document = json.loads(result.out)
    assert document["civman"] == 1
    assert document["kind"] == "error"
    assert set(document["error"]) == {"code", "exit_code", "message", "hint", "facts"}


@pytest.mark.parametrize(
    "argv", [("search",), ("show", "51207"), ("download", "51207", "--dry-run"), ("list",), ("verify",), ("doctor",)]
)
def test_each_command_speaks_json_with_its_own_kind(online: CivitaiServer, civman: Civman, argv: tuple[str]) -> None:
    document = civman(*argv, "--json").json

    assert document["civman"] == 1
    assert document["kind"] in document


def test_quiet_gives_one_id_a_line(online: CivitaiServer, civman: Civman) -> None:
    refs = ["@114620+98103", "@139700", "@191010", "@90021", "@191120"]
    found = civman("search", "--type", "Checkpoint", "--quiet").out.split()
    assert ["@" + ref.partition("@")[2] for ref in found] == refs
    assert all(ref.partition("@")[0].isdecimal() for ref in found)
    digest = civman("download", "51207", "--quiet").out.strip()
    assert civman("list", "--quiet").out.strip() == digest
    assert len(digest) == 64


def test_an_unreachable_site_ends_with_5(
    civman: Civman, monkeypatch: pytest.MonkeyPatch, server: CivitaiServer
) -> None:
    monkeypatch.setenv("CIVMAN_CIVITAI_URL", server.url)
    monkeypatch.setenv("CIVMAN_OFFLINE", "1")

    result = civman("search", "--json")

    assert result.code == 5
    assert result.json["error"]["code"] == "offline"


def test_names_from_strangers_cannot_steer_the_terminal(online: CivitaiServer, civman: Civman) -> None:
    online.catalogue.change_model(51207, name="Harbour\x1b[31m\x07 Light")

    assert "\x1b" not in civman("search").out + civman("show", "51207").out + civman("download", "51207").out


def test_output_into_a_closed_pipe_ends_quietly(online: CivitaiServer, tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m civman search --json | head -c 10", shell=True, capture_output=True, text=True
    )

    assert done.stdout == '{\n "civman'
    assert done.stderr == ""


def test_a_library_that_is_a_file_is_refused_in_words(civman: Civman, root: Path) -> None:
    root.write_text("in the way")

    result = civman("list")

    assert result.code == 1
    assert "not a folder" in result.err
    assert "--library" in result.err


def test_a_newer_library_is_refused_and_left_alone(civman: Civman, root: Path) -> None:
    import sqlite3

    civman("list")
    with sqlite3.connect(root / "library.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '2099_from_the_future'")
    connection.close()
    before = (root / "library.db").read_bytes()

    result = civman("list", "--json")

    assert result.json["error"]["code"] == "newer-library"
    assert (root / "library.db").read_bytes() == before
