"""Our networks as the one file CivitAI would carry: LDM key names, fp16, the same bytes on every machine."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.noise_schedule import BETAS

_DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}

_UNET_ENDS = {"linear_1": "time_embed.0", "linear_2": "time_embed.2"}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Write a safetensors file whose bytes depend on nothing but its content, and give its size in bytes.

    Tensors lie in the order of their names, metadata too, and the header is padded to 8 bytes.
    Source: the safetensors format description (8 bytes of header length, JSON header, data).
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    data, offset = [], 0
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    return path.stat().st_size


def checkpoint(unet: Any, vae: Any, text: Any) -> dict[str, Tensor]:
    """All tensors of an SD 1.x checkpoint by the names of the original release; weights fp16."""
    out = {f"model.diffusion_model.{unet_key(k)}": v.half() for k, v in unet.state_dict().items()}
    out |= vae_tensors(vae, prefix="first_stage_model.")
    for key, value in text.state_dict().items():
        if not key.endswith("position_ids"):
            out[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value.half()
    out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return out | schedule()


def control_tensors(control: Any) -> dict[str, Tensor]:
    """All tensors of a ControlNet by the names of the first published ones; weights fp16."""
    return {f"control_model.{control_key(k)}": v.half() for k, v in control.state_dict().items()}


def vae_tensors(vae: Any, *, prefix: str = "") -> dict[str, Tensor]:
    """The autoencoder's tensors; attention matrices as the 1 x 1 convolutions they are in the original."""
    out = {}
    for key, value in vae.state_dict().items():
        is_matrix = ".attentions." in key and value.ndim == 2
        out[prefix + vae_key(key)] = (value[:, :, None, None] if is_matrix else value).half().contiguous()
    return out


def schedule() -> dict[str, Tensor]:
    """The twelve float32 buffers of 1,000 values that the original training code leaves in every checkpoint.

    Source: Ho et al. 2020, sections 2 and 3, for the posterior's terms.
    """
    alphas = 1 - BETAS
    bar = torch.cumprod(alphas, 0)
    before = torch.cat([torch.ones(1, dtype=bar.dtype), bar[:-1]])
    variance = BETAS * (1 - before) / (1 - bar)
    values = {
        "betas": BETAS,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": BETAS * before.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - bar),
    }
    return {name: value.float() for name, value in values.items()}


# ---------------------------------------------------------------- names


def _end(rest: str, names: dict[str, str]) -> str:
    """The rest of a key with its first part renamed where the table knows it."""
    for ours, theirs in names.items():
        if rest.startswith(ours + "."):
            return theirs + rest[len(ours) :]
    return rest


def unet_key(key: str) -> str:
    """`down_blocks.0.resnets.1.conv1.weight` → `input_blocks.2.0.in_layers.2.weight`, for two layers per block."""
    if m := re.match(r"time_embedding\.(.+)", key):
        return _end(m[1], _UNET_ENDS)
    if m := re.match(r"(conv_in|conv_norm_out|conv_out)\.(\w+)$", key):
        return {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}[m[1]] + f".{m[2]}"
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        place = 1 if m[1] == "attentions" else 2 * int(m[2])
        return f"middle_block.{place}.{_end(m[3], _RESNET)}"
    if m := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", key):
        return f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}.{_end(m[4], _RESNET)}"
    if m := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(\w+)", key):
        return f"input_blocks.{3 * int(m[1]) + 3}.0.op.{m[2]}"
    if m := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", key):
        return f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}.{_end(m[4], _RESNET)}"
    if m := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(\w+)", key):
        return f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}.conv.{m[2]}"
    raise KeyError(key)


def control_key(key: str) -> str:
    """`controlnet_down_blocks.3.weight` → `zero_convs.3.0.weight`, for an input of eight convolutions."""
    if m := re.match(r"controlnet_down_blocks\.(\d+)\.(\w+)$", key):
        return f"zero_convs.{m[1]}.0.{m[2]}"
    if m := re.match(r"controlnet_mid_block\.(\w+)$", key):
        return f"middle_block_out.0.{m[1]}"
    if m := re.match(r"controlnet_cond_embedding\.(conv_in|conv_out)\.(\w+)$", key):
        return f"input_hint_block.{0 if m[1] == 'conv_in' else 14}.{m[2]}"
    if m := re.match(r"controlnet_cond_embedding\.blocks\.(\d)\.(\w+)$", key):
        return f"input_hint_block.{2 * int(m[1]) + 2}.{m[2]}"
    return unet_key(key)


def vae_key(key: str) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` → `decoder.up.3.block.1.conv1.weight`, for four levels."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if m := re.match(r"(.+)mid_block\.attentions\.0\.(.+)", key):
        return f"{m[1]}mid.attn_1.{_end(m[2], _VAE_ATTENTION)}"
    return key
