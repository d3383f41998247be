"""The bytes the demo makes: valid, stable, named as real files are, and fitting each other."""

import hashlib
import json
import math
import struct

import headers
import pytest

from civman.demo import demo_weights, model_layouts


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize("source", ["own/", ""], ids=["own", "recorded"])
@pytest.mark.parametrize(
    ("fixture", "shapes"),
    [
        ("ckpt-sd15", model_layouts.sd1_checkpoint()),
        ("ckpt-sdxl", model_layouts.sdxl_checkpoint()),
        ("vae-sd-ldm", model_layouts.vae()),
        ("lora-sd1-kohya", model_layouts.kohya_lora(model_layouts.sd1_checkpoint(), 4)),
        ("kohya-sdxl-lora", model_layouts.kohya_lora(model_layouts.sdxl_checkpoint(), 4)),
    ],
)
def test_layout_has_the_names_and_ranks_of_the_real_file(
    source: str, fixture: str, shapes: model_layouts.Shapes
) -> None:
    real = headers.case(source + fixture)["tensors"]

    noise_schedule = {name for name in real if name.startswith(("betas", "alphas", "sqrt_", "log_", "posterior"))}
    assert set(shapes) == set(real) - noise_schedule - {"model_ema.decay", "model_ema.num_updates"}
    assert {name: len(shape) for name, shape in shapes.items()} == {name: len(real[name][1]) for name in shapes}


def test_checkpoint_weights_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(demo_weights.sd1_checkpoint("a seed")).hexdigest()

    assert digest == "aa747e400587bbe94c60af0364a4642e77a38a68b5833de65180982a899e9ad9"


def test_lora_of_another_seed_has_other_bytes() -> None:
    assert demo_weights.sd1_lora("a", tags={}) != demo_weights.sd1_lora("b", tags={})


@pytest.mark.parametrize(("dtype", "code"), [("F16", "e"), ("F32", "f")])
def test_values_are_finite_and_small(dtype: str, code: str) -> None:
    data = demo_weights.safetensors_bytes({"w": (1000, 50)}, seed="s", dtype=dtype)
    body = data[8 + int.from_bytes(data[:8], "little") :]

    values = struct.unpack(f"<50000{code}", body)

    assert all(math.isfinite(value) and 2**-8 < abs(value) < 2**-2 for value in values)
    assert len(set(values)) > 1000


def test_offsets_run_end_to_end_and_cover_the_file() -> None:
    data = demo_weights.sdxl_lora("x", tags={"a": 1})
    header = header_of(data)
    header.pop("__metadata__")

    end = 0
    for tensor in header.values():
        width = {"F16": 2, "I64": 8}[tensor["dtype"]]
        assert tensor["data_offsets"] == [end, end + math.prod(tensor["shape"]) * width]
        end = tensor["data_offsets"][1]
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + end


def test_lora_says_what_kohya_says() -> None:
    metadata = header_of(demo_weights.sdxl_lora("brass/v1", tags={"brass": 3}, rank=4))["__metadata__"]

    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "4"
    assert json.loads(metadata["ss_tag_frequency"]) == {"10_brass": {"brass": 3}}


def test_each_lora_module_fits_its_checkpoint() -> None:
    checkpoint = model_layouts.sd1_checkpoint()
    lora = model_layouts.kohya_lora(checkpoint, 4)
    name = "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_k"
    weight = checkpoint["model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"]

    assert lora[f"{name}.lora_down.weight"] == (4, weight[1])
    assert lora[f"{name}.lora_up.weight"] == (weight[0], 4)
    assert weight[1] == 768
