"""The kinds of text encoders and VAEs that checkpoints of transformer families need: how to recognise and build each.

A part is stored in the checkpoint, with a prefix before its tensor names, or in a separate file. Its config is computed
from tensor shapes. Does not import torch.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count, text_config, vae_config
from civman.diffusion.component_layouts import Source, own_vae_names, vae_sources
from civman.domain.files.tokenizer_files import JSON, PIECES, TEKKEN
from civman.errors import CannotRender, Cause

Sources = Callable[[Mapping[str, tuple[int, ...]], Config], dict[str, Source]]


@dataclass(frozen=True, slots=True, eq=False)
class PartKind:
    """One kind of part. `role` is its name in recipes and on the command line, such as "t5" or "clip-l"."""

    role: str
    title: str
    model: str
    """The name of the class that computes this part, as in `model_classes.construct_class`."""
    prefixes: tuple[str, ...]
    """Prefixes of this part's tensor names, in the order in which they are tried; those of separate files come last."""
    probes: tuple[str, ...]
    """The tensor names (without prefix) by which a file that contains this part is recognised."""
    config: Callable[[Shapes], Config] = field(repr=False)
    """A function that builds the class's arguments from the part's tensor shapes; names are without prefix."""
    sources: Sources = field(repr=False)
    """A function that maps each parameter of the class to its tensor in the file; names are without prefix."""
    names: Callable[[Iterable[str]], Mapping[str, str]] = field(default=lambda names: {n: n for n in names}, repr=False)
    """A function that maps the tensor names that `config` and `sources` use to the names in a file.

    It is called with the names in the file. All names are without prefix.
    """
    tokenizers: tuple[str, ...] = ()
    """The possible names of the tensor that contains the part's tokenizer, in the order in which they are tried; see
    `civman.domain.files.tokenizer_files`. Empty for parts whose tokenizer is shipped with civman.
    """
    lacks: tuple[str, ...] = ()
    """Tensor names (without prefix) that show that a file contains a similar part of another kind instead."""

    def prefix_in(self, shapes: Shapes) -> str | None:
        """Return the prefix of this part's tensor names in a file; None if the file does not contain the part."""
        for prefix in self.prefixes:
            own = self.shapes_in(shapes, prefix)
            if all(probe in own for probe in self.probes) and not any(name in own for name in self.lacks):
                return prefix
        return None

    def shapes_in(self, shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of this part's tensors, by the names (without prefix) that `config` and `sources` use."""
        own = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        return {plain: own[name] for plain, name in self.names(own).items()}

    def tokenizer_in(self, shapes: Shapes) -> str | None:
        """Return the name of the tensor with this part's tokenizer, or None if the file has none."""
        names = [prefix + name for name in self.tokenizers for prefix in ("text_encoders.", "")]
        return next((name for name in names if name in shapes), None)

    def sources_in(
        self, wanted: Mapping[str, tuple[int, ...]], config: Config, shapes: Shapes, prefix: str
    ) -> dict[str, Source]:
        """Map each parameter of the part's class to its tensor in a file that contains the part under `prefix`."""
        own = [name[len(prefix) :] for name in shapes if name.startswith(prefix)]
        actual = self.names(own)
        return {
            parameter: replace(source, name=prefix + actual.get(source.name, source.name))
            for parameter, source in self.sources(wanted, config).items()
        }


def _plainly(wanted: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Source]:  # noqa: ARG001
    """Map parameters to tensors of the same names."""
    return {parameter: Source(parameter) for parameter in wanted}


def _clip_names(names: Iterable[str]) -> dict[str, str]:
    """Map CLIP's names without the prefix `text_model.` to the names in the file, which may have this prefix."""
    return {name.removeprefix("text_model."): name for name in names}


def _clip_sources(wanted: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Source]:  # noqa: ARG001
    return {parameter: Source(parameter.removeprefix("text_model.")) for parameter in wanted}


def _clip_config(hidden_act: str, heads: int) -> Callable[[Shapes], Config]:
    usual = {"layout": "transformers", "hidden_act": hidden_act, "heads": heads, "drop_last_layers": 0}
    # pad as in training: CLIP-G was trained on texts padded with token 0, CLIP-L on texts padded with the end token
    padding = 49407 if hidden_act == "quick_gelu" else 0
    return lambda shapes: text_config(usual, shapes, "") | {"pad_token_id": padding}


def _t5_config(shapes: Shapes) -> Config:
    vocabulary, width = shapes["shared.weight"]
    bias = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    inner = shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0]
    return {
        "vocab_size": vocabulary, "d_model": width, "d_kv": inner // bias[1], "num_heads": bias[1],
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": count(shapes, "encoder.block."), "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": bias[0], "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6, "is_encoder_decoder": False, "use_cache": False, "tie_word_embeddings": True,
    }  # fmt: skip


def _pile_t5_config(shapes: Shapes) -> Config:
    # Pile-T5 uses LLaMA's tokenizer, so its special tokens have the ids of that tokenizer
    return _t5_config(shapes) | {"pad_token_id": 1, "eos_token_id": 2}


def _t5_names(names: Iterable[str]) -> dict[str, str]:
    """Map both possible names of the token embeddings, `shared` and `encoder.embed_tokens`, to the one in the file."""
    found = {name: name for name in names if not name.startswith("decoder.")}
    table = found.get("shared.weight") or found.get("encoder.embed_tokens.weight")
    return found if table is None else found | {"shared.weight": table, "encoder.embed_tokens.weight": table}


def _language_model(shapes: Shapes) -> Config:
    vocabulary, width = shapes["embed_tokens.weight"]
    first = "layers.0.self_attn."
    norm = shapes.get(f"{first}q_norm.weight")
    head = norm[0] if norm is not None else 128
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, "layers."), "head_dim": head,
        "num_attention_heads": shapes[f"{first}q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{first}k_proj.weight"][0] // head,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "use_cache": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip


def _qwen3_vl(shapes: Shapes) -> Config:
    return _language_model(shapes) | {
        "max_position_embeddings": 262144, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    }  # fmt: skip


def _ministral(shapes: Shapes) -> Config:
    return _language_model(shapes) | {
        "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
            "max_position_embeddings": 262144, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
    }  # fmt: skip


def _mistral(shapes: Shapes) -> Config:
    """Build the config of Mistral Small 3 with only the layers that Flux.2 dev's transformer reads.

    The published encoder has ten more layers and a final norm.
    """
    if (layers := count(shapes, "layers.")) < _MISTRAL_LAYERS:
        raise CannotRender(
            f"this Mistral Small 3 text encoder has {layers} layers, but the transformer reads {_MISTRAL_LAYERS}",
            hint="use the text encoder that is published for the model", code=Cause.MISMATCHED_PARTS,
        )  # fmt: skip
    return _language_model(shapes) | {
        "num_hidden_layers": _MISTRAL_LAYERS, "final_norm": False, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    }  # fmt: skip


_MISTRAL_LAYERS: Final = 30


def _llama(shapes: Shapes) -> Config:
    """Describe Llama 3.1 8B, of which HiDream's transformer reads every layer."""
    if (layers := count(shapes, "layers.")) != LLAMA_LAYERS:
        raise CannotRender(
            f"this Llama text encoder has {layers} layers, but the transformer reads the {LLAMA_LAYERS} of Llama 3.1 "
            "8B",
            hint="use Llama 3.1 8B Instruct", code=Cause.MISMATCHED_PARTS,
        )  # fmt: skip
    return _language_model(shapes) | {
        "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip


LLAMA_LAYERS: Final = 32


def _long_clip(plain: Callable[[Shapes], Config]) -> Callable[[Shapes], Config]:
    """Describe a CLIP text encoder with more positions than the usual 77."""

    def config(shapes: Shapes) -> Config:
        found = plain(shapes)
        if (places := int(found["max_position_embeddings"])) < LONG_CLIP:
            raise CannotRender(
                f"this CLIP text encoder reads {places} tokens, but the model's own reads at least {LONG_CLIP}",
                hint="use the text encoder that is published for the model", code=Cause.MISMATCHED_PARTS,
            )  # fmt: skip
        return found

    return config


LONG_CLIP: Final = 128
"""The number of tokens that HiDream reads with each of its CLIP text encoders."""


def _gemma(shapes: Shapes) -> Config:
    vocabulary, width = shapes["embed_tokens.weight"]
    head = 256  # the head width in all sizes of Gemma 2 but the largest
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, "layers."), "head_dim": head, "query_pre_attn_scalar": head,
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
        "sliding_window": 4096, "use_cache": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip


def _kl_config(scale: float, shift: float) -> Callable[[Shapes], Config]:
    usual = {
        "sample_size": 1024, "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": scale, "shift_factor": shift,
    }  # fmt: skip

    def config(shapes: Shapes) -> Config:
        has_convs = {
            "use_quant_conv": "quant_conv.weight" in shapes, "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }  # fmt: skip
        return vae_config(usual, shapes) | has_convs

    return config


def _kl_names(names: Iterable[str]) -> Mapping[str, str]:
    try:
        return own_vae_names(names, "")
    except CannotRender:  # the file contains no VAE of the requested kind
        return {}


def _kl_sources(wanted: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Source]:
    return vae_sources(wanted, config, "")


def _flux2_config(batch_norm_eps: float) -> Callable[[Shapes], Config]:
    usual = {"sample_size": 1024, "act_fn": "silu", "norm_num_groups": 32, "batch_norm_eps": batch_norm_eps}

    def config(shapes: Shapes) -> Config:
        has_convs = {
            "use_quant_conv": "quant_conv.weight" in shapes, "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }  # fmt: skip
        return vae_config(usual, shapes) | has_convs

    return config


def _flux2_names(names: Iterable[str]) -> Mapping[str, str]:
    """Remove the prefix `encoder.` or `decoder.` from the names of the 1×1 convolutions next to the latents."""
    short = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
    plain = dict(_kl_names(names))
    for name in [*plain]:
        for long, brief in short.items():
            if name.startswith(long):
                plain[brief + name.removeprefix(long)] = plain.pop(name)
    return plain


def _flux2_sources(wanted: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Source]:
    # leave out the number of batches, which only training needs and the published file lacks
    return vae_sources([name for name in wanted if name != "bn.num_batches_tracked"], config, "")


def _wan_config(shapes: Shapes) -> Config:
    first = shapes["encoder.conv1.weight"][0]
    widths: list[int] = []
    while (shape := shapes.get(f"encoder.downsamples.{3 * len(widths)}.residual.6.weight")) is not None:
        widths.append(shape[0])
    return {
        "base_dim": first, "z_dim": shapes["conv2.weight"][0], "dim_mult": [width // first for width in widths],
        "num_res_blocks": 2, "attn_scales": [],
        "temperal_downsample": [
            f"encoder.downsamples.{3 * level + 2}.time_conv.weight" in shapes for level in range(len(widths) - 1)
        ],
        "latents_mean": list(WAN_MEAN), "latents_std": list(WAN_STD),
    }  # fmt: skip


_WAN_LEAVES: Final = {
    "norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}  # fmt: skip
_WAN_ENDS: Final = {
    "conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2", "quant_conv": "conv1", "post_quant_conv": "conv2",
}  # fmt: skip


def _wan_sources(wanted: Mapping[str, tuple[int, ...]], config: Config) -> dict[str, Source]:
    per_level = int(config["num_res_blocks"]) + 2
    return {parameter: Source(_wan_name(parameter, per_level)) for parameter in wanted}


def _wan_name(parameter: str, per_level: int) -> str:
    """Translate a parameter of diffusers' AutoencoderKLQwenImage to its original name."""
    side, *rest = parameter.split(".")
    if side in _WAN_ENDS:
        return ".".join([_WAN_ENDS[side], *rest])
    if rest[0] in _WAN_ENDS:
        return ".".join([side, _WAN_ENDS[rest[0]], *rest[1:]])
    if rest[0] == "mid_block":
        if rest[1] == "attentions":
            return ".".join([side, "middle.1", *rest[3:]])
        return ".".join([side, "middle", str(2 * int(rest[2])), _WAN_LEAVES[rest[3]], *rest[4:]])
    if rest[0] == "down_blocks":
        return ".".join([side, "downsamples", rest[1], _WAN_LEAVES.get(rest[2], rest[2]), *rest[3:]])
    place = per_level * int(rest[1]) + (int(rest[3]) if rest[2] == "resnets" else per_level - 1)
    return ".".join([side, "upsamples", str(place), _WAN_LEAVES.get(rest[4], rest[4]), *rest[5:]])


WAN_MEAN: Final = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_STD: Final = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
)  # fmt: skip
"""The mean and standard deviation of each latent channel of Wan 2.1's autoencoder. Source: Wan 2.1's `vae.py`."""

_CLIP_TABLE: Final = "embeddings.token_embedding.weight"

CLIP_L: Final = PartKind(
    "clip-l", "CLIP-L text encoder", "CLIPTextModel",
    ("text_encoders.clip_l.transformer.", "conditioner.embedders.0.transformer.", ""), (_CLIP_TABLE,),
    _clip_config("quick_gelu", 12), _clip_sources, _clip_names,
)  # fmt: skip
CLIP_L_PROJECTED: Final = replace(
    CLIP_L, model="CLIPTextModelWithProjection", probes=(_CLIP_TABLE, "text_projection.weight")
)
"""CLIP-L with its projection, which Stable Diffusion 3 uses."""
CLIP_G: Final = PartKind(
    "clip-g", "CLIP-G text encoder", "CLIPTextModelWithProjection", ("text_encoders.clip_g.transformer.", ""),
    (_CLIP_TABLE, "text_projection.weight"), _clip_config("gelu", 20), _clip_sources, _clip_names,
)  # fmt: skip
LONG_CLIP_L: Final = replace(
    CLIP_L_PROJECTED, title="CLIP-L text encoder of HiDream", config=_long_clip(CLIP_L_PROJECTED.config)
)
LONG_CLIP_G: Final = replace(CLIP_G, title="CLIP-G text encoder of HiDream", config=_long_clip(CLIP_G.config))
"""CLIP-L and CLIP-G trained for long texts: with 248 and 218 positions instead of 77."""
_T5_SECOND_BIAS: Final = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
"""The name of a tensor that UMT5 and Pile-T5 have but T5 lacks: the second block's relative attention bias."""
T5: Final = PartKind(
    "t5", "T5 text encoder", "T5EncoderModel", ("text_encoders.t5xxl.transformer.", ""),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "shared.weight"), _t5_config, _plainly,
    _t5_names, lacks=(_T5_SECOND_BIAS,),
)  # fmt: skip
PILE_T5: Final = PartKind(
    "pile-t5", "Pile-T5 text encoder", "UMT5EncoderModel", ("text_encoders.pile_t5xl.transformer.", ""),
    (_T5_SECOND_BIAS, "shared.weight"), _pile_t5_config, _plainly, _t5_names, tokenizers=(PIECES, JSON),
)  # fmt: skip
QWEN3: Final = PartKind(
    "qwen3", "Qwen3 text encoder", "Qwen3Model",
    ("text_encoders.qwen3_06b.transformer.model.", "text_encoders.qwen3_4b.transformer.model.",
     "text_encoders.qwen3_8b.transformer.model.", "model.", ""),
    ("embed_tokens.weight", "layers.0.self_attn.q_norm.weight"), _language_model, _plainly,
)  # fmt: skip
QWEN25: Final = PartKind(
    "qwen2.5-vl", "Qwen2.5-VL text encoder", "Qwen2Model",
    ("text_encoders.qwen25_7b.transformer.model.", "model.language_model.", "model.", ""),
    ("embed_tokens.weight", "layers.0.self_attn.q_proj.bias"), _language_model, _plainly,
)  # fmt: skip
QWEN3_VL: Final = PartKind(
    "qwen3-vl", "Qwen3-VL text encoder", "Qwen3Model",
    ("text_encoders.qwen3vl_4b.transformer.model.", "model.language_model.", "language_model."),
    ("embed_tokens.weight", "layers.0.self_attn.q_norm.weight"), _qwen3_vl, _plainly,
)  # fmt: skip
"""The language model of Qwen3-VL. For text without images, it is Qwen3 with another base of the rotary position
embedding. The tensors of both models have the same shapes; only their names show that a file contains Qwen3-VL.
"""
_OTHER_MODELS: Final = (
    "layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_proj.bias", "layers.0.pre_feedforward_layernorm.weight",
)  # fmt: skip
"""The names of tensors that Qwen's and Google's language models have and Mistral's do not."""
GEMMA2: Final = PartKind(
    "gemma2", "Gemma 2 text encoder", "Gemma2Model", ("text_encoders.gemma2_2b.transformer.model.", "model.", ""),
    ("embed_tokens.weight", "layers.0.pre_feedforward_layernorm.weight"), _gemma, _plainly,
    tokenizers=(PIECES, JSON),
)  # fmt: skip
MINISTRAL: Final = PartKind(
    "ministral", "Ministral 3 text encoder", "Ministral3Model",
    ("text_encoders.ministral3_3b.transformer.model.", "language_model.model.", "model.language_model.", "model.", ""),
    ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight"), _ministral, _plainly,
    tokenizers=(TEKKEN, JSON), lacks=_OTHER_MODELS,
)  # fmt: skip
MISTRAL: Final = replace(
    MINISTRAL, role="mistral", title="Mistral Small 3 text encoder", model="MistralModel", config=_mistral,
    prefixes=("text_encoders.mistral3_24b.transformer.model.", *MINISTRAL.prefixes[1:]),
)  # fmt: skip
LLAMA: Final = PartKind(
    "llama", "Llama 3.1 8B text encoder", "LlamaModel", ("text_encoders.llama.transformer.model.", "model.", ""),
    ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight"), _llama, _plainly,
    tokenizers=(JSON,), lacks=_OTHER_MODELS,
)  # fmt: skip
FLUX_VAE: Final = PartKind(
    "vae", "VAE", "AutoencoderKL", ("vae.", "first_stage_model.", ""), ("decoder.conv_in.weight",),
    _kl_config(0.3611, 0.1159), _kl_sources, _kl_names,
)  # fmt: skip
SD3_VAE: Final = replace(FLUX_VAE, config=_kl_config(1.5305, 0.0609))
XL_VAE: Final = replace(FLUX_VAE, config=_kl_config(0.13025, 0.0))
FLUX2_VAE: Final = PartKind(
    "vae", "VAE", "AutoencoderKLFlux2", ("vae.", "first_stage_model.", ""),
    ("decoder.conv_in.weight", "bn.running_mean"), _flux2_config(1e-4), _flux2_sources, _flux2_names,
)  # fmt: skip
ERNIE_VAE: Final = replace(FLUX2_VAE, config=_flux2_config(1e-5))
"""Flux.2's VAE, with the batch norm epsilon of Ernie-Image's pipeline."""
WAN_VAE: Final = PartKind(
    "vae", "VAE", "AutoencoderKLQwenImage", ("vae.", "first_stage_model.", ""),
    ("decoder.conv1.weight", "conv2.weight", "decoder.middle.0.residual.0.gamma"), _wan_config, _wan_sources,
)  # fmt: skip
