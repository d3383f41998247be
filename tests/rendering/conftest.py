"""Tiny checkpoints with all of CLIP's words, adapters and an embedding for them, and a library that holds them."""

import socket
from pathlib import Path

import pytest
from running import Civman

KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on several threads, and very much so beside other work on the same cores."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model files, made once; nobody writes there."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import tiny_models
    import torch
    from tiny_adapters import low_rank, write_safetensors

    folder = tmp_path_factory.mktemp("stock")
    for kind in KINDS:
        tiny_models.write(folder / f"tiny-{kind}.safetensors", kind)
    block = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn2_to_{}"
    for name, level, width, context in (("ink", 0, 16, 24), ("xl-ink", 1, 32, 56)):
        names = {block.format(level, part): torch.nn.Linear(context, width) for part in "kv"}
        write_safetensors(folder / f"{name}.safetensors", low_rank(names, 5, size=0.8))
    ink = low_rank({block.format(0, part): torch.nn.Linear(24, 16) for part in "kv"}, 5)
    empty = {key: value * 0 if "lora_up" in key else value for key, value in ink.items()}
    write_safetensors(folder / "empty.safetensors", empty)
    stray = low_rank({"lora_unet_down_blocks_7_attentions_0_proj_in": torch.nn.Conv2d(16, 16, 1)}, 5)
    write_safetensors(folder / "part.safetensors", ink | stray)
    generator = torch.Generator().manual_seed(3)
    write_safetensors(folder / "easydream.safetensors", {"emb_params": torch.randn(3, 24, generator=generator)})
    for name, other in (("ink2", "ink"), ("xl-ink2", "xl-ink")):  # the same layers, other numbers
        level, width, context = (0, 16, 24) if other == "ink" else (1, 32, 56)
        names = {block.format(level, part): torch.nn.Linear(context, width) for part in "kv"}
        write_safetensors(folder / f"{name}.safetensors", low_rank(names, 6, size=0.8))
    prefix, tensors = "first_stage_model.", tiny_models.tensors_of("sd1", seed=9)
    vae = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    tiny_models.save(vae, folder / "other-vae.safetensors", {})
    return folder


@pytest.fixture
def stocked(stock: Path, civman: Civman) -> Path:
    """The library holds all of it, where it lies."""
    assert civman("import", "--offline", stock).code == 0
    return stock


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
