# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Adapters and packed weights of transformer families: the loaded model is that of a file with the changed tensors."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from safetensors.torch import load_file, save_file

from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.match_adapter import Adapter, weights_of
from civman.diffusion.merge_adapters import apply, restore
from civman.diffusion.open_model import load
from civman.domain.adapters.module_names import ModuleIndex
from civman.errors import Cause, Incompatible
from civman.store.read_header import read_header

FAMILIES = {family.name: family for family in FLOW_FAMILIES if family.name in tiny_flows.TINY}
R = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flows")
    for name, family in FAMILIES.items():
        tiny_flows.write(folder / f"{name}.safetensors", name, family)
    return folder


def part_of(name: str) -> tuple[str, str] | None:
    """kohya's prefix and name for a tensor of a file; None for parts that have no adapters."""
    for prefix, theirs in (
        ("model.diffusion_model.", "lora_unet_"), ("text_encoders.clip_l.transformer.", "lora_te1_"),
        ("text_encoders.t5xxl.transformer.", "lora_te3_"),
    ):  # fmt: skip
        if name.startswith(prefix):
            return theirs, name.removeprefix(prefix)
    return None


def kohya(tensors):
    """A LoRA on every matrix of a file except tables of tokens and positions, and the file's tensors with it."""
    generator = torch.Generator().manual_seed(5)
    lora, merged = {}, dict(tensors)
    for name, tensor in tensors.items():
        found = part_of(name)
        if found is None or tensor.ndim != 2 or not name.endswith(".weight") or "embed" in name or "shared" in name:
            continue
        module = found[0] + found[1].removesuffix(".weight").replace(".", "_")
        down = torch.randn(R, tensor.shape[1], generator=generator) * 0.2
        up = torch.randn(tensor.shape[0], R, generator=generator) * 0.2
        lora |= {
            f"{module}.lora_down.weight": down,
            f"{module}.lora_up.weight": up,
            f"{module}.alpha": torch.tensor(1.0),
        }
        merged[name] = tensor.float() + 0.5 * (1.0 / R) * (up @ down)
    return lora, merged


def parameters(model):
    return {f"{part}.{name}": value for part, module in model.components.items()
            for name, value in module.named_parameters()}  # fmt: skip


def without_vae(model):
    return {name: module for name, module in model.components.items() if name != "vae"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_in_the_file_s_names_gives_the_model_of_the_merged_file(files: Path, tmp_path: Path, name: str) -> None:
    path = files / f"{name}.safetensors"
    lora, merged = kohya(load_file(path))
    save_file(lora, tmp_path / "lora.safetensors")
    save_file(merged, tmp_path / "merged.safetensors")
    model = load(path, dtype=torch.float32)
    before = {key: value.clone() for key, value in parameters(model).items()}

    (report,) = apply(
        without_vae(model), model.base_tensor, [Adapter(tmp_path / "lora.safetensors", "0" * 64, 0.5, 0.5)],
        sources=model.sources,
    )  # fmt: skip

    assert report.unmatched == ()
    assert len(report.matched) == len(lora) // 3 > 20
    expected = parameters(load(tmp_path / "merged.safetensors", dtype=torch.float32))
    for key, value in parameters(model).items():
        assert torch.allclose(value, expected[key], atol=1e-5), key

    restore(model.components, model.base_tensor, [report])
    assert all(torch.equal(value, before[key]) for key, value in parameters(model).items())


@pytest.mark.parametrize("name", FAMILIES)
def test_check_and_merge_know_the_same_names_with_the_same_shapes(files: Path, name: str) -> None:
    path = files / f"{name}.safetensors"
    by_header = ModuleIndex.of_header(read_header(path))
    model = load(path, dtype=torch.float32)
    loaded = weights_of(without_vae(model), sources=model.sources)

    original = [key.removeprefix("model.diffusion_model.") for key in read_header(path).shapes if "diffusion" in key]
    theirs = [key for key, _ in model.components["transformer"].named_parameters()]
    assert len(theirs) > 20
    for key in (*original, *theirs):
        if key.endswith(".weight"):
            module = key.removesuffix(".weight").replace(".", "_")
            shape = loaded.find("unet", module)
            assert shape is not None, key
            assert len(shape) < 2 or by_header.find("unet", module) == shape, key


def test_an_adapter_of_another_family_is_refused_before_any_weight_changes(files: Path, tmp_path: Path) -> None:
    tensors = {}
    for number in range(3):
        module = f"lora_unet_down_blocks_{number}_attentions_0_proj_in"
        tensors |= {f"{module}.lora_down.weight": torch.randn(R, 8), f"{module}.lora_up.weight": torch.randn(8, R)}
    save_file(tensors, tmp_path / "sd1.safetensors")
    model = load(files / "flux1.safetensors", dtype=torch.float32)

    with pytest.raises(Incompatible, match="fits no part of this model") as caught:
        apply(
            without_vae(model), model.base_tensor, [Adapter(tmp_path / "sd1.safetensors", "0" * 64)],
            sources=model.sources,
        )  # fmt: skip

    assert caught.value.code == Cause.ADAPTER_NO_MATCH


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_gives_the_model_of_the_unpacked_file(files: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf")
    from packed_files import quantised, write_gguf

    tensors = load_file(files / f"{name}.safetensors")
    stored, meant = quantised(tensors, "Q8_0")
    packed = write_gguf(tmp_path / "packed.gguf", stored)
    save_file({key: value.contiguous() for key, value in meant.items()}, tmp_path / "plain.safetensors")

    ours = parameters(load(packed, dtype=torch.float32))

    theirs = parameters(load(tmp_path / "plain.safetensors", dtype=torch.float32))
    assert sum(kind == "Q8_0" for _, kind in stored.values()) > 5
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_streamed_gguf_file_has_the_layers_of_a_loaded_one(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from packed_files import quantised, write_gguf

    stored, _ = quantised(load_file(files / "flux1.safetensors"), "Q5_0")
    packed = write_gguf(tmp_path / "packed.gguf", stored)
    whole, sparing = load(packed, dtype=torch.float32), load(packed, dtype=torch.float32, leaves=100)
    stream(sparing)
    width = whole.components["transformer"].x_embedder.weight.shape[1]
    inner = whole.components["transformer"].transformer_blocks[0].ff.net[0].proj
    streamed = sparing.components["transformer"].transformer_blocks[0].ff.net[0].proj

    assert streamed.weight.is_meta
    assert SMALL > 100
    x = torch.ones(1, inner.weight.shape[1])
    assert torch.equal(inner(x), streamed(x))
    assert torch.equal(
        whole.components["transformer"].x_embedder(torch.ones(1, width)),
        sparing.components["transformer"].x_embedder(torch.ones(1, width)),
    )


def test_a_text_encoder_in_gguf_gives_the_model_of_the_unpacked_file(files: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from packed_files import quantised, write_gguf

    prefix = "text_encoders.t5xxl.transformer."
    tensors = load_file(files / "flux1.safetensors")
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own.pop("encoder.embed_tokens.weight", None)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 4)
    stored, meant = quantised(own, "Q8_0")
    packed = {table.get_name(key, try_suffixes=(".weight",)): value for key, value in stored.items()}
    path = write_gguf(tmp_path / "t5.gguf", packed, architecture="t5encoder")
    rest = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    save_file(rest, tmp_path / "rest.safetensors")

    model = load(tmp_path / "rest.safetensors", dtype=torch.float32, parts={"t5": path})

    for name, value in model.components["text_encoder_2"].named_parameters():
        assert torch.equal(value, meant["shared.weight" if "embed_tokens" in name else name]), name
