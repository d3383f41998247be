"""Help pages: every command is in a panel, its examples are valid, and near misses are helped."""

import shlex
from typing import Any

import pytest
import typer.main
from running import Civman

from civman.cli import render_panels
from civman.cli.app import build
from civman.cli.command_table import PANELS, commands

ROOT: Any = typer.main.get_command(build())
EVERY = [each for _, each in commands()]


@pytest.mark.parametrize("line", [line for each in EVERY for line in each.examples])
def test_every_example_is_a_valid_command_line(line: str) -> None:
    program, name, *words = shlex.split(line.partition(" < ")[0])

    ROOT.commands[name].make_context(name, words, resilient_parsing=False)

    assert program == "civman"


def test_every_command_is_in_one_panel_and_has_examples() -> None:
    visible = {name for name, command in ROOT.commands.items() if not command.hidden}

    assert sorted(each.name for each in EVERY) == sorted(visible)
    assert all(each.examples for each in EVERY)


@pytest.mark.parametrize("width", [60, 100])
def test_help_lists_the_panels_in_order(civman: Civman, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    out = civman("--help").out

    places = [out.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)
    assert all(len(line) <= width for line in out.splitlines())


def test_every_option_of_render_is_in_one_panel() -> None:
    listed = [name for names in render_panels.PANELS.values() for name in names]
    options: dict[str, Any] = {
        each.name: each for each in ROOT.commands["render"].params if each.param_type_name == "option"
    }
    own = [name for name, each in options.items() if each.rich_help_panel != "Common options" and name != "help"]

    assert sorted(listed) == sorted(own)
    assert {options[name].rich_help_panel for name in own} == set(render_panels.PANELS)


@pytest.mark.parametrize("name", ["render", "du"])
def test_help_shows_the_same_page_as_the_option(civman: Civman, name: str) -> None:
    page = civman("help", name)

    assert page.code == 0
    assert page.out.split() == civman(name, "--help").out.split()
    assert "Examples:" in page.out


@pytest.mark.parametrize(("alias", "name"), [("ls", "list"), ("rm", "remove")])
def test_familiar_names_work_too(civman: Civman, alias: str, name: str) -> None:
    assert ROOT.commands[alias].hidden
    assert ROOT.commands[alias].callback.__doc__ == ROOT.commands[name].callback.__doc__
    assert civman(alias, "--help").code == 0


def test_a_mistyped_command_is_told_what_is_near(civman: Civman) -> None:
    run = civman("help", "rendr")

    assert run.code == 2
    assert "`civman render`" in run.err


def test_config_shows_each_setting_with_its_source(civman: Civman, root: object) -> None:
    run = civman("config", "--json")

    assert run.json["config"]["settings"]["library"] == {"value": str(root), "source": "environment CIVMAN_LIBRARY"}


@pytest.mark.usefixtures("online")
def test_whoami_names_the_account_and_logout_removes_a_key(civman: Civman) -> None:
    assert civman("whoami", "--quiet").out.strip()
    assert civman("logout").out.strip() == "there was no stored key to remove"
