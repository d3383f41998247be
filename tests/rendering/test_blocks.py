# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Blocks of a LoRA: `check --blocks`, the report of a render, and block weights against a file that is cut by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK
from safetensors.torch import load_file
from tiny_adapters import ldm_names, low_rank, write_safetensors

from civman.diffusion.loader import load

BLOCKS = {
    "sd1": ("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))),
    "sdxl": ("BASE", *(f"IN{n:02}" for n in range(9)), "M00", *(f"OUT{n:02}" for n in range(9))),
}
"""The blocks that lists of 26 and of 20 numbers name."""


@pytest.mark.usefixtures("stocked")
def test_check_shows_the_norm_of_the_change_in_each_block(civman: Civman, stock: Path) -> None:
    lora, base = load_file(stock / "ink.safetensors"), load_file(stock / "tiny-sd1.safetensors")
    changes, weights = [], []
    for part in "kv":
        name = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_{part}"
        up, down, alpha = (lora[f"{name}.{end}"].double().numpy() for end in
                           ("lora_up.weight", "lora_down.weight", "alpha"))  # fmt: skip
        changes.append(up @ down * alpha / len(down))
        weights.append(base["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2."
                            f"to_{part}.weight"].double().numpy())  # fmt: skip
    change, weight = (float(np.sqrt(sum((each**2).sum() for each in them))) for them in (changes, weights))

    ran = civman("check", "tiny-sd1", "--lora", "ink:0.5", "--blocks", "--json")

    assert ran.code == 0, ran.err
    [block] = ran.json["check"]["parts"][0]["blocks"]
    assert (block["block"], block["weights"]) == ("IN01", 2)
    assert block["norm"] == pytest.approx(change, rel=1e-5)
    assert block["base"] == pytest.approx(weight, rel=1e-5)
    assert block["share"] == pytest.approx(change / weight, rel=1e-5)
    shown = civman("check", "tiny-sd1", "--lora", "ink", "--lora", "xl-ink", "--blocks")
    assert shown.code == 7, "the other LoRA does not fit, and this is still said"
    assert f"{change / weight:.2%}" in shown.out
    assert "blocks" not in civman("check", "tiny-sd1", "--lora", "ink", "--json").json["check"]["parts"][0]
    drawn = civman("render", "tiny-sd1", "a cat", *QUICK, "--lora", "ink:0.5", "--json").json["render"][0]
    assert drawn["applied"][0]["blocks"] == {"IN01": pytest.approx(change / 2, rel=1e-5)}


def in_blocks(unet: Any, layout: str) -> dict[str, tuple[str, Any]]:
    """Name in a file of this layout → the block, by the original layout's names, and the module."""
    original = ldm_names(unet)
    found = {}
    for name, module in unet.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d) or name not in original:
            continue
        kind, _, rest = original[name].partition("_block")
        number = rest.partition(".")[2].partition(".")[0]
        if kind not in ("input", "middle", "output"):
            continue
        block = "M00" if kind == "middle" else f"{'IN' if kind == 'input' else 'OUT'}{int(number):02}"
        spelled = {
            "kohya": f"lora_unet_{name.replace('.', '_')}",
            "kohya, original": f"lora_unet_{original[name].replace('.', '_')}",
            "diffusers": f"unet.{name}",
        }
        found[spelled[layout]] = (block, module)
    return found


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("layout", ["kohya", "kohya, original", "diffusers"])
def test_blocks_at_0_are_a_lora_whose_tensors_are_cut_out_by_hand(
    civman: Civman, stock: Path, tmp_path: Path, family: str, layout: str
) -> None:
    modules = in_blocks(load(stock / f"tiny-{family}.safetensors").unet, layout)
    tensors = low_rank({name: module for name, (_, module) in modules.items()}, 3, size=0.2)
    if layout == "diffusers":
        tensors = {name.replace("lora_down", "lora.down").replace("lora_up", "lora.up"): value
                   for name, value in tensors.items()}  # fmt: skip
    kept = [number % 2 for number in range(len(BLOCKS[family]))]
    by_block = dict(zip(BLOCKS[family], kept, strict=True))
    half = {
        name: value
        for name, value in tensors.items()
        if by_block[next(block for module, (block, _) in modules.items() if name.startswith(f"{module}."))]
    }
    assert 0.2 < len(half) / len(tensors) < 0.8
    for name, each in (("whole", tensors), ("half", half)):
        write_safetensors(tmp_path / f"{name}.safetensors", each)
    numbers = ",".join(map(str, kept))

    def drawn(lora: str) -> str:
        ran = civman("render", f"tiny-{family}", "a cat", *QUICK, "--lora", lora, "--json")
        assert ran.code == 0, ran.err
        digest: str = ran.json["render"][0]["pixel_sha256"]
        return digest

    cut = drawn(f"{tmp_path}/half.safetensors:0.8")
    assert drawn(f"{tmp_path}/whole.safetensors:0.8:lbw={numbers}") == cut
    assert drawn(f"{tmp_path}/whole.safetensors:0.8") != cut
