"""Tiny IP-Adapters and CLIP vision encoders: real structure, seeded random weights, in every layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH, PROJECTION, SIDE, HIDDEN = 128, 48, 56, 64
KINDS = ("plain", "plus", "full-face")
State = Mapping[str, Mapping[str, Tensor]]


def encoder(seed: int = 3, *, width: int = WIDTH, projection: int = PROJECTION) -> Any:
    """A vision encoder of transformers with heads of 64, and weights large enough to tell pictures apart."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=160, projection_dim=projection, num_hidden_layers=3,
        num_attention_heads=width // 64, image_size=SIDE, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    made = CLIPVisionModelWithProjection(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return made


def attention_widths(kind: str) -> list[int]:
    """The width of each cross-attention layer of a tiny checkpoint, in diffusers' order."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**tiny_models.KINDS[kind]["unet"])
    return [
        processor.to_q.out_features for name, processor in unet.named_modules() if name.endswith(".attn2")
    ]  # fmt: skip


def adapter(kind: str, base: str, seed: int = 11, *, width: int = WIDTH, projection: int = PROJECTION) -> State:
    """The two groups of tensors of an IP-Adapter for a tiny checkpoint, in the names of IP-Adapter's authors."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    def linear(name: str, out: int, inner: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(out, inner), f"{name}.bias": draw(out)}

    def norm(name: str, size: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(size), f"{name}.bias": draw(size)}

    context = int(str(tiny_models.KINDS[base]["unet"]["cross_attention_dim"]))
    if kind == "plain":
        image = {**linear("proj", 4 * context, projection), **norm("norm", context)}
    elif kind == "full-face":
        image = {**linear("proj.0", width, width), **linear("proj.2", context, width), **norm("proj.3", context)}
    else:
        image = {
            "latents": draw(1, 5, HIDDEN), **linear("proj_in", HIDDEN, width), **linear("proj_out", context, HIDDEN),
            **norm("norm_out", context),
        }  # fmt: skip
        for block in range(4):
            layer = f"layers.{block}"
            image |= {
                **norm(f"{layer}.0.norm1", HIDDEN), **norm(f"{layer}.0.norm2", HIDDEN), **norm(f"{layer}.1.0", HIDDEN),
                f"{layer}.0.to_q.weight": draw(64, HIDDEN), f"{layer}.0.to_kv.weight": draw(128, HIDDEN),
                f"{layer}.0.to_out.weight": draw(HIDDEN, 64), f"{layer}.1.1.weight": draw(4 * HIDDEN, HIDDEN),
                f"{layer}.1.3.weight": draw(HIDDEN, 4 * HIDDEN),
            }  # fmt: skip
    keys = {
        f"{2 * place + 1}.to_{side}_ip.weight": draw(size, context)
        for place, size in enumerate(attention_widths(base))
        for side in "kv"
    }
    return {"image_proj": image, "ip_adapter": keys}


def in_diffusers_names(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an image projection in the names of diffusers' own modules."""
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    made: Any = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    found: dict[str, Tensor] = made(None, dict(image), low_cpu_mem_usage=False).state_dict()
    return found


def write(state: State, path: Path, layout: str = "safetensors") -> Path:
    """Write an IP-Adapter as a safetensors file, as a pickle, or as a safetensors file in diffusers' names."""
    if layout == "bin":
        torch.save({group: dict(tensors) for group, tensors in state.items()}, path)
        return path
    image = in_diffusers_names(state["image_proj"]) if layout == "diffusers" else state["image_proj"]
    flat = {f"image_proj.{name}": value for name, value in image.items()}
    flat |= {f"ip_adapter.{name}": value for name, value in state["ip_adapter"].items()}
    save_file({name: value.contiguous().clone() for name, value in flat.items()}, path)
    return path


def write_encoder(made: Any, path: Path, layout: str = "transformers") -> Path:
    """Write a vision encoder in the layout of transformers or of OpenCLIP."""
    state = {name: value.contiguous().clone() for name, value in made.state_dict().items()}
    state.pop("vision_model.embeddings.position_ids", None)
    save_file(_open_clip(state) if layout == "open_clip" else state, path)
    return path


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, written down a second time."""
    found = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        found |= {f"visual.{ours}.{leaf}": state[f"vision_model.{theirs}.{leaf}"] for leaf in ("weight", "bias")}
    layers = {int(name.split(".")[3]) for name in state if ".layers." in name}
    for number in layers:
        old, new = f"vision_model.encoder.layers.{number}", f"visual.transformer.resblocks.{number}"
        for leaf in ("weight", "bias"):
            found[f"{new}.attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{old}.self_attn.{side}_proj.{leaf}"] for side in "qkv"]
            )
            for ours, theirs in (
                ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                found[f"{new}.{ours}.{leaf}"] = state[f"{old}.{theirs}.{leaf}"]
    return found
