"""Help pages, tables and error messages as a person sees them, compared with the text files in `tests/snapshots`.

A change of words shows up there in review. After an intended change: `make snapshots`.
"""

import ast
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from running import Civman

import civman.errors
from civman.cli.command_table import commands
from civman.cli.output import Output
from civman.demo.server import CivitaiServer
from civman.errors import Cause, CivmanError

SNAPSHOTS = Path(__file__).parent.parent / "snapshots"
SOURCES = Path(civman.errors.__file__).parent
WIDTHS = pytest.mark.parametrize("width", [60, 100])

SESSION = """
= search
= search --type LORA --limit 3
= search no-such-model
= show 51207
= show 181020
= list
download 51207 9999999
download 160211
download 51207
download 181020
= list
= list --sort size --limit 1
= list no-such-model
= show 9999999
= show harbuor
= inspect 51207
= check 51207 --lora 160211
= check 51207 --lora 162900
edit 160211 --alias ink --rating 5 --tag favourite --note "good for landscapes"
= show ink
edit ink
= renders
= show preview.png
= outdated
verify
verify --full
= du
= du --by base-model
= remove ink --dry-run
remove ink
remove ink --yes
= restore --list
restore
= gc --dry-run
link comfyui --layout comfyui --method copy
link comfyui --remove
link comfyui --layout nothing
import nowhere
export all.civman
export all.civman --all
import all.civman
sync
add ink
sync --check
drop ink
drop ink
= config
config no-such-setting
= whoami
logout
= help rendr
= lst
= list --srt size
= list --sort colour
= list --larger huge
download 51207 --limit-rate fast
render
render 51207
render no-such-model "a cat"
replay nowhere.png
""".strip().splitlines()
"""A first session with its mistakes. Lines with `=` change nothing and are also run at 60 columns. None needs torch."""


def compare(name: str, text: str, request: pytest.FixtureRequest) -> None:
    path = SNAPSHOTS / name
    if request.config.getoption("--update-snapshots"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text(encoding="utf-8"), "after an intended change of words: `make snapshots`"


@WIDTHS
def test_help_pages(
    civman: Civman, width: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    pages = [("--help",), *((command.name, "--help") for _, command in commands())]

    text = "".join(f"$ civman {' '.join(page)}\n{_trimmed(civman(*page).out)}\n" for page in pages)

    assert all(len(line) <= width for line in text.splitlines())
    compare(f"help-{width}.txt", text, request)


def test_a_first_session(
    civman: Civman, online: CivitaiServer, request: pytest.FixtureRequest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "civman.toml").touch()
    texts = {100: "", 60: ""}
    for line in SESSION:
        words = line.removeprefix("= ")
        if words == "show preview.png":
            (preview,) = tmp_path.glob("library/**/46a8*.preview.png")
            (tmp_path / "preview.png").write_bytes(preview.read_bytes())
        for width in (100, 60) if words != line else (100,):
            monkeypatch.setenv("COLUMNS", str(width))
            run = civman(*shlex.split(words))
            shown = _trimmed(_same_everywhere(run.out + run.err, tmp_path, online))
            texts[width] += f"$ civman {words}\n{shown}[{run.code}]\n\n"

    compare("session-100.txt", texts[100], request)
    compare("session-60.txt", texts[60], request)


@WIDTHS
def test_one_message_of_every_error_code(
    width: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    first: dict[Cause, CivmanError] = {}
    for error in _errors_in_the_source():
        first.setdefault(error.code, error)
    terminal = _Terminal()
    for _, error in sorted(first.items()):
        Output(stdout=terminal, stderr=terminal).failure(error)

    text = terminal.getvalue()
    without = sorted(set(Cause) - set(first))
    compare(f"errors-{width}.txt", f"{text}\nbuilt at run time: {' '.join(without)}\n", request)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@cache
def _errors_in_the_source() -> list[CivmanError]:
    """Every error that the source creates with a literal message, with the values as `{…}`."""
    return list(_found_errors())


def _found_errors() -> Iterator[CivmanError]:
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                class_ = getattr(civman.errors, node.func.id, None)
                message = _template(node.args[0]) if node.args else None
                if message and isinstance(class_, type) and issubclass(class_, CivmanError):
                    words = {keyword.arg: keyword.value for keyword in node.keywords}
                    error = CivmanError(message, hint=class_.hint, code=class_.code)
                    if "hint" in words:
                        error.hint = _template(words["hint"]) or "{…}"
                    code = ast.unparse(words["code"]) if "code" in words else ""
                    if known := re.fullmatch(r"Cause\.(\w+)", code):
                        error.code = Cause[known[1]]
                    if known or not code:
                        yield error


def _template(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part) or "{…}" for part in parts)
        case ast.BinOp(left=left, right=right):
            return f"{_template(left) or '{…}'}{_template(right) or '{…}'}"
    return None


def _same_everywhere(text: str, folder: Path, server: CivitaiServer) -> str:
    text = text.replace(str(folder), "/home/ann").replace(server.url, "http://127.0.0.1:12345")
    text = re.sub(r"[0-9a-f]{64}", "0" * 64, text)  # a bundle's digest depends on the time
    text = re.sub(r"\(\d+ days left\)", "(9 days left)", re.sub(r"index \d+ kB", "index 300 kB", text))
    text = re.sub(r"\d{4}-\d{2}-\d{2}", "2026-01-01", text)
    text = re.sub(r"(?<!\d)\d{2}:\d{2}(:\d{2}(\.\d+)?)?", "12:00", text)
    return re.sub(r"\b20\d{6}T\d{6}-\d+-\d+", "REMOVAL", text)


def _trimmed(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
