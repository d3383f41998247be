"""A rig for each test: server, library folder, environment."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Fault, faulty_server
from rig import QUICK, MakeRig, Rig, rig_catalogue

from civman.demo.demo_catalog import Catalogue
from civman.domain.timeouts import Patience
from civman.index import Index


@pytest.fixture(scope="session")
def empty_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library's database without rows, made once: making one takes longer than most of these tests."""
    path = tmp_path_factory.mktemp("index") / "library.db"
    Index.open(path).close()
    return path


@pytest.fixture
def rigged(
    root: Path, empty_index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeRig]:
    """A rig with these faults from the start."""
    with contextlib.ExitStack() as stack:

        def make(*faults: Fault, catalogue: Catalogue | None = None, patience: Patience = QUICK) -> Rig:
            server = stack.enter_context(faulty_server(catalogue or rig_catalogue(), *faults))
            monkeypatch.setenv("CIVMAN_CIVITAI_URL", server.url)
            monkeypatch.setenv("CIVITAI_API_TOKEN", server.token)
            root.mkdir(exist_ok=True)
            shutil.copy(empty_index, root / "library.db")
            return Rig(server, root, capsys.readouterr, patience)

        yield make
