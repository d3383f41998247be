"""What all tests share: the demo's CivitAI on loopback, a library of one's own, and civman through its front door."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from guards import let_children_be_interrupted, no_port_and_no_file_stays, no_process_stays  # noqa: F401
from running import Civman, Run

from civman.cli.app import main
from civman.demo.demo_catalog import Catalogue
from civman.demo.demo_models import Shelf, demo_catalogue
from civman.demo.server import CivitaiServer
from civman.library import Library


def pytest_configure() -> None:
    let_children_be_interrupted()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="rewrite tests/snapshots")


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """The demo's files, made once."""
    return Shelf()


@pytest.fixture
def catalogue(shelf: Shelf) -> Catalogue:
    return demo_catalogue(shelf)


@pytest.fixture
def server(catalogue: Catalogue) -> Iterator[CivitaiServer]:
    with CivitaiServer(catalogue) as running:
        yield running


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests reaches them, and no file of theirs is touched."""
    for name in ("CIVMAN_CIVITAI_URL", "CIVITAI_API_TOKEN", "CIVMAN_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("CIVMAN_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setenv("CIVMAN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The library's folder, not made yet."""
    return tmp_path / "library"


@pytest.fixture
def online(server: CivitaiServer, monkeypatch: pytest.MonkeyPatch) -> CivitaiServer:
    """The demo's CivitAI, configured as a user's mirror would be, with a key that it accepts."""
    monkeypatch.setenv("CIVMAN_CIVITAI_URL", server.url)
    monkeypatch.setenv("CIVITAI_API_TOKEN", server.token)
    return server


@pytest.fixture
def civman(capsys: pytest.CaptureFixture[str]) -> Civman:
    """Run a command as a person would: `civman("list", "--json")`."""

    def run(*argv: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Run(int(code), out, err)

    return run


@pytest.fixture
def library(root: Path) -> Iterator[Library]:
    with Library.open(root) as opened:
        yield opened
