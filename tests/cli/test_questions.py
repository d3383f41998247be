"""Questions that a command asks on a terminal: a no changes nothing, a yes does what was shown."""

import os
import sys
from collections.abc import Callable

import pytest
from running import Civman, Run

from civman.demo.demo_catalog import DemoFile, DemoVersion, utc
from civman.demo.server import CivitaiServer

pty = pytest.importorskip("pty", reason="a terminal to type into")

CHECKPOINT = "51207"
Typing = Callable[..., Run]
"""`typing("n", "remove", REF)`: run a command as a person who types n when asked."""


@pytest.fixture
def typing(civman: Civman, monkeypatch: pytest.MonkeyPatch) -> Typing:
    def run(answer: str, *argv: str) -> Run:
        typed, read = pty.openpty()
        try:
            os.write(typed, f"{answer}\n".encode())
            with os.fdopen(read, encoding="utf-8") as terminal:
                monkeypatch.setattr(sys, "stdin", terminal)
                return civman(*argv)
        finally:
            os.close(typed)

    return run


@pytest.fixture
def held(online: CivitaiServer, civman: Civman) -> CivitaiServer:
    assert civman("download", CHECKPOINT).code == 0
    return online


def refs(civman: Civman) -> list[str]:
    return civman("list", "--quiet").out.split()


@pytest.mark.usefixtures("held")
def test_remove_asks_first(typing: Typing, civman: Civman) -> None:
    before = refs(civman)

    declined = typing("n", "remove", CHECKPOINT)
    assert (declined.code, declined.out, refs(civman)) == (0, "", before)
    assert "Move 1 file" in declined.err
    assert "nothing was removed" in declined.err

    agreed = typing("y", "remove", CHECKPOINT)
    assert (agreed.code, refs(civman)) == (0, [])
    assert "moved 1 file" in agreed.out


@pytest.mark.usefixtures("held")
def test_gc_asks_first(typing: Typing, civman: Civman) -> None:
    assert civman("remove", CHECKPOINT, "--yes").code == 0
    (removal,) = civman("restore", "--list", "--quiet").out.split()

    declined = typing("n", "gc", "--trash", "0")
    assert (declined.code, declined.out) == (0, "")
    assert "nothing was freed" in declined.err
    assert civman("restore", "--list", "--quiet").out.split() == [removal]

    agreed = typing("y", "gc", "--trash", "0")
    assert (agreed.code, agreed.out.startswith("freed ")) == (0, True)
    assert civman("restore", "--list", "--quiet").out == ""


def test_update_asks_first(held: CivitaiServer, typing: Typing, civman: Civman) -> None:
    model = held.catalogue.model(int(CHECKPOINT))
    assert model is not None
    content = model.versions[1].files[0].content
    newer = DemoVersion(170009, "v9", files=(DemoFile(670009, "harbour_v9.safetensors", content),), base_model="SD 1.5",
                        published_at=utc("2026-05-01"))  # fmt: skip
    held.catalogue.publish(int(CHECKPOINT), newer)
    before = refs(civman)

    declined = typing("n", "update")
    assert (declined.code, declined.out, refs(civman)) == (0, "", before)
    assert "nothing was downloaded" in declined.err

    agreed = typing("y", "update")
    assert (agreed.code, len(refs(civman))) == (0, len(before) + 1)
