"""diffusers' and transformers' model classes, imported when a model is built."""

import os
from typing import Any

from torch import nn

# civman's pictures come from files it holds; nothing that is imported below may think of asking a hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def construct(component: str, config: dict[str, Any]) -> nn.Module:
    """The component ("unet", "vae", "text_encoder", "text_encoder_2") with these arguments, on torch's default device."""
    # imported here, so that reading headers, tables and noise costs no diffusers
    made: nn.Module
    if component == "unet":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        made = UNet2DConditionModel(**config)
    elif component == "vae":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        made = AutoencoderKL(**config)
    else:
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
        made = kind(CLIPTextConfig(**config))
    return made
