# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""How much adapters change each block: norms against full products in numpy, and the report of a merge."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from adapter_layouts import KINDS
from tiny_adapters import ldm_names, write_safetensors

from civman.diffusion import merge_adapters
from civman.diffusion.block_norms import block_norms
from civman.diffusion.layer_streaming import SMALL
from civman.diffusion.loader import load
from civman.domain.adapters.block_weights import block_name, block_order

LINEAR = ("attn2.to_k", "attn1.to_out.0", "time_embedding.linear_1")
CONV = ("resnets.0.conv1", "conv_in", "downsamplers.0.conv")
EVERY_KIND = ("kohya", "dora, out", "lora with a bias", "loha", "loha, tucker", "lokr, whole", "lokr, thin", "glora",
              "ia3, out", "oft", "full")  # fmt: skip


def block_of(original: str) -> str:
    """The block of a UNet's module by its name in the original layout."""
    found = re.match(r"(input|middle|output)_block(?:s\.(\d+)|)", original)
    if found is None:
        return "OTHER"
    return "M00" if found[1] == "middle" else f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"


@pytest.mark.parametrize(
    ("family", "kind"), [*(("sd1", kind) for kind in EVERY_KIND), ("sdxl", "kohya"), ("sdxl", "lokr, thin")]
)
def test_norms_are_those_of_the_full_products(
    tiny_files: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    model = load(tiny_files[family], leaves=SMALL)
    whole = load(tiny_files[family])
    make, which = KINDS[kind]
    endings = {"linear": LINEAR, "conv": CONV, "biased": ("attn1.to_out.0", "resnets.0.conv1")}.get(
        which, LINEAR + CONV
    )
    tensors: dict[str, Any] = {}
    wanted: dict[str, list[float]] = {}
    original = ldm_names(whole.unet)
    modules = {
        f"lora_unet_{name.replace('.', '_')}": (block_of(original.get(name, name)), module)
        for name, module in whole.unet.named_modules()
        if f".{name}".endswith(tuple(f".{e}" for e in endings))
    }
    encoders = whole.components["text_encoder"].named_modules() if which == "any" else []
    encoder = next((module for name, module in encoders if name.endswith("layers.0.mlp.fc1")), None)
    if encoder is not None:
        prefix = "lora_te1_" if family == "sdxl" else "lora_te_"
        modules[f"{prefix}text_model_encoder_layers_0_mlp_fc1"] = ("BASE", encoder)
    for seed, (name, (block, module)) in enumerate(modules.items()):
        if module.weight.ndim == 2 and which == "conv":
            continue
        bias = None if module.bias is None else module.bias.detach().float()
        made = make(module.weight.detach().float(), bias, seed)
        tensors |= {f"{name}.{ending}": value.contiguous() for ending, value in made.tensors.items()}
        pairs = [(module.weight, made.weight), *([(module.bias, made.bias)] if made.bias is not None else [])]
        for before, after in pairs:
            old, new = (np.asarray(each.detach().float(), dtype=np.float64) for each in (before, after))
            sums = wanted.setdefault(block, [0.0, 0.0, 0.0])
            sums[0] += 1
            sums[1] += float(((new - old) ** 2).sum())
            sums[2] += float((old**2).sum())
    adapter = merge_adapters.Adapter(
        tmp_path / "a.safetensors", write_safetensors(tmp_path / "a.safetensors", tensors), 1.0
    )

    found = block_norms(model, adapter)

    assert {each.block for each in found} == wanted.keys()
    assert [each.block for each in found] == sorted(wanted, key=block_order)
    for each in found:
        count, change, base = wanted[each.block]
        assert each.weights == count
        assert each.norm == pytest.approx(change**0.5, rel=2e-4), each
        assert each.base == pytest.approx(base**0.5, rel=1e-5)
        assert each.share == pytest.approx((change / base) ** 0.5, rel=2e-4)
    assert all(parameter.is_meta or parameter.numel() <= SMALL for parameter in model.unet.parameters())
    components = {name: module for name, module in whole.components.items() if name != "vae"}
    [report] = merge_adapters.apply(components, whole.base_tensor, [adapter])
    assert report.blocks == pytest.approx({each.block: each.norm for each in found}, rel=1e-5)
    half = merge_adapters.Adapter(adapter.path, adapter.sha256, 0.5, 0.5, blocks="1" + ",0.5" * 25)
    merge_adapters.restore(components, whole.base_tensor, [report])
    [report] = merge_adapters.apply(components, whole.base_tensor, [half])
    for each in found:
        factor = 0.5 if each.block in ("BASE", "OTHER") else 0.25
        assert report.blocks[each.block] == pytest.approx(each.norm * factor, rel=1e-5)


def test_a_transformer_s_blocks_have_the_model_s_names() -> None:
    assert block_name("transformer", "transformer_blocks.12.attn.to_q.weight") == "transformer_blocks.12"
    assert block_name("transformer", "x_embedder.weight") == "OTHER"
    assert block_name("text_encoder_3", "encoder.block.0.x.weight") == "BASE"
    names = ["OTHER", "transformer_blocks.10", "OUT03", "transformer_blocks.2", "BASE", "M00", "IN11", "IN02"]
    assert sorted(names, key=block_order) == ["BASE", "IN02", "IN11", "M00", "OUT03", "transformer_blocks.2",
                                              "transformer_blocks.10", "OTHER"]  # fmt: skip
