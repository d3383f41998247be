"""Stable Diffusion 2.x."""

from typing import Final

from civman.diffusion.families.unet_family import UNetFamily

SD2: Final = UNetFamily(
    name="sd2",
    title="Stable Diffusion 2.x",
    native_size=768,
    text_mark="cond_stage_model.model.",
    context_width=1024,
    unet={
        "sample_size": 96,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "act_fn": "silu",
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "heads": {"width": 64},
    },
    vae={"sample_size": 768, "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.18215},
    text_encoders={
        "text_encoder": {
            "layout": "open_clip",
            "prefixes": ["cond_stage_model.model."],
            "projection": False,
            "heads": 16,
            "hidden_act": "gelu",
            "drop_last_layers": 1,
        },
    },
    is_silent_about_prediction=True,
    epsilon_size=512,
    drops_text_layer=True,
)
