"""Tiny checkpoints of every family, written once for all rendering tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_models

    folder = tmp_path_factory.mktemp("tiny")
    return {
        kind: tiny_models.write(folder / f"{kind}.safetensors", kind, vocab=tiny_models.SMALL_VOCAB)
        for kind in tiny_models.KINDS
    }


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on several threads, and very much so beside other work on the same cores."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
