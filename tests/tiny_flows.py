"""Tiny flow-matching models with random weights: as diffusers' modules, and as files in the original layouts."""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from civman.diffusion.model_classes import construct_class
from civman.prompts.tokenizer import byte_symbols

CLIP_L = {
    "vocab_size": 49408, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12,
    "projection_dim": 24, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "bos_token_id": 49406,
    "eos_token_id": 49407, "pad_token_id": 49407,
}  # fmt: skip
T5 = {
    "vocab_size": 32128, "d_model": 24, "d_kv": 8, "num_heads": 2, "d_ff": 40, "num_layers": 2,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
}  # fmt: skip
KL = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 1, "sample_size": 64,
    "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 2, "act_fn": "silu", "scaling_factor": 0.3611,
    "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip

FLUX2_KL = {key: value for key, value in KL.items() if key not in ("scaling_factor", "shift_factor")} | {
    "latent_channels": 32, "use_quant_conv": True, "use_post_quant_conv": True,
}  # fmt: skip
XL_KL = KL | {
    "latent_channels": 4, "scaling_factor": 0.13025, "shift_factor": 0.0, "use_quant_conv": True,
    "use_post_quant_conv": True,
}  # fmt: skip
SD3_KL = KL | {"scaling_factor": 1.5305, "shift_factor": 0.0609}

FLUX = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1,
    "joint_attention_dim": 24, "pooled_projection_dim": 24, "guidance_embeds": True, "in_channels": 64,
    "out_channels": 64,
}  # fmt: skip
FLUX2 = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1,
    "joint_attention_dim": 72, "in_channels": 128, "guidance_embeds": False,
}  # fmt: skip
FLUX2_DEV = FLUX2 | {"guidance_embeds": True}
CHROMA = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 1,
    "joint_attention_dim": 24, "in_channels": 64, "out_channels": 64, "approximator_hidden_dim": 32,
    "approximator_layers": 2,
}  # fmt: skip
QWEN3 = {
    "vocab_size": 151936, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "use_cache": False,
}  # fmt: skip
DEEP_QWEN3 = QWEN3 | {"num_hidden_layers": 28}
QWEN25 = QWEN3 | {"head_dim": 128, "num_attention_heads": 1, "hidden_size": 128}
CLIP_G = CLIP_L | {
    "hidden_size": 40, "num_attention_heads": 20, "projection_dim": 40, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip
WAN_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_scales": [],
           "temperal_downsample": [False, True, True]}  # fmt: skip
Z_IMAGE = {
    "dim": 256, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
    "axes_lens": [1536, 512, 512],
}  # fmt: skip
ANIMA = {
    "in_channels": 17, "out_channels": 16, "num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2,
    "mlp_ratio": 2.0, "text_embed_dim": 24, "adaln_lora_dim": 16, "rope_scale": (1.0, 4.0, 4.0),
    "concat_padding_mask": False, "extra_pos_embed_type": None,
}  # fmt: skip
ADAPTER = {
    "source_dim": 24, "target_dim": 24, "model_dim": 24, "num_layers": 2, "num_attention_heads": 3,
    "target_vocab_size": 32128, "use_self_attention": True,
}  # fmt: skip
GEMMA2 = {
    "vocab_size": 800, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 256,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
LUMINA2 = {
    "hidden_size": 192, "num_layers": 2, "num_refiner_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1,
    "cap_feat_dim": 24,
}  # fmt: skip
QWEN3_VL = QWEN3 | {
    "num_hidden_layers": 36, "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
}  # fmt: skip
KREA2 = {
    "num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96,
    "timestep_embed_dim": 32, "text_hidden_dim": 24, "text_num_attention_heads": 2, "text_num_key_value_heads": 1,
    "text_intermediate_size": 32,
}  # fmt: skip
MINISTRAL = {
    "vocab_size": 640, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 128,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
ERNIE_IMAGE = {
    "hidden_size": 256, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 96, "text_in_dim": 24,
}  # fmt: skip
MISTRAL = MINISTRAL | {
    "num_hidden_layers": 30, "final_norm": False, "sliding_window": None, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e9}, "use_cache": False,
}  # fmt: skip
PILE_T5 = T5 | {"vocab_size": 800, "pad_token_id": 1, "eos_token_id": 2}
AURAFLOW = {
    "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 256, "num_attention_heads": 1,
    "joint_attention_dim": 24, "caption_projection_dim": 256, "pos_embed_max_size": 64,
}  # fmt: skip
LLAMA = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 32, "head_dim": 128,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "use_cache": False,
}  # fmt: skip
HIDREAM = {
    "patch_size": 2, "in_channels": 16, "num_layers": 2, "num_single_layers": 1, "attention_head_dim": 128,
    "num_attention_heads": 1, "caption_channels": [24, 32], "text_emb_dim": 64, "axes_dims_rope": (64, 32, 32),
    "llama_layers": [0, 1, 2],
}  # fmt: skip
QWEN_IMAGE = {
    "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 128, "in_channels": 64, "out_channels": 16,
}  # fmt: skip
SD3 = {
    "num_layers": 3, "num_attention_heads": 1, "attention_head_dim": 64, "joint_attention_dim": 72,
    "caption_projection_dim": 64, "pooled_projection_dim": 64, "pos_embed_max_size": 24, "sample_size": 16,
}  # fmt: skip
_SD3_TEXT = {
    "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
    "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
    "text_encoder_3": ("T5EncoderModel", T5 | {"d_model": 72}),
}
Model = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Component → class and arguments."""

TINY: dict[str, Model] = {
    "flux1": {
        "transformer": ("FluxTransformer2DModel", FLUX), "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5), "vae": ("AutoencoderKL", KL),
    },
    "flux1-schnell": {
        "transformer": ("FluxTransformer2DModel", FLUX | {"guidance_embeds": False}),
        "text_encoder": ("CLIPTextModel", CLIP_L), "text_encoder_2": ("T5EncoderModel", T5),
        "vae": ("AutoencoderKL", KL),
    },
    "flux2-dev": {
        "transformer": ("Flux2Transformer2DModel", FLUX2_DEV), "text_encoder": ("MistralModel", MISTRAL),
        "vae": ("AutoencoderKLFlux2", FLUX2_KL),
    },
    "flux2": {
        "transformer": ("Flux2Transformer2DModel", FLUX2), "text_encoder": ("Qwen3Model", DEEP_QWEN3),
        "vae": ("AutoencoderKLFlux2", FLUX2_KL),
    },
    "chroma": {
        "transformer": ("ChromaTransformer2DModel", CHROMA), "text_encoder": ("T5EncoderModel", T5),
        "vae": ("AutoencoderKL", KL),
    },
    "z-image": {
        "transformer": ("ZImageTransformer2DModel", Z_IMAGE), "text_encoder": ("Qwen3Model", QWEN3),
        "vae": ("AutoencoderKL", KL),
    },
    "anima": {
        "transformer": ("CosmosTransformer3DModel", ANIMA), "text_conditioner": ("AnimaTextConditioner", ADAPTER),
        "text_encoder": ("Qwen3Model", QWEN3), "vae": ("AutoencoderKLQwenImage", WAN_VAE),
    },
    "lumina2": {
        "transformer": ("Lumina2Transformer2DModel", LUMINA2), "text_encoder": ("Gemma2Model", GEMMA2),
        "vae": ("AutoencoderKL", KL),
    },
    "krea2": {
        "transformer": ("Krea2Transformer2DModel", KREA2), "text_encoder": ("Qwen3Model", QWEN3_VL),
        "vae": ("AutoencoderKLQwenImage", WAN_VAE),
    },
    "ernie-image": {
        "transformer": ("ErnieImageTransformer2DModel", ERNIE_IMAGE), "text_encoder": ("Ministral3Model", MINISTRAL),
        "vae": ("AutoencoderKLFlux2", FLUX2_KL),
    },
    "auraflow": {
        "transformer": ("AuraFlowTransformer2DModel", AURAFLOW), "text_encoder": ("UMT5EncoderModel", PILE_T5),
        "vae": ("AutoencoderKL", XL_KL),
    },
    "hidream": {
        "transformer": ("HiDreamImageTransformer2DModel", HIDREAM),
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L | {"max_position_embeddings": 248}),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G | {"max_position_embeddings": 218}),
        "text_encoder_3": ("T5EncoderModel", T5), "text_encoder_4": ("LlamaModel", LLAMA),
        "vae": ("AutoencoderKL", KL),
    },
    "qwen-image": {
        "transformer": ("QwenImageTransformer2DModel", QWEN_IMAGE), "text_encoder": ("Qwen2Model", QWEN25),
        "vae": ("AutoencoderKLQwenImage", WAN_VAE),
    },
    "sd3": {"transformer": ("SD3Transformer2DModel", SD3), **_SD3_TEXT, "vae": ("AutoencoderKL", SD3_KL)},
    "sd3.5-medium": {
        "transformer": ("SD3Transformer2DModel", SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}),
        **_SD3_TEXT, "vae": ("AutoencoderKL", SD3_KL),
    },
}  # fmt: skip


PREFIX = "model.diffusion_model."
"""The prefix of the transformer's tensors in an all-in-one file."""


def cases(layouts: Iterable[str]) -> list[Any]:
    """Every tiny model with every layout, as arguments of a test; all but those of Flux.1 are for the long tests."""
    return [
        pytest.param(name, layout, marks=() if name == "flux1" else (pytest.mark.long,))
        for name in TINY
        for layout in layouts
    ]


def piece_model(name: str = "gemma") -> bytes:
    """A small SentencePiece model with the options of Gemma or of LLaMA."""
    return base64.b64decode(recorded("pieces")[name]["model"])


def tekken_model() -> bytes:
    """A small Tekken vocabulary."""
    return str(recorded("tekken")["model"]).encode()


def recorded(name: str) -> Any:
    """The contents of a packed fixture."""
    return json.loads(gzip.decompress((Path(__file__).parent / "fixtures" / f"{name}.json.gz").read_bytes()))


@cache
def llama_tokenizer() -> bytes:
    """A small `tokenizer.json` with the rules of Llama 3: its words, bytes, and the names of its special tokens."""
    made = Tokenizer(models.BPE(vocab=_llama_words(), merges=_LLAMA_MERGES, ignore_merges=True))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), as_bytes])
    made.add_special_tokens([*LLAMA_ENDS])
    start, _ = LLAMA_ENDS
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))]
    )
    return made.to_str().encode()


LLAMA_ENDS = ("<|begin_of_text|>", "<|eot_id|>")
_LLAMA_MERGES = [("Ġ", "a"), ("p", "h"), ("o", "t"), ("Ġ", "o"), ("Ġo", "f"), ("a", "t"), ("Ġ", "c"), ("Ġc", "at")]


def _llama_words() -> dict[str, int]:
    return {word: number for number, word in enumerate([*byte_symbols(), *("".join(pair) for pair in _LLAMA_MERGES)])}


def tokenizer_of(role: str) -> bytes:
    """The small tokenizer of a text encoder: of a kind that the encoder's file may contain."""
    if role == "llama":
        return llama_tokenizer()
    return tekken_model() if "mistral" in role or "ministral" in role else piece_model(PIECES.get(role, "gemma"))


PIECES = {"pile-t5": "llama"}
"""Maps the role of a text encoder to the SentencePiece model that it has, if that is not Gemma's."""


def byte_tensor(data: bytes) -> Tensor:
    """Return the bytes as a tensor, as text encoders' files contain their tokenizer."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def modules(name: str, seed: int = 0, models: Mapping[str, Model] = TINY) -> dict[str, nn.Module]:
    """Build a model's components with random weights, the same ones for the same seed."""
    made = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for component, (kind, config) in models[name].items():
            module = construct_class(kind, dict(config)).eval().requires_grad_(requires_grad=False)
            spread = 1.0 if component == "vae" else 0.7
            for key, tensor in module.state_dict().items():
                if tensor.is_floating_point() and tensor.ndim > 1:
                    tensor.copy_(torch.randn(tensor.shape) * (spread / tensor[0].numel() ** 0.5))
                elif tensor.is_floating_point():
                    tensor.copy_((not key.endswith("bias")) + 0.1 * torch.randn(tensor.shape))
            made[component] = module
    return made


def original_tensors(
    name: str, family: Any, made: Mapping[str, nn.Module], models: Mapping[str, Model] = TINY
) -> dict[str, Tensor]:
    """A model's tensors in the layout of an all-in-one file, by the family's own tables read backwards.

    Whether the tables are right is another test's question, which asks diffusers' converters.
    """
    tensors: dict[str, Tensor] = {}
    kinds = {need.component: need.kind for need in family.needs}
    for component, module in made.items():
        state = module.state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        if component in kinds:
            kind = kinds[component]
            prefix = kind.prefixes[0]
            sources = kind.sources(shapes, dict(models[name][component][1]))
            for key in kind.tokenizers[:1]:
                tensors[f"text_encoders.{key}"] = byte_tensor(tokenizer_of(kind.role))
            if "CLIP" in kind.model:
                prefix += "text_model."
        else:
            prefix = PREFIX
            sources = family.sources(component, shapes, "")
        tensors |= {prefix + key: value for key, value in backwards(state, sources).items()}
    return tensors


def apart(family: Any, tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """The transformer's tensors without prefix, and the file of each part with the names of a file of its own."""
    own = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    parts = {}
    for kind in (need.kind for need in family.needs):
        prefix, tokenizer = kind.prefixes[0], kind.tokenizer_in(shapes)
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if tokenizer is not None:
            found[tokenizer.rpartition(".")[2]] = tensors[tokenizer]
        parts[kind.role] = write_part(folder / f"{kind.role}.safetensors", kind, found)
    return own, parts


def write_part(path: Path, kind: Any, tensors: Mapping[str, Tensor]) -> Path:
    """Write a part's file of its own; `tensors` have no prefix."""
    prefix = "" if "" in kind.prefixes else kind.prefixes[1]
    named = {key if key in kind.tokenizers else prefix + key: value.clone() for key, value in tensors.items()}
    save_file(named, str(path))
    return path


def backwards(state: Mapping[str, Tensor], sources: Mapping[str, Any]) -> dict[str, Tensor]:
    """Join what `sources` takes apart."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for parameter, source in sources.items():
        tensor = state[parameter]
        if source.swaps_halves:
            half = tensor.shape[0] // 2
            tensor = torch.cat([tensor[half:], tensor[:half]])
        pieces.setdefault(source.name, []).append((source.rows[0] if source.rows else 0, tensor))
    whole = {}
    for key, parts in pieces.items():
        ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
        whole[key] = torch.cat(ordered) if len({start for start, _ in parts}) == len(parts) else ordered[0]
        if key.endswith(".mod.lin"):  # the original file of Krea 2 has all six vectors of a block in one
            whole[key] = whole[key].flatten()
    return {key: value.contiguous().clone() for key, value in whole.items()}


def write(path: Path, name: str, family: Any, *, made: Mapping[str, nn.Module] | None = None) -> Path:
    """Write an all-in-one file."""
    save_file(original_tensors(name, family, made or modules(name)), str(path))
    return path
