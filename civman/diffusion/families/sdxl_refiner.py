"""Stable Diffusion XL refiner."""

from typing import Final

from civman.diffusion.families.unet_family import XL_RGB, UNetFamily

REFINER: Final = UNetFamily(
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    native_size=1024,
    text_mark="conditioner.embedders.0.model.",
    context_width=1280,
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
        "addition_time_ids": 5,
    },
    vae={"sample_size": 1024, "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders={
        "text_encoder_2": {
            "layout": "open_clip",
            "prefixes": ["conditioner.embedders.0.model."],
            "projection": True,
            "heads": 20,
            "hidden_act": "gelu",
            "drop_last_layers": 0,
        },
    },
    is_xl=True,
    latent_rgb=XL_RGB,
    needs_picture=True,
    refines="sdxl",
    scores=(6.0, 2.5),
)
