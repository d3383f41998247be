import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import NOW, TOKEN, ScriptedServer

from civman.civitai.client import CivitaiClient
from civman.civitai.transport import Transport

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "civitai"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def saved() -> Callable[[str], Any]:
    """Loads one saved answer of the site."""

    def load(name: str) -> Any:
        path = FIXTURES / f"{name}.json"
        if not path.exists():
            pytest.skip("the saved answers are not here")
        return json.loads(path.read_text("utf-8"))

    return load


@pytest.fixture
def site() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def other_site() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def naps() -> list[float]:
    """How long civman would have slept."""
    return []


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def transport(site: ScriptedServer, naps: list[float], notices: list[str]) -> Iterator[Callable[..., Transport]]:
    """Makes transports to `site` that neither sleep nor look at the clock."""
    made: list[Transport] = []

    def make(**options: Any) -> Transport:
        given = {"address": site.address, "token": TOKEN, **options}
        made.append(
            Transport(
                given.pop("address"),
                **{
                    "sleep": naps.append,
                    "clock": lambda: NOW,
                    "jitter": lambda: 0.0,
                    "on_notice": notices.append,
                    **given,
                },
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def client(transport: Callable[..., Transport], notices: list[str]) -> CivitaiClient:
    return CivitaiClient(transport(), clock=lambda: NOW, on_notice=notices.append)
