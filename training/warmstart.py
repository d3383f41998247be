"""Starts UNet and text encoder from an earlier model of ours with the same widths but another autoencoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import export
from training.scenes import Picture
from training.words import Words

_UNTRAINED = 12345  # a token no caption ever held: its row is the one all unknown words share


@torch.no_grad()
def start_from(net: Any, words: Words, earlier: Path, turn: Tensor) -> None:
    """Copy the earlier weights and turn the latents, so that the UNet meets the channels it knows.

    `turn` is an orthogonal (4, 4) matrix with z_earlier ≈ turn @ z_new: noise stays noise under it.
    """
    from safetensors.torch import load_file

    tensors = {name: value.float() for name, value in load_file(earlier).items() if value.is_floating_point()}
    unet = {k: tensors[f"model.diffusion_model.{export.unet_key(k)}"] for k in net.unet.state_dict()}
    unet["conv_in.weight"] = torch.einsum("oiyx,ij->ojyx", unet["conv_in.weight"], turn)
    unet["conv_out.weight"] = torch.einsum("oj,oiyx->jiyx", turn, unet["conv_out.weight"])
    unet["conv_out.bias"] = turn.T @ unet["conv_out.bias"]
    net.unet.load_state_dict(unet)
    prefix = "cond_stage_model.transformer.text_model."
    text = {k: tensors[prefix + k.removeprefix("text_model.")] for k in net.text.state_dict()}
    table = next(k for k in text if k.endswith("token_embedding.weight"))
    other = text[table][_UNTRAINED]
    rows = torch.stack([*text[table][words.used], other])
    rows[:-1] += 0.3 * rows.std() * torch.randn_like(rows[:-1]) * (rows[:-1] == other).all(1, keepdim=True)
    text[table] = rows
    net.text.load_state_dict(text)


@torch.no_grad()
def latent_turn(vae: Any, earlier: Path, config: Path, pictures: list[Picture], scale: float) -> tuple[Tensor, float]:
    """The orthogonal matrix that brings new latents closest to earlier ones, and how much it explains (R²).

    Source: the orthogonal Procrustes problem, solved by one singular value decomposition (Schönemann 1966).
    """
    from diffusers import AutoencoderKL

    old = AutoencoderKL.from_single_file(str(earlier), config=str(config / "vae"), local_files_only=True)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
    z_new, z_old = (
        (m.encode(x).latent_dist.mean * scale).permute(1, 0, 2, 3).flatten(1) for m in (vae, old.eval().float())
    )
    u, _, v = torch.linalg.svd(z_old @ z_new.T)
    turn = u @ v
    left = (z_old - turn @ z_new).square().sum() / (z_old - z_old.mean(1, keepdim=True)).square().sum()
    return turn, 1 - float(left)
