"""The pages say what the program does."""

import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

from civman import errors
from civman.errors import ExitCode
from civman.library import Library

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_what_the_commands_say(generate: ModuleType) -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == generate.page(), "run `python docs/generate.py`"


def test_the_page_of_the_python_api_is_what_the_library_offers(generate: ModuleType) -> None:
    assert (DOCS / "python.md").read_text(encoding="utf-8") == generate.python_page(), "run `python docs/generate.py`"


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"], key=str), ids=lambda p: p.name)
def test_every_call_of_the_library_in_the_pages_is_there(page: Path, library: Library) -> None:
    calls = re.findall(r"\b(library(?:\.\w+)+)\(([^)\n|]*)\) \|", page.read_text(encoding="utf-8"))
    calls += [(name, "") for name in re.findall(r"\b(library(?:\.\w+)+)\(", page.read_text(encoding="utf-8"))]

    for name, parameters in calls:
        method = attrgetter(name.partition(".")[2])(library)
        offered = inspect.signature(method).parameters
        assert set(filter(None, parameters.replace("`", "").split(", "))) <= set(offered), name
        assert callable(method)


def test_the_code_for_python_in_the_pages_compiles_and_finds_its_names() -> None:
    blocks = [
        block.removeprefix("python\n")
        for page in (DOCS.parent / "README.md", DOCS / "rendering.md")
        for block in page.read_text(encoding="utf-8").split("```")[1::2]
        if block.startswith("python\n")
    ]

    imports = [line for block in blocks for line in block.splitlines() if line.startswith("from civman")]
    assert len(imports) >= 3
    for block in blocks:
        compile(textwrap.dedent(block), "page", "exec")
    for line in imports:
        exec(line, {})


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")

    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}

    assert documented == set(ExitCode)


def test_every_error_has_a_code_of_its_own_and_a_documented_exit() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    codes = [kind.code for kind in classes]

    assert len(codes) == len(set(codes))
    assert all(kind.exit_code in set(ExitCode) for kind in classes)


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"], key=str), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.long
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    shown = next(block for block in readme.split("```") if "$ civman search" in block)

    done = subprocess.run(
        [sys.executable, "-m", "civman", "demo", "--library", tmp_path / "library"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    printed = {line.rstrip() for line in done.stdout.splitlines()}
    assert [line for line in shown.splitlines() if line.rstrip() not in printed | {""}] == []
