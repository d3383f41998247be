"""Small pictures in terminals, and opening a picture with the system's viewer."""

import base64
import io
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from civman.cli import picture_preview
from civman.cli.output import Output, Result
from civman.cli.picture_preview import Protocol, Viewing, print_preview, protocol_of, viewed
from civman.cli.session import Session
from civman.system.open_file import open_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    Image.effect_noise((1600, 400), 90).convert("RGB").save(path)  # noise: its data take several chunks
    return path


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-ghostty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "230804"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "210400"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Protocol.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, Protocol.ITERM),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
    ],
)
def test_the_protocol_is_told_from_the_environment(environ: dict[str, str], protocol: Protocol | None) -> None:
    assert protocol_of(environ) is protocol


def printed(path: Path, stream: io.StringIO) -> str:
    print_preview(Console(file=stream, force_terminal=True), path)
    return stream.getvalue()


def test_kitty_is_sent_a_small_png_in_chunks_that_ask_for_no_answer(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)

    sent = printed(picture, Terminal())

    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sent)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in chunks) + "\n" == sent
    assert len(chunks) > 1
    assert chunks[0][0] == "a=T,f=100,q=2,r=12,m=1"
    assert {keys for keys, _ in chunks[1:-1]} <= {"m=1"}
    assert chunks[-1][0] == "m=0"
    assert all(len(data) <= 4096 for _, data in chunks)
    assert all(len(data) % 4 == 0 for _, data in chunks)
    shown = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in chunks))))
    assert (shown.format, shown.size) == ("PNG", (640, 160))


def test_iterm_is_sent_one_inline_file_with_its_size(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    monkeypatch.delenv("TMUX", raising=False)

    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);height=12;preserveAspectRatio=1:([^\a]*)\a\n",
        printed(picture, Terminal()),
    )

    assert found is not None
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1])
    assert Image.open(io.BytesIO(data)).size == (640, 160)


def test_pipes_unknown_terminals_and_damaged_pictures_get_nothing(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert printed(picture, io.StringIO()) == ""
    picture.write_bytes(picture.read_bytes()[:200])
    assert printed(picture, Terminal()) == ""
    monkeypatch.setenv("TERM", "vt100")
    assert printed(picture, Terminal()) == ""


def shown(path: Path, viewing: Viewing, **output: bool) -> tuple[str, str]:
    out, err = Terminal(), Terminal()
    session = Session(Output(stdout=out, stderr=err, **output), path.parent / "library", True)
    result = Result("x", {}, human=lambda console: console.print("saved"), ids=["id"])
    session.output.show(viewed(session, result, [path], viewing))
    return out.getvalue(), err.getvalue()


def test_the_option_and_the_setting_turn_previews_off(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")

    assert "\x1b_G" in shown(picture, Viewing())[0]
    assert "\x1b_G" not in shown(picture, Viewing(previews=False))[0]
    assert "\x1b_G" not in shown(picture, Viewing(), as_json=True)[0]
    assert "\x1b_G" not in shown(picture, Viewing(), quiet=True)[0]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("[render]\npreview = false\n")
    assert "\x1b_G" not in shown(picture, Viewing())[0]
    assert "\x1b_G" in shown(picture, Viewing(previews=True))[0]


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `xdg-open` that writes down what it was asked to open, and is the only program on the path."""
    if sys.platform != "linux":
        pytest.skip("xdg-open is Linux's")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "xdg-open"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DISPLAY", ":0")
    return program


def test_the_systems_viewer_opens_the_picture(opener: Path, picture: Path, tmp_path: Path) -> None:
    assert open_file(picture) == ""
    assert (tmp_path / "opened").read_text() == f"{picture}\n"


def test_a_viewer_that_fails_is_a_notice(opener: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener.write_text("#!/bin/sh\nexit 3\n")
    assert f"{opener} ended with code 3" in shown(picture, Viewing(opens=True))[1]
    opener.unlink()
    assert "none of xdg-open, gio open, wslview is installed" in shown(picture, Viewing(opens=True))[1]
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert "there is no graphical session" in shown(picture, Viewing(opens=True))[1]


def test_the_setting_opens_pictures_for_people_only(opener: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("[render]\nopen = true\n")

    shown(picture, Viewing(), as_json=True)
    shown(picture, Viewing(opens=False))
    assert not (tmp_path / "opened").exists()
    shown(picture, Viewing())
    assert (tmp_path / "opened").exists()


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.skipif(Path("/usr/bin/open").exists(), reason="this machine's `open` would be started")
def test_other_systems_use_their_own_way(system: str, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def failing(path: object) -> None:
        opened.append(path)
        raise OSError(1155, "no program is associated with it")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "startfile", failing, raising=False)

    problem = open_file(picture)

    assert problem == (
        "no program is associated with it" if system == "win32" else "/usr/bin/open: No such file or directory"
    )
    assert opened == ([picture] if system == "win32" else [])


def test_a_preview_is_small_and_without_metadata(picture: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a secret prompt")
    Image.open(picture).save(picture, pnginfo=info)

    assert b"secret" not in picture_preview.small_png(picture)
