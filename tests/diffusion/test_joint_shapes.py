"""Tensors with impossible shapes are refused by name: joint layers that cannot be split, attention without a width."""

import pytest

pytest.importorskip("torch")

from civman.diffusion.checkpoint_names import UNET
from civman.diffusion.component_layouts import Source
from civman.diffusion.component_shapes import require_tensors
from civman.diffusion.families.registry import family_of
from civman.domain.adapters.module_names import ModuleIndex
from civman.errors import CannotRender, InvalidModelFile


@pytest.mark.parametrize("shape", [(), (95, 32), (97, 32), (0, 32), (96,), (32, 32)])
def test_a_joint_layer_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    wanted, sources = {"q_proj.weight": (32, 32)}, {"q_proj.weight": Source("attn.in_proj_weight", third=0)}
    with pytest.raises(InvalidModelFile, match="in_proj_weight"):
        require_tensors("text_encoder", wanted, sources, {"attn.in_proj_weight": shape}, "model.safetensors")


def test_a_joint_layer_of_three_parts_is_accepted() -> None:
    wanted, sources = {"q_proj.weight": (32, 32)}, {"q_proj.weight": Source("attn.in_proj_weight", third=0)}
    require_tensors("text_encoder", wanted, sources, {"attn.in_proj_weight": (96, 32)}, "model.safetensors")


@pytest.mark.parametrize("shape", [(), (320,)])
def test_an_attention_layer_without_a_width_shows_no_family(shape: tuple[int, ...]) -> None:
    names = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}
    layer = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(CannotRender):
        family_of(names | {layer: shape})


def test_a_joint_bias_without_dimensions_is_no_bias() -> None:
    layer = "transformer.resblocks.0.attn.in_proj_"
    found = ModuleIndex({"te2": {f"{layer}weight": (96, 32), f"{layer}bias": ()}})
    query = found.weight("te2", "encoder_layers_0_self_attn_q_proj")
    assert query is not None
    assert (query.shape, query.bias) == ((32, 32), None)
