"""Flux.2: dev, and Klein (4B and 9B, distilled and base)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import (
    Defaults,
    Fit,
    FlowEncoded,
    FlowFamily,
    Instant,
    Need,
    Texts,
    require_head,
)
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import FLUX2_VAE, MISTRAL, QWEN3
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_KEYS = """
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
double_blocks.#.img_attn.qkv = transformer_blocks.#.attn.to_q transformer_blocks.#.attn.to_k transformer_blocks.#.attn.to_v
double_blocks.#.txt_attn.qkv = transformer_blocks.#.attn.add_q_proj transformer_blocks.#.attn.add_k_proj transformer_blocks.#.attn.add_v_proj
double_blocks.#.img_attn.norm.query_norm.scale = transformer_blocks.#.attn.norm_q.weight
double_blocks.#.img_attn.norm.key_norm.scale = transformer_blocks.#.attn.norm_k.weight
double_blocks.#.txt_attn.norm.query_norm.scale = transformer_blocks.#.attn.norm_added_q.weight
double_blocks.#.txt_attn.norm.key_norm.scale = transformer_blocks.#.attn.norm_added_k.weight
double_blocks.#.img_attn.proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.linear_in
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.linear_out
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.linear_in
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.linear_out
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_qkv_mlp_proj
single_blocks.#.linear2 = single_transformer_blocks.#.attn.to_out
single_blocks.#.norm.query_norm.scale = single_transformer_blocks.#.attn.norm_q.weight
single_blocks.#.norm.key_norm.scale = single_transformer_blocks.#.attn.norm_k.weight
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~ norm_out.linear
"""  # noqa: E501
_GUIDANCE = "guidance_in.in_layer.weight"
"""The name of a tensor that Flux.2 dev has and Klein does not."""
_PROBES = ("double_blocks.0.img_attn.qkv.weight", "img_in.weight", "single_stream_modulation.lin.weight")
_TOKENS = 512
_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""The system prompt with which Flux.2 dev was trained. Source: Black Forest Labs' `flux2/system_messages.py`."""
_MOST_AREA = 1024 * 1024
"""The maximum number of pixels of a reference image; larger images are scaled down to it."""
_MOST_IMAGES = 10
_STEP = 10
"""The first position id of reference image n (counted from 1) is n times this number; the generated image has 0."""
_MOST_MU = 4.6
"""The largest μ: a recipe's shift, e^μ, is at most 100."""


class _Flux2(FlowFamily):
    """What Flux.2 dev and Klein have in common."""

    architecture = Architecture.FLUX2
    model = "Flux2Transformer2DModel"
    keys = KeyTable(_KEYS)
    entries = 10000
    layers: ClassVar[tuple[int, ...]]
    """The indices of the text encoder's hidden states that the transformer reads."""

    def shift(self, variant: str, size: tuple[int, int], steps: int) -> float:  # noqa: ARG002
        """Return the shift e^μ, where μ depends on an image's number of tokens and on the number of steps.

        Source: Black Forest Labs' `flux2/sampling.py` (lines through measured values for 10 and for 200 steps).
        """
        tokens = size[0] // 16 * (size[1] // 16)
        many = 0.00016927 * tokens + 0.45666666
        few = 8.73809524e-05 * tokens + 1.89833333
        mu = many if tokens > 4300 else many + (many - few) / 190 * (steps - 200)
        return math.exp(min(mu, _MOST_MU))

    def reference_fit(self, width: int, height: int) -> Fit:
        """Fit the whole image; scale it down if it has more than 1024x1024 pixels, as in diffusers' pipeline."""
        scale = math.sqrt(_MOST_AREA / (width * height))
        size = (int(width * scale), int(height * scale)) if width * height > _MOST_AREA else (width, height)
        return Fit((0, 0, width, height), size)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
        require_head(head, 128, self.title)
        width, inputs = shapes["img_in.weight"]
        return {
            "in_channels": inputs, "out_channels": shapes["final_layer.linear.weight"][0],
            "num_layers": count(shapes, "double_blocks."), "num_single_layers": count(shapes, "single_blocks."),
            "attention_head_dim": head, "num_attention_heads": width // head,
            "joint_attention_dim": shapes["txt_in.weight"][1],
            "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
            "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / width,
            "axes_dims_rope": (32, 32, 32, 32), "rope_theta": 2000, "eps": 1e-6, "guidance_embeds": _GUIDANCE in shapes,
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["joint_attention_dim"] // len(self.layers)),
            "vae": ("latent_channels", transformer["out_channels"] // 4),
        }

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        x, context = at.x, text.context.expand(len(at.x), -1, -1)
        transformer = components["transformer"]
        answer = transformer(
            hidden_states=at.tokens(context.dtype), timestep=at.of_each(at.sigmas),
            guidance=at.of_each(at.guidances) if transformer.config.guidance_embeds else None,
            encoder_hidden_states=context, txt_ids=_places(1, 1, context.shape[1], x.device),
            img_ids=_image_places(at), return_dict=False,
        )[0]  # fmt: skip
        return at.velocity(answer)


class Flux2Dev(_Flux2):
    """Flux.2 dev. The guidance scale is an input of the model."""

    name = "flux2-dev"
    title = "Flux.2 dev"
    probes = (*_PROBES, _GUIDANCE)
    needs = (Need("text_encoder", MISTRAL), Need("vae", FLUX2_VAE))
    reads_images: ClassVar[Mapping[str, int]] = {"": _MOST_IMAGES}
    layers = (10, 20, 30)

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("",)

    def defaults(self, variant: str) -> Defaults:  # noqa: ARG002
        """Return the defaults for options that a request does not set. Steps and guidance are CivitAI's."""
        return Defaults(steps=25, guidance=3.5)

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt with three layers of Mistral Small 3, left-padded to 512 tokens.

        The prompt is a user message after Flux.2's system prompt. As in diffusers, the name of the image token is
        removed from the prompt. Weights are ignored, as in ComfyUI.
        """
        words = f"<s>[SYSTEM_PROMPT]{_SYSTEM}[/SYSTEM_PROMPT][INST]{parsed.text.replace('[IMG]', '')}[/INST]"
        ids = texts.file_ids("text_encoder", words, _TOKENS)
        return FlowEncoded(texts.language_model("text_encoder", ids, self.layers, least=_TOKENS, pads_before=True))


class Flux2Klein(_Flux2):
    """Flux.2 Klein. The distilled models and their bases have the same tensors."""

    name = "flux2"
    title = "Flux.2 Klein"
    probes = _PROBES
    lacks = (_GUIDANCE,)
    needs = (Need("text_encoder", QWEN3), Need("vae", FLUX2_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {"distilled": ("klein",), "base": ("base",)}
    reads_images: ClassVar[Mapping[str, int]] = {"distilled": _MOST_IMAGES, "base": _MOST_IMAGES}
    layers = (9, 18, 27)

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("distilled", "base")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set. Steps and CFG are CivitAI's."""
        return Defaults(steps=30, cfg=7.0) if variant == "base" else Defaults(steps=8)

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt with three layers of Qwen3, padded to 512 tokens.

        The prompt becomes a user message in Qwen3's chat template, with thinking disabled. Weights are ignored, as for
        all Qwen models.
        """
        words = f"<|im_start|>user\n{parsed.text}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ids = texts.qwen_ids(words, _TOKENS)
        return FlowEncoded(texts.language_model("text_encoder", ids, self.layers, least=_TOKENS))


def _places(rows: int, columns: int, tokens: int, device: Any) -> Any:
    """Return the position ids of tokens, (rows · columns · tokens, 4): 0, row, column, index in the text."""
    import torch  # imported here, because planning uses this module without importing torch

    return torch.cartesian_prod(*(torch.arange(number, device=device) for number in (1, rows, columns, tokens)))


def _image_places(at: Instant) -> Any:
    """Return the position ids of the generated image's tokens, followed by those of the reference images' tokens."""
    import torch  # imported here, because planning uses this module without importing torch

    grids = []
    for number, latents in enumerate((at.x, *at.references)):
        places = _places(latents.shape[-2] // 2, latents.shape[-1] // 2, 1, at.x.device)
        places[:, 0] = _STEP * number
        grids.append(places)
    return torch.cat(grids)


FLUX2_DEV = Flux2Dev()
FLUX2_KLEIN = Flux2Klein()
