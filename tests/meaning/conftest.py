"""A library, one loaded model, many pictures."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from civman.library import Library

if TYPE_CHECKING:
    from tiny_studio import Draw


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # tiny tensors are slower on several
    with Library.open(tmp_path_factory.mktemp("studio")) as opened:
        yield opened


@pytest.fixture
def draw(studio: Library) -> "Draw":
    """`draw(ask, ask, …, count=6)`: one `Shots` for each ask, all from one loaded model."""
    from tiny_studio import shots

    return lambda *asks, count=6: shots(studio, asks, count)
