"""Dimensions of the tiny model, its networks, and its config folder for `from_single_file`."""

import json
from pathlib import Path
from typing import Any

SCALE = 0.18215  # the factor every SD 1.x config carries; `train.py` folds the latents to fit it

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [48, 64, 40, 40],
    "layers_per_block": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [16, 24, 32, 32],
    "norm_num_groups": 4,
    "sample_size": 64,
    "scaling_factor": SCALE,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 48,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
FLOW: dict[str, Any] = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
    "dual_attention_layers": (),
    "qk_norm": "rms_norm",
}
"""The transformer of the second model, in the layout of Stable Diffusion 3.5."""
FLOW_CLIP_L: dict[str, Any] = {**TEXT, "num_hidden_layers": 3, "projection_dim": 24}
FLOW_CLIP_G: dict[str, Any] = {**FLOW_CLIP_L, "projection_dim": 40, "hidden_act": "gelu", "pad_token_id": 0}
FLOW_VAE: dict[str, Any] = {
    **VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip

SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def write_config(folder: Path) -> None:
    """Write everything `from_single_file(config=folder)` reads, but for the tokenizer."""
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    absent = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    files: dict[str, dict[str, Any]] = {
        "unet/config.json": {"_class_name": parts["unet"][1], **UNET},
        "vae/config.json": {"_class_name": parts["vae"][1], **VAE},
        "text_encoder/config.json": {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"], **TEXT},
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            **parts,
            "requires_safety_checker": False,
            **absent,
        },
    }
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")
