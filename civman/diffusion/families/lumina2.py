"""Lumina-Image 2.0 and its fine-tunes, such as Neta Lumina."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts, require_head
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import FLUX_VAE, GEMMA2
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import Fragment, ParsedPrompt

_BLOCK = """
{0}.#.attention.qkv = {0}.#.attn.to_q {0}.#.attn.to_k {0}.#.attn.to_v
{0}.#.attention.out = {0}.#.attn.to_out.0
{0}.#.attention.q_norm = {0}.#.attn.norm_q
{0}.#.attention.k_norm = {0}.#.attn.norm_k
{0}.#.feed_forward.w1 = {0}.#.feed_forward.linear_1
{0}.#.feed_forward.w2 = {0}.#.feed_forward.linear_2
{0}.#.feed_forward.w3 = {0}.#.feed_forward.linear_3
{0}.#.attention_norm2 = {0}.#.norm2
"""
_MODULATED = """
{0}.#.attention_norm1 = {0}.#.norm1.norm
{0}.#.adaLN_modulation.1 = {0}.#.norm1.linear
"""
_KEYS = """
context_refiner.#.attention_norm1 = context_refiner.#.norm1
cap_embedder.0 = time_caption_embed.caption_embedder.0
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
final_layer.linear = norm_out.linear_2
"""
_MARK = "<Prompt Start>"
_BEFORE = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    f"on textual prompts or user prompts. {_MARK} "
)
"""The system prompt with which the model was trained. Source: Lumina-Image 2.0's pipeline."""
_MOST_TOKENS = 256
_HEAD = 96


class Lumina2(FlowFamily):
    """Lumina 2. The model takes 1 − σ as its timestep and predicts the velocity with the opposite sign."""

    name = "lumina2"
    title = "Lumina 2"
    architecture = Architecture.LUMINA2
    model = "Lumina2Transformer2DModel"
    probes = ("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight", "x_embedder.weight")
    lacks = ("x_pad_token", "cap_pad_token", "clip_text_pooled_proj.0.weight")
    keys = KeyTable(
        _KEYS
        + "".join(_BLOCK.format(name) for name in ("layers", "noise_refiner", "context_refiner"))
        + "".join(_MODULATED.format(name) for name in ("layers", "noise_refiner"))
    )
    needs = (Need("text_encoder", GEMMA2), Need("vae", FLUX_VAE))
    known_extras = ("norm_final.",)

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("",)

    def defaults(self, variant: str) -> Defaults:  # noqa: ARG002
        """Return the variant's defaults for options that a request does not set.

        The shift is ComfyUI's; the steps and the CFG scale are those of diffusers' pipeline.
        """
        return Defaults(steps=30, cfg=4.0, shift=6.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["layers.0.attention.q_norm.weight"][0]
        require_head(head, _HEAD, self.title)
        width, inputs = shapes["x_embedder.weight"]
        return {
            "in_channels": inputs // 4, "out_channels": shapes["final_layer.linear.weight"][0] // 4,
            "hidden_size": width, "num_attention_heads": width // head,
            "num_kv_heads": (shapes["layers.0.attention.qkv.weight"][0] - width) // 2 // head,
            "num_layers": count(shapes, "layers."), "num_refiner_layers": count(shapes, "noise_refiner."),
            "cap_feat_dim": shapes["cap_embedder.1.weight"][1], "multiple_of": 256, "norm_eps": 1e-5,
            "axes_dim_rope": (32, 32, 32), "axes_lens": (300, 512, 512),
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["cap_feat_dim"]),
            "vae": ("latent_channels", transformer["in_channels"]),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt with Gemma's second-to-last layer, adding the system prompt unless it contains one."""
        if _MARK not in parsed.text:
            parsed = replace(parsed, sections=((Fragment(_BEFORE, 1.0),), *parsed.sections))
        return self.encode_negative(texts, parsed)

    def encode_negative(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a negative prompt, without the system prompt."""
        ids, weights = texts.piece_ids("text_encoder", parsed, _MOST_TOKENS)
        return FlowEncoded(texts.language_model("text_encoder", ids, -2, weights))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        # imported here, because planning uses this module without importing torch
        from civman.diffusion.kept_positions import keep_positions

        x = at.x
        context = text.context.expand(len(x), -1, -1)
        keep_positions(components["transformer"])
        answer = components["transformer"](
            hidden_states=x.to(context.dtype), timestep=at.of_each([1 - sigma for sigma in at.sigmas]),
            encoder_hidden_states=context, encoder_attention_mask=context.new_ones(context.shape[:2], dtype=bool),
            return_dict=False,
        )[0]  # fmt: skip
        return -answer.float()


LUMINA2 = Lumina2()
