# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Files of every transformer family in every place and form: the loaded model has the numbers that the file means.

A transformer may be in one file with its parts, or alone behind one of several prefixes, and its layers may be packed.
What packed layers mean is computed here, or by the package `gguf`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("gguf")

import tiny_flows
from packed_files import QUANTISED, int8, quantised, settings, write_gguf
from safetensors.torch import save_file
from test_flow_pictures import family_of

from civman.diffusion.families.flow_family import PREFIXES
from civman.diffusion.open_model import load

Tensors = dict[str, Any]
PREFIX = tiny_flows.PREFIX


@pytest.fixture(scope="module")
def whole() -> Callable[[str], Tensors]:
    """A family's tensors in one file."""
    return cache(lambda name: tiny_flows.original_tensors(name, family_of(name), tiny_flows.modules(name)))


def parameters(model: Any) -> Tensors:
    return {
        f"{part}.{name}": value
        for part, module in model.components.items()
        for name, value in module.named_parameters()
    }


def require_same(model: Any, expected: Tensors) -> None:
    found = parameters(model)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    assert [key for key in model.unused if "embed_tokens" not in key] == []


@pytest.mark.parametrize(("name", "prefix"), tiny_flows.cases(PREFIXES))
def test_a_transformer_alone_behind_any_prefix_is_that_of_the_whole_file(
    whole: Callable[[str], Tensors], tmp_path: Path, name: str, prefix: str
) -> None:
    tensors = whole(name)
    save_file(tensors, tmp_path / "whole.safetensors")
    expected = parameters(load(tmp_path / "whole.safetensors"))
    own, parts = tiny_flows.apart(family_of(name), tensors, tmp_path)
    vae = parts.pop("vae")
    save_file({f"{prefix}{key}": value for key, value in own.items()}, tmp_path / "alone.safetensors")

    model = load(tmp_path / "alone.safetensors", vae=vae, parts=parts)

    require_same(model, expected)


def plain_fp8(weight: Any, stem: str) -> tuple[Tensors, Any]:
    codes = weight.to(torch.float8_e4m3fn)
    return {f"{stem}.weight": codes}, codes.float()


def scaled_fp8(weight: Any, stem: str) -> tuple[Tensors, Any]:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    helpers = {f"{stem}.scale_weight": scale, f"{stem}.scale_input": torch.tensor(3.0)}
    return {f"{stem}.weight": codes, **helpers}, codes.float() * scale


def mixed_fp8(weight: Any, stem: str) -> tuple[Tensors, Any]:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    helpers = {f"{stem}.weight_scale": scale, f"{stem}.comfy_quant": settings(format="float8_e4m3fn")}
    return {f"{stem}.weight": codes, **helpers}, codes.float() * scale


def whole_numbers(weight: Any, stem: str) -> tuple[Tensors, Any]:
    codes, scale, meant = int8(weight, 0)
    helpers = {f"{stem}.weight_scale": scale.reshape(-1, 1), f"{stem}.comfy_quant": settings(format="int8_tensorwise")}
    return {f"{stem}.weight": codes, **helpers}, meant.float()


FORMS = {
    "fp8": plain_fp8, "fp8 with `scale_weight`": scaled_fp8, "fp8 with `comfy_quant`": mixed_fp8,
    "int8 with a scale for each row": whole_numbers,
}  # fmt: skip
"""The forms of packed layers in a safetensors file, by their formulas."""


@pytest.mark.parametrize(("name", "form"), tiny_flows.cases(FORMS))
def test_packed_layers_are_the_numbers_that_they_mean(
    whole: Callable[[str], Tensors], tmp_path: Path, name: str, form: str
) -> None:
    stored: Tensors = {}
    meant: Tensors = {}
    count = 0
    for key, value in whole(name).items():
        meant[key] = value
        if key.startswith(PREFIX) and key.endswith(".weight") and value.ndim == 2 and ".embed." not in key:
            packed, meant[key] = FORMS[form](value, key.removesuffix(".weight"))
            stored, count = stored | packed, count + 1
        else:
            stored[key] = value
    if "scale_weight" in form:
        stored[f"{PREFIX}scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(stored, tmp_path / "packed.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")

    model = load(tmp_path / "packed.safetensors", dtype=torch.float32)

    assert count > 20
    expected = parameters(load(tmp_path / "meant.safetensors", dtype=torch.float32))
    for key, value in parameters(model).items():
        assert torch.allclose(value, expected[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize(("name", "kind"), tiny_flows.cases(QUANTISED))
def test_a_transformer_in_gguf_has_the_numbers_of_the_package(
    whole: Callable[[str], Tensors], tmp_path: Path, name: str, kind: str
) -> None:
    own, parts = tiny_flows.apart(family_of(name), whole(name), tmp_path)
    vae = parts.pop("vae")
    stored, meant = quantised(own, kind)
    save_file({key: value.contiguous() for key, value in meant.items()}, tmp_path / "meant.safetensors")

    model = load(write_gguf(tmp_path / "packed.gguf", stored), dtype=torch.float32, vae=vae, parts=parts)

    assert sum(packed == kind for _, packed in stored.values()) > 5
    require_same(model, parameters(load(tmp_path / "meant.safetensors", dtype=torch.float32, vae=vae, parts=parts)))
