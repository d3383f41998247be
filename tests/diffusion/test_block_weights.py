# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Each block of a merged LoRA is multiplied by its own number; blocks are told apart by the original layout's names."""

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from tiny_adapters import ldm_names, low_rank, tiny_components, write_safetensors

from civman.diffusion import merge_adapters
from civman.domain.adapters.block_weights import LAYOUTS, PRESETS, blocks_of, factor
from civman.errors import UsageError
from civman.planning.redraw_prompts import read_tags
from civman.prompts import emphasis

SEVENTEEN = "0.5,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"


def wanted(original: str, numbers: list[float]) -> float:
    """The factor of a module by its name in the original layout, as the extension finds it."""
    names = {
        12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
        17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    }
    by_block = dict(zip(names[len(numbers)].split(), numbers, strict=True))
    found = re.match(r"(input|middle|output)_blocks?(?:[._](\d+)\b|)", original.replace("_blocks_", "_blocks."))
    if found is None:
        return 1.0
    if found[1] == "middle":
        return by_block["M00"]
    return by_block.get(f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}", 0.0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("blocks", [SEVENTEEN, "2,0,1,0.5,3,-1,1,2,3,4,5,6"])
def test_every_change_is_multiplied_by_the_number_of_its_block(tmp_path: Path, family: str, blocks: str) -> None:
    components = tiny_components(family)
    unet: Any = components["unet"]
    names = {name: module for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
    lora = low_rank({f"lora_unet_{name.replace('.', '_')}": module for name, module in names.items()}, 3)
    write_safetensors(tmp_path / "lora.safetensors", lora)
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}

    def merged(blocks: str) -> dict[str, Any]:
        adapter = merge_adapters.Adapter(tmp_path / "lora.safetensors", "a" * 64, 1.0, 1.0, "lora", blocks)
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                parameter.copy_(before[name])
        merge_adapters.apply({"unet": unet}, lambda _component, name: before[name], [adapter])
        return {name: parameter - before[name] for name, parameter in unet.named_parameters()}

    plain, mine = merged(""), merged(blocks)
    numbers = [float(word) for word in blocks.split(",")]
    originals = ldm_names(unet)
    seen = set()
    for name in names:
        place = f"{name}.weight"
        number = wanted(originals.get(name, name), numbers)
        seen.add(number)
        assert torch.allclose(mine[place], plain[place] * number, atol=1e-5), name
    assert len(seen) > 3


def test_the_text_encoders_take_the_first_number_and_other_layers_their_own_scale() -> None:
    assert factor(SEVENTEEN, "text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight") == 0.5
    assert factor(SEVENTEEN, "unet", "time_embedding.linear_1.weight") == 1
    assert factor("", "unet", "mid_block.resnets.0.conv1.weight") == 1
    whole = ",".join(str(number) for number in range(26))
    for parameter, number in (
        ("conv_in.weight", 1), ("down_blocks.0.resnets.0.x", 2), ("down_blocks.0.downsamplers.0.conv.weight", 4),
        ("down_blocks.3.resnets.1.x", 12), ("mid_block.attentions.0.x", 13), ("up_blocks.0.resnets.0.x", 14),
        ("up_blocks.0.upsamplers.0.conv.weight", 16), ("up_blocks.3.attentions.2.x", 25),
    ):  # fmt: skip
        assert factor(whole, "unet", parameter) == number, parameter


def test_presets_and_lists_are_told_from_what_is_neither() -> None:
    assert all(len(blocks_of(name).split(",")) == 17 for name in PRESETS)
    assert blocks_of("ind") == "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0"
    assert blocks_of("midd") == "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
    assert blocks_of("outall") == "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
    assert all(len(names) == length for length, names in LAYOUTS.items())
    for wrong in ("", "MINE", "1,2,3", SEVENTEEN + ",x", SEVENTEEN.replace("16", "nan")):
        with pytest.raises(UsageError):
            blocks_of(wrong)


def test_tags_name_block_weights_in_two_ways() -> None:
    for tag in ("<lora:x:0.5:IND>", "<lora:x:0.5:lbw=ind>", "<lora:x:0.5:0.5:lbw=IND>"):
        [lora] = emphasis.parse(f"a {tag}").loras
        assert (lora.te_scale, lora.unet_scale, lora.blocks) == (0.5, 0.5, blocks_of("IND"))
        [read] = read_tags(tag, (1, 10)).loras
        assert (read.unet, read.text, read.blocks) == (0.5, 0.5, blocks_of("IND"))
    [lora] = emphasis.parse(f"<lora:x:1:{SEVENTEEN}>").loras
    assert lora.blocks == SEVENTEEN
    unknown = read_tags("<lora:x:1:FACE>", (1, 2))
    assert unknown.loras[0].blocks == ""
    assert "preset that civman does not" in unknown.reasons[0].words
    assert "start" in read_tags("<lora:x:1:start=5>", (1, 5)).reasons[0].words
    with pytest.raises(UsageError):
        emphasis.parse("<lora:x:1:lbw=FACE>")
