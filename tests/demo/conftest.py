"""Fixtures of the demo's tests."""

from collections.abc import Callable

import pytest
from asking import Reply, ask

from civman.demo.server import CivitaiServer


@pytest.fixture
def get(server: CivitaiServer) -> Callable[..., Reply]:
    """GET from the API: path, then headers by name."""
    return lambda path, **headers: ask(server.url + path, **headers)
