"""The second model as one file in the layout of Stable Diffusion 3.5, with its text encoders and its autoencoder."""

import re
from typing import Any

import torch
from torch import Tensor

from training import layout
from training.export import vae_tensors
from training.flow import Texts
from training.words import POSITIONS

_PREFIX = "model.diffusion_model."
_WHOLE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_IN_BLOCK = {
    "x_block": {
        "norm1.linear": "adaLN_modulation.1", "attn.to_out.0": "attn.proj", "attn.norm_q": "attn.ln_q",
        "attn.norm_k": "attn.ln_k", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
    },
    "context_block": {
        "norm1_context.linear": "adaLN_modulation.1", "attn.to_add_out": "attn.proj", "attn.norm_added_q": "attn.ln_q",
        "attn.norm_added_k": "attn.ln_k", "ff_context.net.0.proj": "mlp.fc1", "ff_context.net.2": "mlp.fc2",
    },
}  # fmt: skip
_JOINT = {"x_block": ("to_q", "to_k", "to_v"), "context_block": ("add_q_proj", "add_k_proj", "add_v_proj")}


def checkpoint(transformer: Any, texts: Texts, vae: Any) -> dict[str, Tensor]:
    """All tensors of the file, fp16; the text encoders have every row of CLIP's table."""
    out = {_PREFIX + name: value for name, value in transformer_tensors(transformer).items()}
    for component, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        words, encoder = texts.words[component], texts.get_submodule(component)
        for key, value in encoder.state_dict().items():
            plain = key if key.startswith("text_projection") else f"text_model.{key.removeprefix('text_model.')}"
            if not plain.endswith("position_ids"):
                is_table = plain.endswith("token_embedding.weight")
                out[f"text_encoders.{name}.transformer.{plain}"] = words.widen(value) if is_table else value
        out[f"text_encoders.{name}.transformer.text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    halves = {name: value.half() if value.is_floating_point() else value for name, value in out.items()}
    return halves | vae_tensors(folded(vae), prefix="first_stage_model.")


def transformer_tensors(transformer: Any) -> dict[str, Tensor]:
    """The transformer's tensors by their original names: query, key and value are one matrix, shift precedes scale."""
    state = dict(transformer.state_dict())
    last = f"transformer_blocks.{layout.FLOW['num_layers'] - 1}.norm1_context.linear."
    out = {}
    for name in [name for name in state if re.search(r"attn\.(to_q|add_q_proj)\.", name)]:
        block = "x_block" if ".to_q." in name else "context_block"
        first, *others = _JOINT[block]
        parts = [state.pop(name.replace(first, each)) for each in (first, *others)]
        number, leaf = re.findall(r"\d+", name)[0], name.rpartition(".")[2]
        out[f"joint_blocks.{number}.{block}.attn.qkv.{leaf}"] = torch.cat(parts)
    for name, value in state.items():
        is_swapped = name.startswith(("norm_out.linear.", last))
        out[original_name(name)] = torch.cat(value.chunk(2)[::-1]) if is_swapped else value
    return out


def original_name(name: str) -> str:
    """`transformer_blocks.2.ff.net.2.bias` → `joint_blocks.2.x_block.mlp.fc2.bias`."""
    for ours, theirs in _WHOLE.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    _, number, rest = name.split(".", 2)
    for block, names in _IN_BLOCK.items():
        for ours, theirs in names.items():
            if rest.startswith(f"{ours}."):
                return f"joint_blocks.{number}.{block}.{theirs}{rest[len(ours) :]}"
    raise KeyError(name)


@torch.no_grad()
def folded(vae: Any) -> Any:
    """The first model's autoencoder with the constants of Stable Diffusion 3 and without the convolutions of SD 1.x.

    What it decodes differs at the outermost pixels only, since a bias moves past the zeros that pad a convolution.
    """
    from diffusers import AutoencoderKL

    factor = layout.SCALE / layout.FLOW_VAE["scaling_factor"]
    shift, channels = layout.FLOW_VAE["shift_factor"], layout.FLOW_VAE["latent_channels"]
    state = {k: v.clone() for k, v in vae.state_dict().items() if "quant_conv." not in k}
    inward, outward = vae.quant_conv.weight[:, :, 0, 0], vae.post_quant_conv.weight[:, :, 0, 0]
    last, first = "encoder.conv_out.", "decoder.conv_in."
    weight = torch.einsum("oj,jiyx->oiyx", inward, state[f"{last}weight"])
    bias = inward @ state[f"{last}bias"] + vae.quant_conv.bias
    weight[:channels] *= factor
    bias[:channels] = bias[:channels] * factor + shift
    bias[channels:] += 2 * torch.tensor(factor).log()
    state[f"{last}weight"], state[f"{last}bias"] = weight, bias
    moved = vae.post_quant_conv.bias - outward @ torch.full((channels,), shift / factor)
    state[f"{first}bias"] = state[f"{first}bias"] + torch.einsum("ojyx,j->o", state[f"{first}weight"], moved)
    state[f"{first}weight"] = torch.einsum("ojyx,ji->oiyx", state[f"{first}weight"], outward) / factor
    new = AutoencoderKL(**layout.FLOW_VAE)  # type: ignore[no-untyped-call]
    new.load_state_dict(state)
    return new.eval()
