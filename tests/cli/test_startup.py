"""What the commands that must be quick may not load."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("httpx", "sqlmodel", "sqlalchemy", "alembic", "torch", "diffusers", "transformers", "numpy")
# not pydantic: typer loads it by itself where it is installed


def loaded_by(code: str, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, cwd=cwd,
    )  # fmt: skip
    return set(done.stdout.rpartition("\n")[0].splitlines()[-1].split())


def test_the_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    before = loaded_by("import typer, typer.main", tmp_path)

    after = loaded_by("import civman.cli.app", tmp_path)

    assert {name for name in HEAVY if name in after - before} == set()


@pytest.mark.parametrize("command", ["list", "verify"])
def test_commands_that_stay_at_home_load_nothing_heavy(tmp_path: Path, command: str) -> None:
    subprocess.run([sys.executable, "-m", "civman", "list"], check=True, capture_output=True, cwd=tmp_path)
    before = loaded_by("import typer, typer.main", tmp_path)

    after = loaded_by(f"from civman.cli.app import main; main(['{command}'])", tmp_path)

    assert {name for name in HEAVY if name in after - before} == set()


@pytest.mark.parametrize("arguments", [["render", "-h"], []])
def test_help_pages_do_without_markdown_and_tracebacks(tmp_path: Path, arguments: list[str]) -> None:
    code = f"from civman.cli.app import main; main({arguments!r})"

    loaded = loaded_by(code, tmp_path)

    assert {"markdown_it", "pygments"} & loaded == set()
    assert "typer.rich_utils" in loaded
    assert "markdown_it" in loaded_by(f"{code}; import rich.markdown; rich.markdown.Markdown('*')", tmp_path)


def test_a_run_and_a_completion_load_the_one_command_that_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = loaded_by("from civman.cli.app import main; main(['ls'])", tmp_path)
    words = {"_CIVMAN_COMPLETE": "complete_bash", "COMP_WORDS": "civman\nsearch\n--type\nTe", "COMP_CWORD": "3"}
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    completed = loaded_by("from civman.cli.app import main; main([])", tmp_path)

    assert "civman.cli.list_command" in listed
    assert "civman.cli.render_command" not in listed | completed
    assert {"pydantic", "typer.rich_utils", "civman.index"} & completed == set()


def test_the_package_itself_costs_nothing(tmp_path: Path) -> None:
    assert not any(name.startswith("civman.") for name in loaded_by("import civman", tmp_path))


def test_every_public_name_is_there() -> None:
    import civman

    assert all(getattr(civman, name) is not None for name in civman.__all__)
    with pytest.raises(AttributeError):
        civman.nothing  # noqa: B018


@pytest.mark.skipif(sys.platform != "linux", reason="only builds for the CPU on Linux are loaded ahead")
def test_torch_s_library_is_loaded_while_python_does_something_else(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda or torch.version.hip:
        pytest.skip("a build for GPUs")
    code = """
import sys, threading
from pathlib import Path
from civman.diffusion import quick_start
quick_start.begin()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
assert "torch" not in sys.modules
assert "libtorch_cpu.so" in Path("/proc/self/maps").read_text()
import torch
assert float(torch.ones(3) @ torch.ones(3)) == 3
"""

    assert "torch" in loaded_by(code, tmp_path)
