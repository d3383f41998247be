"""Fixtures of the demo's tests: one shelf of bytes for all, a fresh catalogue for each."""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from civman.demo.catalogue import Catalogue
from civman.demo.collection import Shelf, demo_catalogue
from civman.demo.server import DEMO_TOKEN, CivitaiServer

KEY = {"Authorization": f"Bearer {DEMO_TOKEN}"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    """One request on its own connection; no redirect is followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {"User-Agent": "civman-tests/1", **named})
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def catalogue(shelf: Shelf) -> Catalogue:
    return demo_catalogue(shelf)


@pytest.fixture
def server(catalogue: Catalogue) -> Iterator[CivitaiServer]:
    with CivitaiServer(catalogue) as running:
        yield running


@pytest.fixture
def get(server: CivitaiServer) -> Callable[..., Reply]:
    """GET from the API: path, then headers by name."""
    return lambda path, **headers: ask(server.url + path, **headers)
