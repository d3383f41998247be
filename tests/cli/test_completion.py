"""Completion of values, driven in real shells: type, press Tab twice, read what the shell shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import Civman

from civman.demo.server import CivitaiServer

pexpect = pytest.importorskip("pexpect", reason="needs pexpect to drive a shell")
pytestmark = pytest.mark.shell


@pytest.fixture
def stocked(online: CivitaiServer, civman: Civman, root: Path) -> Path:
    assert civman("download", "51207", "--quiet").code == 0
    assert civman("download", "51207", "-f", "98102", "--quiet").code == 0
    assert civman("edit", "@114620+98102", "--alias", "harbour").code == 0
    return root


def shell(name: str, root: Path, tmp_path: Path) -> "pexpect.spawn":
    """An interactive shell in which `civman` is on the path and its completion is installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    launcher = tmp_path / "bin" / "civman"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m civman "$@"\n')
    launcher.chmod(0o755)
    env = {
        "PATH": f"{launcher.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb",
        "CIVMAN_LIBRARY": str(root), "CIVMAN_OFFLINE": "1", "ZDOTDIR": str(tmp_path), "PS1": "> ",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    script = subprocess.run(
        [launcher, "--show-completion", name], env=env | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    setup = tmp_path / "setup"
    first = "autoload -Uz compinit && compinit -u\n" if name == "zsh" else ""
    setup.write_text(first + script + "\nPS1='> '\n")
    flags = ["--norc", "--noprofile", "-i"] if name == "bash" else ["-f", "-i"]
    child = pexpect.spawn(shutil.which(name), flags, env=env, encoding="utf-8", timeout=60, dimensions=(50, 150))
    child.sendline(f". {setup}; echo rea''dy")
    child.expect("ready")
    child.expect("> ")
    return child


CASES = {
    "a ref": ("civman show 51207@1146", ["@114620+98102", "@114620+98103"]),
    "a version": ("civman show @1146", ["@114620+98102", "@114620+98103"]),
    "a model": ("civman show 5120", ["@114620+98102", "@114620+98103"]),
    "an alias": ("civman render harb", ["harbour"]),
    "a sampler": ("civman render harbour x --sampler Eul", ["Euler", "Euler a"]),
    "a layout": ("civman link x --layout com", ["comfyui"]),
    "a type": ("civman search --type Text", ["TextualInversion", "TextEncoder"]),
    "a base model": ("civman list --base-model Pon", ["Pony"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_shell_completes_values(name: str, case: str, stocked: Path, tmp_path: Path) -> None:
    typed, expected = CASES[case]
    child = shell(name, stocked, tmp_path)

    child.send(typed + "\t")  # completes what all matches share
    shown = ""
    for _ in range(12):
        try:
            shown += child.read_nonblocking(10_000, timeout=10)
        except pexpect.TIMEOUT:
            break
        if all(value.removeprefix("@") in shown for value in expected):
            break
        child.send("\t")  # lists the matches
    child.close(force=True)

    assert all(value.removeprefix("@") in shown for value in expected), shown
