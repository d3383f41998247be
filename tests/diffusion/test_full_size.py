# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Files of Flux.1 dev in their true shapes, with holes for weights, load and compute a step in the planned memory."""

import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import published_sizes
import tiny_flows
from headers import prefix

from civman.diffusion.families.flow_family import FlowEncoded, FlowFamily, Instant
from civman.diffusion.families.flux1 import FLUX1
from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.loader import LoadedModel, unfilled
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.memory_plan import Estimate, MemoryPlan, layer_bytes
from civman.diffusion.model_classes import construct_class
from civman.diffusion.open_model import load
from civman.domain.files.gguf_types import BLOCKS, TYPES
from civman.domain.files.header import Tensor
from civman.domain.files.tokenizer_files import TENSORS
from civman.store.read_header import plain_header, read_gguf, read_header

Shape = tuple[int, ...]
OTHERS = {
    "z-image": (12_000_000_000, 2560, {"cap_feat_dim": 2560}), "qwen-image": (40_000_000_000, 3584, {"num_layers": 60}),
    "hidream": (34_000_000_000, 33 * 4096, {
        "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": (64, 32, 32),
        "llama_layers": [*range(32), *[31] * 16],
    }),
    "auraflow": (13_600_000_000, 2048, {"pos_embed_max_size": 9216}),
}  # fmt: skip
"""Family → the least size of its file in bytes, the width of its text, and the arguments of its class."""
POOLED = {"hidream": 2048}
"""Family → the width of its pooled text."""
CHANNELS = {"auraflow": 4}
"""Family → the number of channels of its latents, if that is not 16."""


def shapes_of(model: str, config: dict[str, object]) -> dict[str, Shape]:
    with unfilled():
        module = construct_class(model, config)
    return {name: tuple(value.shape) for name, value in module.state_dict().items() if "position_ids" not in name}


def transformer(family: FlowFamily = FLUX1, **config: object) -> dict[str, Shape]:
    """A family's file: the rows of diffusers' parameters put together."""
    wanted = shapes_of(family.model, config or {"guidance_embeds": True})
    found: dict[str, Shape] = {}
    for name, source in family.sources("transformer", wanted, "").items():
        before = found.get(source.name, (0,))[0] if source.rows else 0
        found[source.name] = (before + wanted[name][0], *wanted[name][1:])
    return found


def part(family: FlowFamily, role: str) -> dict[str, Shape]:
    """A part's file, without its tokenizer."""
    published = next(iter(published_sizes.MODELS[family.name].values()))
    found = published_sizes.part_shapes(family, role, published.parts.get(role, role))
    return {name: shape for name, shape in found.items() if name not in TENSORS}


def sparse(path: Path, tensors: Mapping[str, tuple[str, Shape]]) -> Path:
    """A safetensors file of full size whose weights are a hole."""
    head, size = prefix({name: (dtype, list(shape)) for name, (dtype, shape) in tensors.items()})
    return _with_hole(path, head, size)


def sparse_gguf(path: Path, shapes: Mapping[str, Shape], kind: str) -> Path:
    """The same as GGUF: matrices in blocks of this type, the rest in single precision."""
    numbers = {name: number for number, name in TYPES.items()}
    head, at = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 0), 0
    for name, shape in shapes.items():
        dtype = kind if len(shape) == 2 and shape[1] % BLOCKS[kind][0] == 0 else "F32"
        raw = name.encode()
        head += struct.pack("<Q", len(raw)) + raw + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", numbers[dtype], at)
        block, size = BLOCKS[dtype]
        at += -(-prod(shape) // block * size // 32) * 32
    return _with_hole(path, head, len(head) + 32 + at)


def _with_hole(path: Path, head: bytes, size: int) -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    if path.stat().st_blocks * 512 > 16 << 20:
        pytest.skip("this file system keeps no holes")
    return path


FORMS = {
    "bf16": lambda path: sparse(path.with_suffix(".safetensors"), {n: ("BF16", s) for n, s in transformer().items()}),
    "scaled fp8": lambda path: sparse(
        path.with_suffix(".safetensors"),
        {n: ("F8_E4M3" if len(s) == 2 else "BF16", s) for n, s in transformer().items()}
        | {f"{n.removesuffix('.weight')}.scale_weight": ("F32", ()) for n, s in transformer().items() if len(s) == 2},
    ),
    "Q4_K": lambda path: sparse_gguf(path.with_suffix(".gguf"), transformer(), "Q4_K"),
    "Q4_K, shallow": lambda path: sparse_gguf(
        path.with_suffix(".gguf"), transformer(guidance_embeds=True, num_layers=1, num_single_layers=1), "Q4_K"
    ),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {need.kind.role: _part_file(folder, FLUX1, need.kind.role) for need in FLUX1.needs}


def _part_file(folder: Path, family: FlowFamily, role: str) -> Path:
    path = folder / f"{family.name}-{role}.safetensors"
    return sparse(path, {name: ("BF16", shape) for name, shape in part(family, role).items()})


def opened(file: Path, parts: dict[str, Path]) -> LoadedModel:
    own = {role: path for role, path in parts.items() if role != "vae"}
    return load(file, dtype=torch.bfloat16, vae=parts["vae"], parts=own, leaves=SMALL)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status")
    if not status.exists() or "RssAnon:" not in (text := status.read_text()):
        pytest.skip("asks Linux for the memory that no file backs")
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


@contextmanager
def growth() -> Iterator[list[int]]:
    """The most that the process's own memory grows within the block."""
    most, done, before = [0], threading.Event(), anonymous_bytes()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def planned(file: Path) -> int:
    """What one layer may take, as a plan says."""
    header = read_gguf(file).as_header if file.suffix == ".gguf" else plain_header(file, read_header(file))
    return layer_bytes(header.tensors.values(), 2)


@pytest.mark.parametrize("form", ["bf16", "Q4_K"])
def test_a_full_size_model_loads_without_its_weights(tmp_path: Path, parts: dict[str, Path], form: str) -> None:
    file = FORMS[form](tmp_path / "flux1-dev")

    with growth() as most:
        model = opened(file, parts)

    assert sum(value.numel() for value in model.components["transformer"].parameters()) == 11_901_408_320
    assert model.unused == ()
    assert most[0] < 300 << 20


def other_model(name: str, folder: Path) -> tuple[FlowFamily, Path, LoadedModel]:
    family = next(each for each in FLOW_FAMILIES if each.name == name)
    _, _, config = OTHERS[name]
    shapes = transformer(family, **config)
    file = sparse(folder / f"{name}.safetensors", {key: ("BF16", shape) for key, shape in shapes.items()})
    parts = {need.kind.role: _part_file(folder, family, need.kind.role) for need in family.needs}
    for need in family.needs:
        if need.kind.tokenizers:
            parts["tokenizer"] = folder / "tokenizer.json"
            parts["tokenizer"].write_bytes(tiny_flows.tokenizer_of(need.kind.role))
    return family, file, opened(file, parts)


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_load_at_full_size_without_their_weights(tmp_path: Path, name: str) -> None:
    with growth() as most:
        _, file, model = other_model(name, tmp_path)

    assert file.stat().st_size > OTHERS[name][0]
    assert model.unused == ()
    assert most[0] < 300 << 20


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_compute_a_step_in_the_memory_of_a_layer(tmp_path: Path, name: str) -> None:
    family, file, model = other_model(name, tmp_path)
    stream(model)
    pooled = torch.zeros(1, POOLED[name], dtype=torch.bfloat16) if name in POOLED else None
    text = FlowEncoded(torch.zeros(1, 4, OTHERS[name][1], dtype=torch.bfloat16), pooled)

    latents = torch.zeros(1, CHANNELS.get(name, 16), 2, 2)

    with growth() as most, torch.no_grad():
        answer = family.velocity(model.components, Instant(latents, (1.0,)), text)

    assert answer.shape == latents.shape
    assert most[0] <= planned(file)


@pytest.mark.long
@pytest.mark.parametrize("form", ["bf16", "scaled fp8", "Q4_K, shallow"])
def test_a_first_step_takes_the_memory_of_a_layer(tmp_path: Path, parts: dict[str, Path], form: str) -> None:
    file = FORMS[form](tmp_path / "flux1-dev")
    model = opened(file, parts)
    stream(model)
    net = model.components["transformer"]

    with growth() as most, torch.no_grad():
        answer = net(
            hidden_states=torch.zeros(1, 1, 64, dtype=torch.bfloat16), timestep=torch.ones(1),
            pooled_projections=torch.zeros(1, 768, dtype=torch.bfloat16), guidance=torch.full((1,), 3.5),
            encoder_hidden_states=torch.zeros(1, 4, 4096, dtype=torch.bfloat16), txt_ids=torch.zeros(4, 3),
            img_ids=torch.zeros(1, 3), return_dict=False,
        )[0]  # fmt: skip

    assert answer.shape == (1, 1, 64)
    assert most[0] <= planned(file)


@pytest.mark.long
def test_the_text_encoder_takes_the_memory_of_a_layer(tmp_path: Path, parts: dict[str, Path]) -> None:
    model = opened(FORMS["bf16"](tmp_path / "flux1-dev"), parts)
    stream(model)

    with growth() as most, torch.no_grad():
        model.components["text_encoder_2"](torch.zeros(1, 4, dtype=torch.int64))

    assert most[0] <= layer_bytes(read_header(parts["t5"]).tensors.values(), 2)


def test_a_plan_knows_the_largest_layer() -> None:
    half, packed = Tensor("BF16", (32128, 4096), 0, 0), Tensor("Q4_K", (32128, 4096), 0, 0)
    numbers = 32128 * 4096

    assert layer_bytes([half], 2) == 2 * numbers + 2**27
    assert layer_bytes([half, packed], 2) == 6 * numbers + 2**27
    assert layer_bytes([], 4) == 2**28
    work = Estimate(unet=1, vae=1, text=1, unet_work=5, vae_work=7, layer=layer_bytes([packed], 2))
    assert work.needed(MemoryPlan.LAYER_BY_LAYER) == 7 + work.layer


def test_rows_of_a_packed_layer_are_unpacked_alone(tmp_path: Path) -> None:
    file = sparse_gguf(tmp_path / "a.gguf", {"wide.weight": (60_000, 1024)}, "Q8_0")
    from civman.diffusion.component_layouts import Source

    weights = Weights(file)
    with growth() as most:
        found = weights.read(Source("wide.weight", rows=(10, 5)))

    assert found.shape == (5, 1024)
    assert most[0] < 60_000 * 1024
