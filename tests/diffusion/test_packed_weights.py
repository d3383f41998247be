# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Packed weights become the numbers that other programs make of them; what civman cannot unpack is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
gguf = pytest.importorskip("gguf")

from diffusers.quantizers.gguf.utils import dequantize_functions
from gguf import GGMLQuantizationType as Kind
from packed_files import QUANTISED, SCALES, int8, quantised, random_blocks, settings, write_gguf
from safetensors.torch import load_file, save_file

from civman.diffusion.component_layouts import Source
from civman.diffusion.mapped_weights import Weights
from civman.domain.files.gguf_types import BLOCKS, TYPES
from civman.errors import CannotRender, Cause, InvalidModelFile
from civman.manage.inspection import inspect_path

RECORDED = Path(__file__).parents[1] / "fixtures" / "bitsandbytes.safetensors"
OTHERS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0")


def test_types_and_sizes_are_those_of_the_package() -> None:
    known = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind.name in BLOCKS}

    assert known == BLOCKS
    assert {kind.value: kind.name for kind in Kind if kind.value in TYPES} == TYPES


@pytest.mark.parametrize("kind", SCALES)
def test_each_block_type_is_what_diffusers_makes_of_it(tmp_path, kind) -> None:
    data = random_blocks(kind, 5, 512, seed=len(kind))
    path = write_gguf(tmp_path / "a.gguf", {"layer.weight": (data, kind)})

    found = Weights(path).read(Source("layer.weight"))

    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = torch.from_numpy(data.reshape(-1, size).copy())
    theirs = dequantize_functions[Kind[kind]](blocks, block, size, torch.float32).reshape(5, 512)
    assert found.dtype is torch.float32
    assert torch.allclose(found, theirs.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [*SCALES, *OTHERS])
def test_each_block_type_is_exactly_what_the_package_makes_of_it(tmp_path, kind) -> None:
    data = random_blocks(kind, 3, 256, seed=1) if kind in SCALES else _any_bytes(kind)
    path = write_gguf(tmp_path / "a.gguf", {"first.weight": (data, kind), "layer.weight": (data, kind)})

    weights = Weights(path)

    theirs = torch.from_numpy(gguf.quants.dequantize(data, Kind[kind]).copy())
    assert torch.equal(weights.read(Source("layer.weight")).nan_to_num(), theirs.nan_to_num())
    assert weights.shapes == dict.fromkeys(("first.weight", "layer.weight"), (3, 256))
    assert weights.is_packed("layer.weight")


def _any_bytes(kind: str) -> np.ndarray:
    _, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    return np.random.default_rng(2).integers(0, 256, (3, size), dtype=np.uint8)


def test_a_gguf_file_is_read_as_its_own_reader_reads_it(tmp_path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"blocks.{n}.weight": torch.randn(6 + n, 64, generator=generator) for n in range(4)}
    tensors |= {"blocks.0.bias": torch.randn(6), "conv.weight": torch.randn(4, 3, 3, 5), "one": torch.randn(1)}
    stored, _ = quantised(tensors, "Q5_1")
    half = torch.randn(3, 7).half()
    stored["half"] = (half.numpy(), "F16")
    bf16 = torch.randn(3, 8).to(torch.bfloat16)
    stored["bf16"] = (gguf.quants.quantize(bf16.float().numpy(), Kind.BF16), "BF16")
    path = write_gguf(tmp_path / "a.gguf", stored, {"general.name": "a test"})

    weights = Weights(path)

    theirs = {each.name: each for each in gguf.GGUFReader(path).tensors}
    assert weights.shapes == {name: tuple(map(int, each.shape))[::-1] for name, each in theirs.items()}
    for name, each in theirs.items():
        values = torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy())
        assert torch.equal(weights.read(Source(name)).float(), values.reshape(weights.shapes[name])), name
    assert (weights.read(Source("half")).dtype, weights.read(Source("bf16")).dtype) == (torch.float16, torch.bfloat16)
    assert weights.metadata["general.name"] == "a test"
    assert inspect_path(path).header.shapes == weights.shapes


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_third_of_a_joint_layer_is_the_same_rows(tmp_path, kind) -> None:
    stored, meant = quantised({"qkv.weight": torch.randn(12, 96)}, kind)
    weights = Weights(write_gguf(tmp_path / "a.gguf", stored))

    for third in range(3):
        found = weights.read(Source("qkv.weight", third=third))
        assert torch.equal(found, meant["qkv.weight"][4 * third : 4 * third + 4])


def test_a_convolution_stored_as_rows_has_the_shape_that_the_file_states(tmp_path) -> None:
    weight = torch.randn(8, 4, 3, 3)
    data = gguf.quants.quantize(weight.reshape(9, 32).numpy(), Kind.Q8_0)
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "sdxl")
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [8, 4, 3, 3])
    writer.add_tensor("conv.weight", data, raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = Weights(path).read(Source("conv.weight"))

    assert torch.equal(found, torch.from_numpy(gguf.quants.dequantize(data, Kind.Q8_0).reshape(8, 4, 3, 3).copy()))


def test_a_gguf_file_that_ends_too_early_is_refused(tmp_path) -> None:
    stored, _ = quantised({"a.weight": torch.randn(12, 96)}, "Q8_0")
    path = write_gguf(tmp_path / "a.gguf", stored)
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(InvalidModelFile, match="truncated"):
        Weights(path)


@pytest.mark.parametrize("name", [name for name in load_file(RECORDED) if name.startswith("expected.")])
def test_four_bits_are_what_bitsandbytes_makes_of_them(name) -> None:
    weights = Weights(RECORDED)
    layer = f"{name.removeprefix('expected.')}.weight"

    found = weights.read(Source(layer))

    expected = weights.read(Source(name))
    assert weights.shapes[layer] == tuple(expected.shape)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_only_weights_remain_of_a_file_in_four_bits() -> None:
    names = set(Weights(RECORDED).shapes)

    assert all(name.startswith("expected.") or name.endswith(".weight") for name in names)


@pytest.mark.parametrize("group", [0, 4, 16, 64, 256])
@pytest.mark.parametrize("where", ["tensor", "metadata"])
def test_int8_weights_are_scaled_and_turned_back(tmp_path, group, where) -> None:
    codes, scale, meant = int8(torch.randn(6, 512, generator=torch.Generator().manual_seed(group)), group)
    said = {"format": "int8_tensorwise"} | ({"convrot": True, "convrot_groupsize": group} if group else {})
    tensors = {"layer.weight": codes, "layer.weight_scale": scale.reshape(-1, 1), "layer.bias": torch.ones(6)}
    metadata = {}
    if where == "tensor":
        tensors["layer.comfy_quant"] = settings(**said)
    else:
        metadata["_quantization_metadata"] = json.dumps({"layers": {"layer": said}})
    save_file(tensors, tmp_path / "a.safetensors", metadata)

    weights = Weights(tmp_path / "a.safetensors")

    assert set(weights.shapes) == {"layer.weight", "layer.bias"}
    assert torch.allclose(weights.read(Source("layer.weight")).double(), meant, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stated", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_new_fp8_files_are_the_product_with_their_scale(tmp_path, stated, as_bytes) -> None:
    dtype = getattr(torch, stated)
    codes = torch.randn(6, 8).to(dtype)
    scale = torch.tensor(0.037)
    tensors = {
        "layer.weight": codes.view(torch.uint8) if as_bytes else codes, "layer.weight_scale": scale,
        "layer.input_scale": torch.tensor(3.0), "layer.comfy_quant": settings(format=stated),
        "plain.weight": torch.randn(4, 4, dtype=torch.bfloat16),
    }  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")

    weights = Weights(tmp_path / "a.safetensors")

    assert torch.equal(weights.read(Source("layer.weight")), codes.float() * scale)
    assert set(weights.shapes) == {"layer.weight", "plain.weight"}
    assert weights.read(Source("plain.weight")).dtype is torch.bfloat16


FP8 = torch.zeros(8, 32).to(torch.float8_e4m3fn)
BYTES = torch.zeros(8, 16, dtype=torch.uint8)
ODD = {
    "nvfp4": {"l.weight": BYTES, "l.weight_scale": FP8[:, :2].contiguous(), "l.weight_scale_2": torch.ones(1)},
    "mxfp8": {
        "l.weight": FP8, "l.weight_scale": torch.zeros(8, 1, dtype=torch.uint8),
        "l.comfy_quant": settings(format="mxfp8"),
    },
    "svdquant": {"l.qweight": BYTES.to(torch.int8), "l.wscales": torch.ones(1, 8)},
    "convrot_w4a4": {
        "l.weight": BYTES, "l.weight_scale": torch.ones(8), "l.comfy_quant": settings(format="convrot_w4a4"),
    },
    "int8_blockwise": {
        "l.weight": FP8.to(torch.int8), "l.weight_scale": torch.ones(8),
        "l.comfy_quant": settings(format="int8_blockwise"),
    },
    "int8 in an unstated format": {"l.weight": FP8.to(torch.int8), "l.weight_scale": torch.ones(8)},
    "packed int4": {"l.qweight": torch.zeros(4, 4, dtype=torch.int32), "l.qzeros": torch.zeros(1, dtype=torch.int32)},
}  # fmt: skip


@pytest.mark.parametrize("named", ODD)
def test_forms_that_civman_cannot_unpack_are_refused_by_name_before_any_weight_is_read(tmp_path, named) -> None:
    path = tmp_path / "a.safetensors"
    save_file(ODD[named], path)

    with pytest.raises(CannotRender, match=named) as caught:
        inspect_path(path).model_header()

    assert caught.value.code == Cause.QUANTISED_WEIGHTS


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"l.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "settings"),
        ({"l.comfy_quant": settings(format="int8_tensorwise", convrot=True, convrot_groupsize=8)}, "groups of 8"),
        ({"l.comfy_quant": settings(format="int8_tensorwise", convrot=True, convrot_groupsize=64)}, "groups of 64"),
        ({"l.weight_scale": torch.ones(5)}, "does not fit"),
        ({"l.weight": FP8}, "F8_E4M3"),
    ],
)
def test_helpers_that_do_not_fit_their_weight_are_refused(tmp_path, wrong, said) -> None:
    tensors = {
        "l.weight": torch.zeros(8, 32, dtype=torch.int8), "l.weight_scale": torch.ones(8),
        "l.comfy_quant": settings(format="int8_tensorwise"),
    }  # fmt: skip
    save_file(tensors | wrong, tmp_path / "a.safetensors")

    with pytest.raises(InvalidModelFile, match=said):
        Weights(tmp_path / "a.safetensors")
