"""Models that stable-diffusion.cpp can run: as few layers and as narrow as it allows, with random weights.

stable-diffusion.cpp reads some dimensions from a file and has others built in, such as T5's 24 layers of width 4096. A
model here has the built-in widths, but few layers. stable-diffusion.cpp's copy of a file has the missing layers, too:
they are zeros, so that they add nothing to their input. The copy is a GGUF file with holes in place of the zeros.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_flows
import torch
from gguf import GGMLQuantizationType as Kind
from published_sizes import class_shapes
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.families.registry import FLOW_FAMILIES

ARGUMENTS = {
    "transformer": "diffusion_model_path", "vae": "vae_path", "t5": "t5xxl_path", "clip-l": "clip_l_path",
    "clip-g": "clip_g_path", "qwen3": "llm_path", "qwen2.5-vl": "llm_path", "ministral": "llm_path",
    "mistral": "llm_path",
}  # fmt: skip
"""Role of a file → the argument of stable-diffusion.cpp's binding that takes it."""

_KL_WIDTHS = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "norm_num_groups": 32}
_KL = ("AutoencoderKL", tiny_flows.KL | _KL_WIDTHS)
_FLUX2_KL = ("AutoencoderKLFlux2", tiny_flows.FLUX2_KL | _KL_WIDTHS)
_WAN = ("AutoencoderKLQwenImage", tiny_flows.WAN_VAE | {"base_dim": 96, "dim_mult": [1, 2, 4, 4]})
_CLIP_L = tiny_flows.CLIP_L | {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
_CLIP_G = tiny_flows.CLIP_G | {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280}
_T5 = ("T5EncoderModel", tiny_flows.T5 | {"d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 1})
_SMALL_T5 = ("T5EncoderModel", tiny_flows.T5 | {"d_model": 4096, "num_layers": 1})
_QWEN3 = tiny_flows.QWEN3 | {"head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8}
_MISTRAL_HEADS = {"vocab_size": 131072, "num_attention_heads": 32, "num_key_value_heads": 8}
_FLUX = tiny_flows.FLUX | {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
_FLUX_PARTS = {"text_encoder": ("CLIPTextModel", _CLIP_L), "text_encoder_2": _T5, "vae": _KL}


@dataclass(frozen=True)
class Stretch:
    """The number of layers that stable-diffusion.cpp expects under a prefix, and the places of the model's own."""

    prefix: str
    layers: int
    places: tuple[int, ...] = (0,)


_T5_LAYERS = {"t5": (Stretch("encoder.block.", 24),)}
# some hidden states are taken before the last layer, so the model's last layer stays the last one
_CLIP_LAYERS = {"clip-l": (Stretch("text_model.encoder.layers.", 12, (0, 11)),)}


@dataclass(frozen=True)
class Peer:
    """A model and how to run it."""

    components: tiny_flows.Model
    stretches: Mapping[str, tuple[Stretch, ...]] = field(default_factory=dict)
    prefix: str = ""
    """The prefix of the transformer's tensor names in its file."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of stable-diffusion.cpp."""
    cfg: float = 1.0
    is_shift_mu: bool = False
    """Whether stable-diffusion.cpp takes the logarithm of the shift."""
    has_own_shift: bool = False
    """Whether stable-diffusion.cpp computes the shift from the image's size and the steps."""
    prompt: str = "a photo of a cat"
    steps: int = 4
    is_mute: bool = False
    """Whether T5's states are zeros, and stable-diffusion.cpp runs without T5, for which it takes zeros."""
    scaled: Mapping[str, float] = field(default_factory=dict)
    """The end of a tensor's name → a factor of its numbers."""


PEERS: dict[str, Peer] = {
    "flux1-dev": Peer(
        {"transformer": ("FluxTransformer2DModel", _FLUX), **_FLUX_PARTS}, _T5_LAYERS | _CLIP_LAYERS, is_shift_mu=True,
    ),
    "flux1-schnell": Peer(
        {
            "transformer": ("FluxTransformer2DModel", _FLUX | {"guidance_embeds": False}),
            "text_encoder": ("CLIPTextModel", _CLIP_L), "text_encoder_2": _SMALL_T5, "vae": _KL,
        },
        _CLIP_LAYERS, is_shift_mu=True, is_mute=True,
    ),
    "chroma": Peer(
        {
            "transformer": ("ChromaTransformer2DModel", tiny_flows.CHROMA | {
                "joint_attention_dim": 4096, "num_layers": 19, "num_single_layers": 38,
                "approximator_hidden_dim": 5120, "approximator_layers": 5,
            }),
            "text_encoder": _SMALL_T5, "vae": _KL,
        },
        options={"chroma_use_dit_mask": False}, is_shift_mu=True, is_mute=True,
        prompt="cat " * 255,  # and the end token: as many tokens as stable-diffusion.cpp takes zeros
    ),
    "sd3": Peer(
        {
            "transformer": ("SD3Transformer2DModel", {
                "num_layers": 2, "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096,
                "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
                "sample_size": 128, "qk_norm": "rms_norm",
            }),
            "text_encoder": ("CLIPTextModelWithProjection", _CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G), "text_encoder_3": _T5,
            "vae": ("AutoencoderKL", tiny_flows.SD3_KL | _KL_WIDTHS),
        },
        _T5_LAYERS | _CLIP_LAYERS | {
            "clip-g": (Stretch("text_model.encoder.layers.", 32, (0, 31)),),
            "transformer": (Stretch("joint_blocks.", 24, (0, 1)),),
        },
        steps=2,
    ),
    "qwen-image": Peer(
        {
            "transformer": ("QwenImageTransformer2DModel", tiny_flows.QWEN_IMAGE | {
                "num_layers": 1, "num_attention_heads": 24, "joint_attention_dim": 3584,
            }),
            "text_encoder": ("Qwen2Model", tiny_flows.QWEN25 | {
                "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 1,
                "intermediate_size": 256,
            }),
            "vae": _WAN,
        },
        cfg=3.0, scaled={"norm_added_q.weight": 0.0, "norm_added_k.weight": 0.0},
    ),
    "z-image": Peer(
        {
            "transformer": ("ZImageTransformer2DModel", tiny_flows.Z_IMAGE | {
                "dim": 3840, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 30, "n_kv_heads": 30,
                "cap_feat_dim": 2560,
            }),
            "text_encoder": ("Qwen3Model", _QWEN3 | {"hidden_size": 2560, "num_hidden_layers": 2}),
            "vae": _KL,
        },
        {
            "qwen3": (Stretch("model.layers.", 36, (0, 35)),),
            "transformer": (
                Stretch("layers.", 30), Stretch("noise_refiner.", 2), Stretch("context_refiner.", 2),
            ),
        },
        steps=2,
    ),
    "anima": Peer(
        {
            "transformer": ("CosmosTransformer3DModel", tiny_flows.ANIMA | {
                "num_attention_heads": 16, "num_layers": 1, "mlp_ratio": 4.0, "text_embed_dim": 1024,
                "adaln_lora_dim": 256,
            }),
            "text_conditioner": ("AnimaTextConditioner", tiny_flows.ADAPTER | {
                "source_dim": 1024, "target_dim": 1024, "model_dim": 1024, "num_layers": 6, "num_attention_heads": 16,
            }),
            "text_encoder": ("Qwen3Model", _QWEN3 | {"hidden_size": 1024, "num_hidden_layers": 2}),
            "vae": _WAN,
        },
        prefix="net.", cfg=3.0, scaled={"llm_adapter.norm.weight": 30.0},
    ),
    "flux2": Peer(
        {
            "transformer": ("Flux2Transformer2DModel", tiny_flows.FLUX2),
            "text_encoder": ("Qwen3Model", _QWEN3 | {"num_hidden_layers": 28, "num_attention_heads": 16}),
            "vae": _FLUX2_KL,
        },
        cfg=3.0, has_own_shift=True,
    ),
    "flux2-dev": Peer(
        {
            "transformer": ("Flux2Transformer2DModel", tiny_flows.FLUX2_DEV | {"num_single_layers": 48}),
            "text_encoder": ("MistralModel", tiny_flows.MISTRAL | _MISTRAL_HEADS), "vae": _FLUX2_KL,
        },
        has_own_shift=True, prompt="a photo of a cat" + " and a photo of a dog" * 79,
    ),
    "ernie-image": Peer(
        {
            "transformer": ("ErnieImageTransformer2DModel", tiny_flows.ERNIE_IMAGE | {
                "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 1,
            }),
            "text_encoder": ("Ministral3Model", tiny_flows.MINISTRAL | _MISTRAL_HEADS | {"num_hidden_layers": 26}),
            "vae": _FLUX2_KL,
        },
        cfg=3.0, scaled={"self_attn.o_proj.weight": 0.0},
    ),
}  # fmt: skip
"""Name, which begins with the family's → the model."""


def family_of(name: str) -> FlowFamily:
    return next(each for each in FLOW_FAMILIES if name.startswith(each.name))


def write_files(name: str, folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Write a model's files; returns those for civman and those for stable-diffusion.cpp, by role."""
    family, peer = family_of(name), PEERS[name]
    models = {name: peer.components}
    tensors = tiny_flows.original_tensors(name, family, _random(peer), models)
    ours, theirs = {}, {}
    for role, own in _apart(family, peer, tensors):
        ours[role] = folder / f"{role}.safetensors"
        save_file(own, ours[role])
        if role == "t5" and peer.is_mute:
            continue
        theirs[role] = ours[role]
        if role == "mistral":
            theirs[role] = folder / "interleaved.safetensors"
            norm = {"model.norm.weight": torch.ones(own["model.embed_tokens.weight"].shape[1])}  # it is not used
            save_file(_interleaved(own) | norm, theirs[role])
        if role in peer.stretches:
            theirs[role] = folder / f"{role}.gguf"
            with_zeros = _sd3_blocks if (name, role) == ("sd3", "transformer") else _stretched
            _write_with_holes(theirs[role], *with_zeros(own, peer.stretches[role]))
    if any(need.kind.tokenizers for need in family.needs):
        ours["tokenizer"] = folder / "tekken.json"
        ours["tokenizer"].write_bytes(_tekken())
    return ours, theirs


def _interleaved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Order the rows of Mistral's queries and keys as in llama.cpp's files: two that are turned together are a pair."""
    return {
        key: value.reshape(-1, 2, 64, value.shape[1]).transpose(1, 2).reshape(value.shape).contiguous()
        if key.endswith(("q_proj.weight", "k_proj.weight"))
        else value
        for key, value in tensors.items()
    }


def _tekken() -> bytes:
    """Mistral's vocabulary with the tokens of these tests alone, and unused ones in all other places."""
    known = json.loads((_FIXTURES / "mistral_words.json").read_text())
    small = json.loads(tiny_flows.tekken_model())
    reserved, count = 1000, 131072
    tokens = {reserved + byte: bytes([byte]) for byte in range(256)}
    tokens |= {number: text.encode() for text, number in known.items()}
    small["config"] |= {"default_vocab_size": count, "default_num_special_tokens": reserved}
    small["vocab"] = [
        {"rank": number - reserved, "token_bytes": base64.b64encode(tokens.get(number, b"unused %d" % number)).decode()}
        for number in range(reserved, count)
    ]
    return json.dumps(small).encode()


_FIXTURES = Path(tiny_flows.__file__).parent / "fixtures"


class _Numbers:
    """The parameters of a module, of which nothing else is needed."""

    def __init__(self, numbers: dict[str, Tensor]) -> None:
        self._numbers = numbers

    def state_dict(self) -> dict[str, Tensor]:
        return self._numbers


def _random(peer: Peer) -> dict[str, Any]:
    """Draw the parameters of each component."""
    made = {}
    drawn = torch.Generator().manual_seed(0)
    for component, (kind, config) in peer.components.items():
        numbers = {}
        for key, shape in class_shapes(kind, config).items():
            if key.endswith("num_batches_tracked"):
                numbers[key] = torch.zeros(shape, dtype=torch.int64)
            elif len(shape) == 1:
                numbers[key] = (not key.endswith("bias")) + 0.1 * torch.randn(shape, generator=drawn)
            else:
                few = (min(shape[0], _FEW), *shape[1:]) if _is_embedding(key) else shape
                spread = _SPREAD.get(component, 1.0)
                some = torch.randn(few, generator=drawn).mul_(spread / math.prod(shape[1:]) ** 0.5)
                numbers[key] = some.half().repeat(-(-shape[0] // _FEW), 1)[: shape[0]] if _is_embedding(key) else some
        made[component] = _Numbers(numbers)
    return made


_FEW = 5003
"""The number of different rows of an embedding."""
_SPREAD = {"transformer": 1.5}
"""Component → the size of its numbers, relative to those that keep the size of a layer's input; 1 for those not named.

The transformer's are larger, so that its output depends much on the text and on the noise level.
"""


def _apart(family: FlowFamily, peer: Peer, tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Take the tensors apart into files: role → tensors, large embeddings in half precision."""
    prefixes = {"transformer": ("model.diffusion_model.", peer.prefix)}
    for kind in (need.kind for need in family.needs):
        is_language_model = kind.prefixes[0].endswith(".transformer.model.")
        prefixes[kind.role] = (kind.prefixes[0], "model." if is_language_model else "")
    for role, (old, new) in prefixes.items():
        found = {new + key.removeprefix(old): tensors.pop(key) for key in [*tensors] if key.startswith(old)}
        if "text_model.text_projection.weight" in found:  # published files have it beside the text model
            found["text_projection.weight"] = found.pop("text_model.text_projection.weight")
            if role == "clip-l":  # stable-diffusion.cpp does without
                found["text_projection.weight"] = torch.eye(len(found["text_projection.weight"]))
        if "bn.running_mean" in found:
            found |= _flux2_latents(1e-5 if family.name == "ernie-image" else 1e-4)
        for key in found:
            for ending, factor in peer.scaled.items():
                if key.endswith(ending):
                    found[key] *= factor
        if role == "t5" and peer.is_mute:
            found["encoder.final_layer_norm.weight"].zero_()
        yield role, found


def _is_embedding(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "shared.weight", "llm_adapter.embed.weight"))


def _flux2_latents(epsilon: float) -> dict[str, Tensor]:
    """The statistics of Flux.2's latents, which stable-diffusion.cpp does not read from the file."""
    known = json.loads((_FIXTURES / "flux2_latents.json").read_text())
    spread = torch.tensor(known["std"], dtype=torch.float64)
    return {"bn.running_mean": torch.tensor(known["mean"]), "bn.running_var": (spread**2 - epsilon).float()}


def _stretched(
    tensors: Mapping[str, Tensor], stretches: tuple[Stretch, ...]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Move the model's layers to their places; returns all tensors, and the shapes of those that are zeros."""
    placed, zeros = dict(tensors), {}
    for stretch in stretches:
        own = {key: value for key, value in tensors.items() if key.startswith(stretch.prefix)}
        for key in own:
            del placed[key]
        for key, value in own.items():
            number, _, rest = key.removeprefix(stretch.prefix).partition(".")
            placed[f"{stretch.prefix}{stretch.places[int(number)]}.{rest}"] = value
            if number == "0" and "relative_attention_bias" not in key:
                for layer in range(stretch.layers):
                    if layer not in stretch.places:
                        zeros[f"{stretch.prefix}{layer}.{rest}"] = tuple(value.shape)
    return placed, zeros


def _sd3_blocks(
    tensors: Mapping[str, Tensor], stretches: tuple[Stretch, ...]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Do the same for SD3's blocks, of which the last one has fewer layers for the text than the others.

    The model's last block gets these layers as zeros, since it is no longer the last one; nothing reads their output.
    """
    (stretch,) = stretches
    own, end = f"{stretch.prefix}{stretch.places[-1]}.", f"{stretch.prefix}{stretch.layers - 1}."
    found = dict(tensors)
    for key, value in tensors.items():
        if key.startswith(f"{stretch.prefix}0.context_block."):
            mine = own + key.removeprefix(f"{stretch.prefix}0.")
            shorter = tensors.get(mine, torch.zeros(0, *value.shape[1:]))
            found[mine] = pad(shorter, (0, 0) * (value.ndim - 1) + (0, len(value) - len(shorter)))
    placed, zeros = _stretched(found, stretches)
    last = {end + key.removeprefix(own): tuple(value.shape) for key, value in tensors.items() if key.startswith(own)}
    return placed, {key: shape for key, shape in zeros.items() if not key.startswith(end)} | last


def _write_with_holes(path: Path, tensors: Mapping[str, Tensor], zeros: Mapping[str, tuple[int, ...]]) -> None:
    """Write a GGUF file whose zeros take no place on the disk, and little in memory: matrices are in Q2_K."""
    writer = gguf.GGUFWriter(path, "test")
    sizes = []
    for name, value in tensors.items():
        kind = Kind.F16 if value.dtype == torch.float16 else Kind.F32
        sizes.append((value, value.numel() * value.element_size()))
        writer.add_tensor_info(name, tuple(value.shape), np.dtype(np.float32), sizes[-1][1], raw_dtype=kind)
    for name, shape in zeros.items():
        kind = Kind.Q2_K if len(shape) == 2 and shape[1] % 256 == 0 else Kind.F32
        block, width = gguf.GGML_QUANT_SIZES[kind]
        sizes.append((None, math.prod(shape) // block * width))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), sizes[-1][1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        at = _aligned(file.seek(0, 2))
        for data, size in sizes:
            if data is not None:
                file.seek(at)
                file.write(data.contiguous().numpy().data)
            at = _aligned(at + size)
        file.truncate(at)


def _aligned(place: int) -> int:
    return -(-place // 32) * 32
