"""The frame of the commands: what all of them share."""

import json
import typing
from pathlib import Path

import pytest
import typer.main
from running import Civman

from civman.cli.app import build, main
from civman.errors import DiskFull
from civman.library import Library

LOCAL = {
    "config", "logout", "whoami", "list", "render", "renders", "edit", "remove", "restore", "du", "link",
    "export", "verify", "login", "jobs", "upscale",
}  # fmt: skip
"""Commands without --offline: they never ask CivitAI, or cannot do without it."""


class FullDisk(Library):
    """A library whose last writes fail."""

    def close(self) -> None:
        super().close()
        raise DiskFull("no space left", path="library.db")


def test_every_command_has_the_common_options() -> None:
    root: typing.Any = typer.main.get_command(build())

    shown = {name: command for name, command in root.commands.items() if not command.hidden}
    options = {name: {param.name for param in command.params} for name, command in shown.items()}

    assert len(options) >= 30
    for name in options.keys() - {"demo", "drop", "help"}:
        assert {"library", "as_json", "quiet"} <= options[name], name
        assert ("offline" in options[name]) is (name not in LOCAL), name
    assert options["drop"] & {"library", "offline", "as_json", "quiet"} == {"library", "as_json", "quiet"}
    assert options["demo"] & {"library", "offline", "as_json", "quiet"} == {"library"}


@pytest.mark.parametrize("mode", [[], ["--json"], ["--quiet"]])
def test_nothing_is_said_to_be_done_that_fails_when_the_library_is_closed(
    mode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["list", *mode], make_library=FullDisk)

    out, err = capsys.readouterr()
    assert code == DiskFull.exit_code
    if mode == ["--json"]:
        assert json.loads(out)["kind"] == "error"
    else:
        assert (out, err.count("no space left")) == ("", 1)


def test_a_command_that_is_refused_makes_no_library(civman: Civman, root: Path, tmp_path: Path) -> None:
    done = civman("export", tmp_path / "out.civman", "--library", root)

    assert done.code == 2
    assert not root.exists()
