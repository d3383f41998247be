"""Tiny UNets, text encoders and adapter files of a few kilobytes: made from seeds, with the same bytes on every run."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import tiny_models
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FAMILIES = ("sd1", "sdxl")
_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL",
          torch.int8: "I8"}  # fmt: skip

_UNETS = {
    "sd1": {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32],
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
    },
    "sdxl": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "cross_attention_dim": 24 + 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write the file and give its SHA-256. (The library's own writer orders metadata at random.)"""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    body: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(data)],
        }
        body.append(data)
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = b"".join((struct.pack("<Q", len(text)), text, *body))
    path.write_bytes(whole)
    return hashlib.sha256(whole).hexdigest()


def randomized(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights drawn from a seed, at a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(drawn * 0.02 + float("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
    return model.eval()


def tiny_unet(family: str) -> nn.Module:
    common = {"sample_size": 8, "norm_num_groups": 8, "layers_per_block": 2}
    return randomized(UNet2DConditionModel(**common, **_UNETS[family]), 1)


def tiny_text_encoders(family: str, *, vocabulary: int = 49408) -> list[nn.Module]:
    """SD 1.x: one CLIP-L shape. SDXL: that and a bigG shape, of another width (diffusers tells them apart by it)."""
    common = {"vocab_size": vocabulary, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1}
    first = CLIPTextConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=24, hidden_act="quick_gelu", **common,
    )  # fmt: skip
    encoders = [randomized(CLIPTextModel(first), 3)]
    if family == "sdxl":
        second = CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            projection_dim=32, hidden_act="gelu", **common,
        )  # fmt: skip
        encoders.append(randomized(CLIPTextModelWithProjection(second), 4))
    return encoders


def tiny_components(family: str, *, vocabulary: int = 8) -> dict[str, nn.Module]:
    """UNet and text encoders; with few words, unless a prompt is to be read."""
    encoders = dict(
        zip(("text_encoder", "text_encoder_2"), tiny_text_encoders(family, vocabulary=vocabulary), strict=False)
    )
    return {"unet": tiny_unet(family), **encoders}


def ldm_names(unet: nn.Module) -> dict[str, str]:
    """Each module of a UNet under its original name, by the tests' own table of layouts."""
    prefixes = tiny_models.unet_prefixes(unet.config)
    return {
        name.rpartition(".")[0]: tiny_models.unet_name(name, prefixes)
        .rpartition(".")[0]
        .removeprefix("model.diffusion_model.")
        for name, _ in unet.named_parameters()
    }


class Originals:
    """What a checkpoint's file would be to `apply`: the parameters as they were, in storage of their own."""

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        self._kept = {
            (name, parameter): value.detach().clone()
            for name, module in components.items()
            for parameter, value in module.named_parameters()
        }

    def __call__(self, component: str, parameter: str) -> Tensor:
        return self._kept[component, parameter]

    def untouched(self, components: Mapping[str, nn.Module]) -> bool:
        """Whether every parameter has its first bits again."""
        return all(
            torch.equal(self._kept[name, parameter].view(torch.uint8), value.detach().contiguous().view(torch.uint8))
            for name, module in components.items()
            for parameter, value in module.named_parameters()
        )


def low_rank(names: Mapping[str, nn.Module], seed: int, *, rank: int = 2, size: float = 0.1) -> dict[str, Tensor]:
    """Plain LoRA tensors, kohya's suffixes, for modules under the names a file gives them."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in names.items():
        out, into, *kernel = module.weight.shape
        ones = [1] * len(kernel)
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, into, *kernel, generator=generator) * size
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator) * size
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors
