"""Checkpoints of a few megabytes in the original layout: real structure, seeded random weights, same bytes every time.

The layout is written down here a second time, apart from the product's, so that a slip in one shows.
"""

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

SMALL_VOCAB = 64
"""Rows of the token table where nobody tokenizes."""

BASE_UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True,
    "freq_shift": 0, "act_fn": "silu", "norm_eps": 1e-5, "norm_num_groups": 16, "layers_per_block": 2,
}
SD1_UNET = BASE_UNET | {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [16, 32, 32, 32], "attention_head_dim": 8, "cross_attention_dim": 24,
    "use_linear_projection": False, "transformer_layers_per_block": 1,
}
SDXL_UNET = BASE_UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 32], "attention_head_dim": [2, 4, 4], "cross_attention_dim": 56,
    "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 3], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
REFINER_UNET = SDXL_UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 32, 32], "attention_head_dim": [2, 4, 4, 4], "cross_attention_dim": 32,
    "transformer_layers_per_block": [1, 2, 2, 2], "projection_class_embeddings_input_dim": 32 + 5 * 8,
}
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "sample_size": 64,
    "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 2, "act_fn": "silu", "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
XL_VAE = VAE | {"scaling_factor": 0.13025, "force_upcast": True}
_TEXT = {
    "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "bos_token_id": 49406, "eos_token_id": 49407,
}
CLIP_L = _TEXT | {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12,
    "projection_dim": 24, "hidden_act": "quick_gelu", "pad_token_id": 49407,
}
OPEN_CLIP = _TEXT | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 16,
    "projection_dim": 32, "hidden_act": "gelu", "pad_token_id": 0,
}

SD2_UNET = SD1_UNET | {"attention_head_dim": [2, 4, 4, 4], "cross_attention_dim": 32, "use_linear_projection": True}
KINDS: dict[str, dict[str, dict[str, object]]] = {
    "sd1": {"unet": SD1_UNET, "vae": VAE, "text_encoder": CLIP_L},
    "sd1-inpaint": {"unet": SD1_UNET | {"in_channels": 9}, "vae": VAE, "text_encoder": CLIP_L},
    "sd2": {"unet": SD2_UNET, "vae": VAE, "text_encoder": OPEN_CLIP},
    "sdxl": {"unet": SDXL_UNET, "vae": XL_VAE, "text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP | {
        "num_attention_heads": 16}},
    "sdxl-vpred": {"unet": SDXL_UNET, "vae": XL_VAE, "text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP},
    "refiner": {"unet": REFINER_UNET, "vae": XL_VAE, "text_encoder_2": OPEN_CLIP},
}


def write(path: Path, kind: str, *, vocab: int = 49408, dtype: torch.dtype = torch.float16, seed: int = 1,
          leave_out: tuple[str, ...] = (), metadata: dict[str, str] | None = None) -> Path:
    """One checkpoint of `KINDS`; tensors whose names start with one of `leave_out` are not written."""
    tensors = tensors_of(kind, vocab=vocab, seed=seed)
    kept = {name: t.to(dtype) for name, t in tensors.items() if not name.startswith(leave_out or ("\0",))}
    save(kept, path, metadata or {})
    return path


def tensors_of(kind: str, *, vocab: int = 49408, seed: int = 1) -> dict[str, Tensor]:
    """Original name → float32 tensor."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    configs = KINDS[kind]
    unet = _randomized(UNet2DConditionModel(**configs["unet"]), seed)
    vae = _randomized(AutoencoderKL(**configs["vae"]), seed + 1)
    prefixes = unet_prefixes(configs["unet"])
    found = {unet_name(name, prefixes): value for name, value in unet.items()}
    found |= {f"first_stage_model.{name}": value for name, value in vae_tensors(vae).items()}
    if kind.startswith("sd1"):
        found |= _clip_l(configs["text_encoder"], vocab, seed + 2, "cond_stage_model.transformer.text_model.")
        found["alphas_cumprod"] = torch.linspace(1, 0, 1000)
        found["model_ema.decay"] = torch.tensor(0.9999)
    elif kind == "sd2":
        # the file has one layer more than is used
        found |= _open_clip(configs["text_encoder"] | {"num_hidden_layers": 4}, vocab, seed + 3,
                            "cond_stage_model.model.")
    elif kind == "refiner":
        found |= _open_clip(configs["text_encoder_2"], vocab, seed + 3, "conditioner.embedders.0.model.")
    else:
        found |= _clip_l(configs["text_encoder"], vocab, seed + 2, "conditioner.embedders.0.transformer.text_model.")
        found |= _open_clip(configs["text_encoder_2"], vocab, seed + 3, "conditioner.embedders.1.model.")
    if kind == "sdxl-vpred":
        found |= {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    return {name: found[name] for name in sorted(found)}


def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """safetensors with a fixed order of everything (its own writer orders metadata at random)."""
    names = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def write_configs(folder: Path, kind: str, *, vocab: int = 49408, prediction: str = "epsilon") -> Path:
    """A diffusers config folder for `from_single_file(config=…)`, without tokenizers."""
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for component, config in KINDS[kind].items():
        config = dict(config)
        if component.startswith("text"):
            name = "CLIPTextModelWithProjection" if component.endswith("_2") else "CLIPTextModel"
            config |= {"vocab_size": vocab, "model_type": "clip_text_model", "architectures": [name]}
            index[component] = ["transformers", name]
        else:
            config["_class_name"] = "UNet2DConditionModel" if component == "unet" else "AutoencoderKL"
            index[component] = ["diffusers", config["_class_name"]]
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                 "beta_schedule": "scaled_linear", "prediction_type": prediction}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _randomized(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        if value.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            found[name] = torch.randn(value.shape, generator=generator) * 0.02 + (1.0 if is_scale else 0.0)
        else:
            found[name] = torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5
    return found


def unet_prefixes(config: dict[str, object]) -> list[tuple[str, str]]:
    """[(diffusers module, original module)]."""
    count, layers = len(config["block_out_channels"]), config["layers_per_block"]
    found = [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
             ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
             ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
             ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
             ("mid_block.resnets.1", "middle_block.2")]
    k = 1
    for i in range(count):
        for j in range(layers):
            found.append((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{k}.0"))
            if "Cross" in config["down_block_types"][i]:
                found.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{k}.1"))
            k += 1
        if i < count - 1:
            found.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{k}.0.op"))
            k += 1
    k = 0
    for i in range(count):
        cross = "Cross" in config["up_block_types"][i]
        for j in range(layers + 1):
            found.append((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{k}.0"))
            if cross:
                found.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{k}.1"))
            if j == layers and i < count - 1:
                found.append((f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{k}.{2 if cross else 1}.conv"))
            k += 1
    return found


_RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
           ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]


def unet_name(name: str, prefixes: list[tuple[str, str]]) -> str:
    """diffusers' parameter name in the original layout."""
    for ours, theirs in prefixes:
        if name.startswith(ours + "."):
            rest = name[len(ours) :]
            if "resnets" in ours:
                for a, b in _RESNET:
                    if rest.startswith(f".{a}."):
                        rest = f".{b}" + rest[len(a) + 1 :]
                        break
            return f"model.diffusion_model.{theirs}{rest}"
    raise KeyError(name)


def vae_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under their original names, attention as 1x1 convolutions."""
    found = {}
    for name, value in state.items():
        original = _vae_name(name)
        found[original] = value[:, :, None, None] if ".mid.attn_1." in original and value.ndim == 2 else value
    return found


def _vae_name(name: str) -> str:
    p = name.split(".")
    if ".down_blocks." in name or ".up_blocks." in name:
        side = p[1].removesuffix("_blocks")
        level = int(p[2]) if side == "down" else 3 - int(p[2])
        if p[3] == "resnets":
            tail = ".".join(["block", *p[4:]]).replace("conv_shortcut", "nin_shortcut")
        else:
            tail = f"{side}sample.conv.{p[-1]}"
        return f"{p[0]}.{side}.{level}.{tail}"
    if ".mid_block.resnets." in name:
        return f"{p[0]}.mid.block_{int(p[3]) + 1}." + ".".join(p[4:])
    if ".mid_block.attentions." in name:
        part = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[p[4]]
        return f"{p[0]}.mid.attn_1.{part}.{p[-1]}"
    return name.replace("conv_norm_out", "norm_out")


def _text_state(config: dict[str, object], vocab: int, seed: int, *, projects: bool) -> dict[str, Tensor]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projects else CLIPTextModel
    state = _randomized(kind(CLIPTextConfig(**config, vocab_size=vocab)), seed)
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def _clip_l(config: dict[str, object], vocab: int, seed: int, prefix: str) -> dict[str, Tensor]:
    found = {prefix + name: value for name, value in _text_state(config, vocab, seed, projects=False).items()}
    return found | {f"{prefix}embeddings.position_ids": torch.arange(77.0)[None]}


def _open_clip(config: dict[str, object], vocab: int, seed: int, prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"{prefix}logit_scale": torch.tensor(4.6)}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in _text_state(config, vocab, seed, projects=True).items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T.contiguous()
        elif not name.startswith("encoder.layers."):
            name = name.replace("embeddings.token_embedding", "token_embedding")
            name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
            found[prefix + name.replace("final_layer_norm", "ln_final")] = value
        else:
            _, _, number, *rest = name.split(".")
            block, tail = f"{prefix}transformer.resblocks.{number}.", ".".join(rest)
            if rest[0] == "self_attn" and rest[1] != "out_proj":
                joined.setdefault(f"{block}attn.in_proj_{rest[-1]}", {})[rest[1][0]] = value
                continue
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                         ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                tail = tail.replace(a, b)
            found[block + tail] = value
    return found | {name: torch.cat([parts[x] for x in "qkv"]) for name, parts in joined.items()}
