"""A joint layer whose tensor cannot be split into three is refused by name, whatever its shape."""

import pytest

pytest.importorskip("torch")

from civman.diffusion.component_layouts import Source
from civman.diffusion.component_shapes import require_tensors
from civman.errors import InvalidModelFile


@pytest.mark.parametrize("shape", [(), (95, 32), (97, 32), (0, 32), (96,), (32, 32)])
def test_a_joint_layer_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    wanted, sources = {"q_proj.weight": (32, 32)}, {"q_proj.weight": Source("attn.in_proj_weight", third=0)}
    with pytest.raises(InvalidModelFile, match="in_proj_weight"):
        require_tensors("text_encoder", wanted, sources, {"attn.in_proj_weight": shape}, "model.safetensors")


def test_a_joint_layer_of_three_parts_is_accepted() -> None:
    wanted, sources = {"q_proj.weight": (32, 32)}, {"q_proj.weight": Source("attn.in_proj_weight", third=0)}
    require_tensors("text_encoder", wanted, sources, {"attn.in_proj_weight": (96, 32)}, "model.safetensors")
