"""Every saved answer of CivitAI goes through the client into domain values, and comes out of the index unchanged."""

import importlib.util
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from running import OWN_ANSWERS, SHARED

from civman.civitai.client import CivitaiClient
from civman.civitai.transport import Transport
from civman.domain.search_query import SearchQuery
from civman.index import Index, Source

SAVED = SHARED / "fixtures" / "civitai"
NOW = datetime(2026, 8, 15, 12, tzinfo=UTC)
FOLDERS = {"own": OWN_ANSWERS, "saved": SAVED}


def scripted_server() -> Any:
    """The loopback server of the client's tests."""
    path = Path(__file__).parent.parent / "civitai" / "scripted_server.py"
    if "scripted_server" not in sys.modules:
        spec = importlib.util.spec_from_file_location("scripted_server", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["scripted_server"] = module
        spec.loader.exec_module(module)
    return sys.modules["scripted_server"].ScriptedServer()


def names(pattern: str) -> list[str]:
    return sorted(f"{which}/{path.name}" for which, folder in FOLDERS.items() for path in folder.glob(pattern))


def read(name: str) -> Any:
    which, file = name.split("/")
    return json.loads((FOLDERS[which] / file).read_text("utf-8"))


def kept(tmp_path: Path, model: Any, versions: tuple[Any, ...], source: Source) -> None:
    with Index.open(tmp_path / "library.db") as index:
        index.remember((model, versions), fetched_at=NOW, source=source)
    with Index.open(tmp_path / "library.db") as index:
        found = index.model(model.id)
        assert found is not None
        assert found[0] == model
        assert json.loads(found[0].raw) == json.loads(model.raw)
        for version in versions:
            again = index.version(version.id)
            assert again == version
            assert json.loads(again.raw) == json.loads(version.raw)


@pytest.mark.parametrize("name", names("model-*.json"))
def test_a_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    answer = read(name)
    with scripted_server() as site, CivitaiClient(Transport(site.address), clock=lambda: NOW) as client:
        site.answers(answer)
        page = client.model(answer["id"])

    assert len(page.versions) == len(answer["modelVersions"])
    kept(tmp_path, page.model, page.versions, Source.MODEL)


@pytest.mark.parametrize("name", names("version-*.json"))
def test_a_version_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    answer = read(name)
    with scripted_server() as site, CivitaiClient(Transport(site.address), clock=lambda: NOW) as client:
        site.answers(answer)
        version = client.version(answer["id"])

    assert len(version.files) == len(answer["files"])
    kept(tmp_path, version.model, (version,), Source.VERSION)


@pytest.mark.parametrize("name", names("models-list-*.json"))
def test_a_page_of_a_search_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    answer = read(name)
    answer = answer if "items" in answer else {"items": [answer], "metadata": {}}
    with scripted_server() as site, CivitaiClient(Transport(site.address), clock=lambda: NOW) as client:
        site.answers(answer)
        pages = list(client.search(SearchQuery(nsfw=True)))

    assert len(pages) == len(answer["items"])
    for page in pages:
        kept(tmp_path, page.model, page.versions, Source.SEARCH)


def test_the_three_states_of_paid_access_come_back_as_they_were(tmp_path: Path) -> None:
    path = SAVED / "versions-paid-access-states.2026-08.json"
    if not path.exists():
        pytest.skip("the saved answers are not here")
    saved = json.loads(path.read_text("utf-8"))
    versions = saved["modelVersions"]
    answer = {"id": 77, "name": "gated", "type": "LORA", "modelVersions": versions}
    with scripted_server() as site, CivitaiClient(Transport(site.address), clock=lambda: NOW) as client:
        site.answers(answer)
        page = client.model(77)

    assert len(page.versions) == len(versions) == sum(version.gate is not None for version in page.versions)
    kept(tmp_path, page.model, page.versions, Source.MODEL)
