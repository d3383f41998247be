"""Stable Diffusion 1.x."""

from typing import Final

from civman.diffusion.families.unet_family import UNetFamily

SD1: Final = UNetFamily(
    name="sd1",
    title="Stable Diffusion 1.x",
    native_size=512,
    text_mark="cond_stage_model.transformer.",
    context_width=768,
    unet={
        "sample_size": 64,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "act_fn": "silu",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "heads": {"count": 8},
    },
    vae={"sample_size": 512, "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.18215},
    text_encoders={
        "text_encoder": {
            "layout": "transformers",
            "prefixes": ["cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."],
            "projection": False,
            "heads": 12,
            "hidden_act": "quick_gelu",
            "drop_last_layers": 0,
        },
    },
    takes_clip_skip=True,
)
