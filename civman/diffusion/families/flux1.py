"""Flux.1: dev and schnell, and Krea and Kontext, which were trained from dev and have the same tensors."""

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
from civman.diffusion.part_kinds import CLIP_L, FLUX_VAE, T5
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

BLOCKS = """
img_in = x_embedder
txt_in = context_embedder
double_blocks.#.img_attn.qkv = transformer_blocks.#.attn.to_q transformer_blocks.#.attn.to_k transformer_blocks.#.attn.to_v
double_blocks.#.txt_attn.qkv = transformer_blocks.#.attn.add_q_proj transformer_blocks.#.attn.add_k_proj transformer_blocks.#.attn.add_v_proj
double_blocks.#.img_attn.norm.query_norm.scale = transformer_blocks.#.attn.norm_q.weight
double_blocks.#.img_attn.norm.key_norm.scale = transformer_blocks.#.attn.norm_k.weight
double_blocks.#.txt_attn.norm.query_norm.scale = transformer_blocks.#.attn.norm_added_q.weight
double_blocks.#.txt_attn.norm.key_norm.scale = transformer_blocks.#.attn.norm_added_k.weight
double_blocks.#.img_attn.proj = transformer_blocks.#.attn.to_out.0
double_blocks.#.txt_attn.proj = transformer_blocks.#.attn.to_add_out
double_blocks.#.img_mlp.0 = transformer_blocks.#.ff.net.0.proj
double_blocks.#.img_mlp.2 = transformer_blocks.#.ff.net.2
double_blocks.#.txt_mlp.0 = transformer_blocks.#.ff_context.net.0.proj
double_blocks.#.txt_mlp.2 = transformer_blocks.#.ff_context.net.2
single_blocks.#.linear1 = single_transformer_blocks.#.attn.to_q single_transformer_blocks.#.attn.to_k single_transformer_blocks.#.attn.to_v single_transformer_blocks.#.proj_mlp
single_blocks.#.linear2 = single_transformer_blocks.#.proj_out
single_blocks.#.norm.query_norm.scale = single_transformer_blocks.#.attn.norm_q.weight
single_blocks.#.norm.key_norm.scale = single_transformer_blocks.#.attn.norm_k.weight
final_layer.linear = proj_out
"""  # noqa: E501
"""The part of the key table (original name = diffusers' name) that Flux.1 and Chroma have in common."""

_KEYS = """
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
double_blocks.#.img_mod.lin = transformer_blocks.#.norm1.linear
double_blocks.#.txt_mod.lin = transformer_blocks.#.norm1_context.linear
single_blocks.#.modulation.lin = single_transformer_blocks.#.norm.linear
final_layer.adaLN_modulation.1 = ~ norm_out.linear
"""


def block_dimensions(shapes: Shapes, title: str) -> Config:
    """Compute from tensor shapes the config options that the transformers of Flux.1 and Chroma have in common."""
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    require_head(head, 128, title)
    return {
        "in_channels": shapes["img_in.weight"][1], "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": count(shapes, "double_blocks."), "num_single_layers": count(shapes, "single_blocks."),
        "attention_head_dim": head, "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_in.weight"][1], "axes_dims_rope": (16, 56, 56),
    }  # fmt: skip


_KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688),
    (1568, 672),
)  # fmt: skip
"""The image sizes in pixels on which Kontext was trained. Source: Black Forest Labs."""


def positions(at: Instant) -> Any:
    """Return position ids of tokens: (0, row, column) for the generated image, (1, row, column) for references."""
    import torch  # imported here, because planning uses this module without importing torch

    grids = []
    for number, latents in enumerate((at.x, *at.references)):
        rows, columns = (
            torch.arange(side // 2, dtype=torch.float32, device=at.x.device) for side in latents.shape[-2:]
        )
        grids.append(torch.cartesian_prod(rows.new_full((1,), float(number > 0)), rows, columns))
    return torch.cat(grids)


class Flux1(FlowFamily):
    """Flux.1. The tensors show whether a model takes a guidance scale, but not whether it is dev, Krea or Kontext."""

    name = "flux1"
    title = "Flux.1"
    architecture = Architecture.FLUX1
    model = "FluxTransformer2DModel"
    probes = ("double_blocks.0.img_attn.qkv.weight", "img_in.weight", "vector_in.in_layer.weight")
    lacks = ("distilled_guidance_layer.in_proj.weight", "single_stream_modulation.lin.weight")
    keys = KeyTable(BLOCKS + _KEYS)
    needs = (Need("text_encoder", CLIP_L), Need("text_encoder_2", T5), Need("vae", FLUX_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dev": ("flux.1 d", "dev"), "krea": ("krea",), "kontext": ("kontext",),
    }  # fmt: skip
    entries = 10000
    reads_images: ClassVar[Mapping[str, int]] = {"kontext": 1}

    def variants(self, shapes: Shapes) -> tuple[str, ...]:
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("dev", "krea", "kontext") if "guidance_in.in_layer.weight" in shapes else ("schnell",)

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The shift of dev is ComfyUI's: μ = 1.15 for every size.
        """
        if variant == "schnell":
            return Defaults(steps=4, shift=1.0)
        return Defaults(steps=25, guidance=2.5 if variant == "kontext" else 3.5, shift=math.exp(1.15))

    def reference_fit(self, width: int, height: int) -> Fit:
        """Fit an image to the Kontext size with the most similar aspect ratio: crop it centrally, then resize it.

        Source: ComfyUI's node FluxKontextImageScale (the rule).
        """
        size = min(_KONTEXT_SIZES, key=lambda each: (abs(width / height - each[0] / each[1]), each))
        own, wanted, left, top = width / height, size[0] / size[1], 0, 0
        if own > wanted:
            left = round((width - width * (wanted / own)) / 2)
        elif own < wanted:
            top = round((height - height * (own / wanted)) / 2)
        return Fit((left, top, width - 2 * left, height - 2 * top), size)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        return block_dimensions(shapes, self.title) | {
            "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
            "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        }

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["pooled_projection_dim"]),
            "text_encoder_2": ("d_model", transformer["joint_attention_dim"]),
            "vae": ("latent_channels", transformer["out_channels"] // 4),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt with T5, padded to at least 256 tokens as in ComfyUI, and with CLIP-L (pooled vector)."""
        _, pooled = texts.clip("text_encoder", parsed)
        context = texts.t5("text_encoder_2", parsed, 256, 512)
        return FlowEncoded(context, pooled)

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        transformer, x = components["transformer"], at.x
        batch, dtype, more = len(x), text.context.dtype, {}
        if transformer.config.guidance_embeds:
            more["guidance"] = at.of_each(at.guidances)
        answer = transformer(
            hidden_states=at.tokens(dtype), timestep=at.of_each(at.sigmas),
            pooled_projections=text.pooled.expand(batch, -1),
            encoder_hidden_states=text.context.expand(batch, -1, -1),
            txt_ids=x.new_zeros((text.context.shape[1], 3)), img_ids=positions(at), return_dict=False, **more,
        )[0]  # fmt: skip
        return at.velocity(answer)


FLUX1 = Flux1()
