"""Stable Diffusion XL."""

from typing import Final

from civman.diffusion.families.unet_family import XL_RGB, UNetFamily

SDXL: Final = UNetFamily(
    name="sdxl",
    title="Stable Diffusion XL",
    native_size=1024,
    text_mark="conditioner.embedders.1.model.",
    context_width=2048,
    unet={
        "sample_size": 128,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "act_fn": "silu",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "heads": {"width": 64},
        "addition_embed_type": "text_time",
        "addition_time_ids": 6,
    },
    vae={"sample_size": 1024, "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders={
        "text_encoder": {
            "layout": "transformers",
            "prefixes": ["conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.0.transformer."],
            "projection": False,
            "heads": 12,
            "hidden_act": "quick_gelu",
            "drop_last_layers": 0,
        },
        "text_encoder_2": {
            "layout": "open_clip",
            "prefixes": ["conditioner.embedders.1.model."],
            "projection": True,
            "heads": 20,
            "hidden_act": "gelu",
            "drop_last_layers": 0,
        },
    },
    is_xl=True,
    latent_rgb=XL_RGB,
    zero_for_empty_negative=True,
)
