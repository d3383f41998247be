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


@pytest.fixture
def face_files(tmp_path: Path) -> Path:
    """Pickles of the four models as they are published; the detector finds one face, near the left top corner."""
    import torch
    from face_models import FILE_NAMES, tensors_of

    folder = tmp_path / "faces"
    folder.mkdir()
    for kind, name in FILE_NAMES.items():
        tensors = tensors_of(kind)
        if kind == "retinaface":
            heads = [key for key in tensors if "Head" in key]
            tensors |= {key: torch.zeros_like(tensors[key]) for key in heads}
            tensors["ClassHead.2.conv1x1.bias"] = torch.tensor([0.0, -50.0, 0.0, 50.0])
            for level in (0, 1):
                tensors[f"ClassHead.{level}.conv1x1.bias"] = torch.tensor([0.0, -50.0] * 2)
            tensors["BboxHead.2.conv1x1.bias"] = torch.tensor([0.0, 0.0, 9.0, 9.0] * 2)
            marks = [-0.6, -0.7, 0.6, -0.65, 0.05, 0.0, -0.5, 0.75, 0.55, 0.7]
            tensors["LandmarkHead.2.conv1x1.bias"] = torch.tensor([mark + 1.5 for mark in marks] * 2)
            tensors = {f"module.{key}": value for key, value in tensors.items()}
        wrapped = {"params_ema": tensors} if kind in ("gfpgan", "codeformer") else tensors
        torch.save(wrapped, folder / name)
    return folder


@pytest.fixture
def with_faces(civman: Civman, stocked: Path, face_files: Path) -> None:
    assert civman("import", "--offline", face_files).code == 0


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Further checkpoints: one of each family with other weights, an inpainting one, and a refiner."""
    import tiny_models

    folder = tmp_path_factory.mktemp("others")
    for kind in ("sd1", "sdxl"):
        tiny_models.write(folder / f"other-{kind}.safetensors", kind, seed=21)
    tiny_models.write(folder / "masked-sd1.safetensors", "sd1-inpaint")
    tiny_models.write(folder / "finisher.safetensors", "refiner", seed=31)
    return folder


@pytest.fixture
def filled(stocked: Path, others: Path, civman: Civman) -> dict[str, Path]:
    """The library holds the stock and the further checkpoints. Returns the files by their names."""
    assert civman("import", "--offline", others).code == 0
    return {path.stem: path for folder in (stocked, others) for path in folder.glob("*.safetensors")}
