"""An index on a real file."""

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from index_values import FACTS, NOON, blob

from civman.domain.catalog import Asset
from civman.index import Index


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "library" / "library.db"


@pytest.fixture(scope="session")
def empty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new library's file: made once, since the migration takes a fifth of a second."""
    made = tmp_path_factory.mktemp("empty") / "library.db"
    Index.open(made).close()
    return made


@pytest.fixture
def index(path: Path, empty_library: Path) -> Iterator[Index]:
    path.parent.mkdir()
    shutil.copy(empty_library, path)
    with Index.open(path) as opened:
        yield opened


@pytest.fixture
def add(index: Index) -> Callable[..., Asset]:
    """Records `text`'s bytes under `name`, later each time."""
    times = iter(range(1, 10_000))

    def record(name: str = "fox.safetensors", text: str | None = None, **more: object) -> Asset:
        given: dict[str, object] = {
            "blob": blob(text or name), "path": f"blobs/{name}", "origin": "civitai", "version": None, "file": None,
            "facts": FACTS, "added_at": NOON + timedelta(seconds=next(times)),
        }  # fmt: skip
        return index.record(name=name, **(given | more))  # type: ignore[arg-type]

    return record
