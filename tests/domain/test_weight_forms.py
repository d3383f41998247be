"""How weights are stored is read from names and types alone, and named part by part."""

import pytest

from civman.domain.architecture import Precision
from civman.domain.files.weight_forms import Quantisation, scale_names, weight_form
from civman.domain.identification.identify import identify
from tests.headers import made

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1"
VAE = "first_stage_model.decoder.conv_in"
LAYER = "transformer_blocks.0.attn.to_q"


def form(tensors):
    return weight_form(made(tensors).tensors)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{UNET}.weight": ("F16", [320, 320]), f"{VAE}.weight": ("F16", [8, 4, 3, 3])}, "fp16"),
        (
            {f"{UNET}.weight": ("F8_E4M3", [320, 320]), f"{TEXT}.weight": ("F16", [64, 64]),
             f"{VAE}.weight": ("F16", [8, 4, 3, 3])},
            "UNet fp8, rest fp16",
        ),
        (
            {f"{UNET}.weight": ("F8_E4M3", [320, 320]), f"{UNET}.scale_weight": ("F32", []),
             "model.diffusion_model.scaled_fp8": ("F8_E4M3", [0]), f"{VAE}.weight": ("F32", [8, 4, 3, 3])},
            "UNet fp8 with scales, rest fp32",
        ),
        (
            {f"{UNET}.weight": ("BF16", [320, 320]), f"{TEXT}.weight": ("F16", [64, 64]),
             f"{VAE}.weight": ("F32", [8, 4, 3, 3])},
            "UNet bf16, text encoders fp16, VAE fp32",
        ),
        ({"a.weight": ("F16", [64, 64]), "b.weight": ("F32", [64, 64])}, "fp16 and fp32"),
        ({"v_pred": ("F32", [])}, ""),
        ({"a.weight": ("BF16", [64, 64]), "tekken_model": ("U8", [99999])}, "bf16"),
    ],
)  # fmt: skip
def test_the_form_is_named_part_by_part(tensors, words):
    assert form(tensors).words == words
    assert form(tensors).is_computable


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({f"{LAYER}.weight": ("F8_E4M3", [8, 8]), f"{LAYER}.weight_scale": ("F32", [8, 1])}, Quantisation.FP8_SCALED),
        ({f"{LAYER}.weight": ("I8", [8, 8]), f"{LAYER}.weight_scale": ("F32", [8])}, Quantisation.INT8_SCALED),
        ({f"{LAYER}.weight": ("F8_E4M3", [8, 32]), f"{LAYER}.weight_scale": ("F8_E8M0", [8, 1])}, Quantisation.MXFP8),
        (
            {f"{LAYER}.weight": ("U8", [8, 4]), f"{LAYER}.weight_scale": ("F8_E4M3", [8, 1]),
             f"{LAYER}.weight_scale_2": ("F32", [])},
            Quantisation.NVFP4,
        ),
        (
            {f"{LAYER}.weight": ("U8", [32, 1]), f"{LAYER}.weight.absmax": ("F32", [1]),
             f"{LAYER}.weight.quant_state.bitsandbytes__nf4": ("U8", [80])},
            Quantisation.NF4,
        ),
        ({f"{LAYER}.weight": ("I8", [8, 8]), f"{LAYER}.SCB": ("F32", [8])}, Quantisation.INT8_BITSANDBYTES),
        ({f"{LAYER}.qweight": ("I8", [8, 4]), f"{LAYER}.wscales": ("BF16", [1, 8])}, Quantisation.SVDQUANT),
        ({f"{LAYER}.qweight": ("I32", [1, 8]), f"{LAYER}.qzeros": ("I32", [1, 1])}, Quantisation.PACKED_INT4),
    ],
)  # fmt: skip
def test_each_kind_of_packing_is_recognised(tensors, kind):
    found = form(tensors)

    assert found.quantisation is kind
    assert found.is_computable == (kind in (Quantisation.FP8_SCALED, Quantisation.INT8_SCALED, Quantisation.NF4))
    assert "fp8" in found.words if kind is Quantisation.FP8_SCALED else found.words == str(kind)


def test_a_scale_without_its_weight_scales_nothing():
    tensors = {f"{LAYER}.weight_scale": ("F32", []), "other.weight": ("F16", [8, 8])}

    assert scale_names(tensors) == {}
    assert form(tensors).quantisation is None


def test_inspection_says_which_part_has_which_precision():
    tensors = {f"{UNET}.weight": ("F8_E4M3", [320, 320]), f"{VAE}.weight": ("F16", [512, 4, 3, 3])}

    identity = identify(made(tensors))

    assert identity.weights == "UNet fp8, rest fp16"
    assert identity.precision in (Precision.FP8, Precision.MIXED)
    assert "UNet fp8, rest fp16" in identity.describe()
