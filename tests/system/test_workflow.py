"""The public workflow: it parses, and what it runs exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parents[2]
WORKFLOW = HOME / ".github" / "workflows" / "tests.yml"
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="the core's own environment reads no YAML")
    return dict(yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"])


def test_every_command_is_a_target_of_the_makefile(jobs: dict[str, Any]) -> None:
    makefile = (HOME / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]

    assert len(commands) >= 4
    for command in commands:
        assert re.fullmatch(r"make [\w-]+", command), command
        assert command.removeprefix("make ") in targets


def test_the_matrix_is_what_the_package_promises(jobs: dict[str, Any]) -> None:
    promised = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]

    assert jobs["core"]["strategy"]["matrix"]["python"] == promised
    assert {name.partition("-")[0] for name in jobs["core"]["strategy"]["matrix"]["system"]} == {
        "ubuntu", "windows", "macos",
    }  # fmt: skip
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_the_rooms_of_the_core_tests_exist() -> None:
    makefile = (HOME / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^CORE_TESTS := \$\(addprefix tests/,([^)]*)\)", makefile, re.MULTILINE)

    assert listed is not None
    assert all((HOME / "tests" / room).is_dir() for room in listed[1].split())
