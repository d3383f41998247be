"""The shapes that a plan goes by are those of the classes that the render builds."""

import pytest
import tiny_models

from civman.diffusion.component_shapes import parameter_shapes
from civman.diffusion.loader import build_empty

FULL = {
    "sd1": {"unet": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}},
    "sdxl": {"unet": {"block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10]}},
}
VARIANTS = {
    **{name: (name, {}) for name in tiny_models.KINDS},
    "sd1, full": ("sd1", FULL["sd1"]),
    "sdxl, full": ("sdxl", FULL["sdxl"]),
    "ssd-1b": (
        "sdxl",
        {
            "unet": {
                "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [1, 2], [2, 3]],
                "reverse_transformer_layers_per_block": [[2, 2, 4], [2, 1, 1], 1],
            }
        },
    ),
    "koala-700m": ("sdxl", {"unet": {"mid_block_type": None, "layers_per_block": 1}}),
    "decoder only": ("sd1", {"vae": {"decoder_only": True}}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_are_those_of_the_library_s_class(variant):
    kind, changes = VARIANTS[variant]
    configs = {name: {**config, **changes.get(name, {})} for name, config in tiny_models.KINDS[kind].items()}
    for component, config in configs.items():
        if component.startswith("text"):
            config["vocab_size"] = 64

    for component, model in build_empty(configs).items():
        built = {name.removeprefix("text_model."): tuple(each.shape) for name, each in model.named_parameters()}
        assert parameter_shapes(component, configs[component]) == built
