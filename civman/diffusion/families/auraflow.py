"""AuraFlow and its fine-tune Pony V7, which have the same tensors."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts
from civman.diffusion.families.unet_family import XL_RGB
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import PILE_T5, XL_VAE
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_KEYS = """
positional_encoding = pos_embed.pos_embed
init_x_linear = pos_embed.proj
cond_seq_linear = context_embedder
t_embedder.mlp.0 = time_step_proj.linear_1
t_embedder.mlp.2 = time_step_proj.linear_2
double_layers.#.modX.1 = joint_transformer_blocks.#.norm1.linear
double_layers.#.modC.1 = joint_transformer_blocks.#.norm1_context.linear
double_layers.#.attn.w2q = joint_transformer_blocks.#.attn.to_q
double_layers.#.attn.w2k = joint_transformer_blocks.#.attn.to_k
double_layers.#.attn.w2v = joint_transformer_blocks.#.attn.to_v
double_layers.#.attn.w2o = joint_transformer_blocks.#.attn.to_out.0
double_layers.#.attn.w1q = joint_transformer_blocks.#.attn.add_q_proj
double_layers.#.attn.w1k = joint_transformer_blocks.#.attn.add_k_proj
double_layers.#.attn.w1v = joint_transformer_blocks.#.attn.add_v_proj
double_layers.#.attn.w1o = joint_transformer_blocks.#.attn.to_add_out
double_layers.#.mlpX.c_fc1 = joint_transformer_blocks.#.ff.linear_1
double_layers.#.mlpX.c_fc2 = joint_transformer_blocks.#.ff.linear_2
double_layers.#.mlpX.c_proj = joint_transformer_blocks.#.ff.out_projection
double_layers.#.mlpC.c_fc1 = joint_transformer_blocks.#.ff_context.linear_1
double_layers.#.mlpC.c_fc2 = joint_transformer_blocks.#.ff_context.linear_2
double_layers.#.mlpC.c_proj = joint_transformer_blocks.#.ff_context.out_projection
single_layers.#.modCX.1 = single_transformer_blocks.#.norm1.linear
single_layers.#.attn.w1q = single_transformer_blocks.#.attn.to_q
single_layers.#.attn.w1k = single_transformer_blocks.#.attn.to_k
single_layers.#.attn.w1v = single_transformer_blocks.#.attn.to_v
single_layers.#.attn.w1o = single_transformer_blocks.#.attn.to_out.0
single_layers.#.mlp.c_fc1 = single_transformer_blocks.#.ff.linear_1
single_layers.#.mlp.c_fc2 = single_transformer_blocks.#.ff.linear_2
single_layers.#.mlp.c_proj = single_transformer_blocks.#.ff.out_projection
modF.1 = ~ norm_out.linear
final_linear = proj_out
"""
_HEAD = 256
_PATCH = 2
_TOKENS = 256
"""The number of tokens to which prompts are padded or cut off."""


class AuraFlow(FlowFamily):
    """AuraFlow and Pony V7. The latents are those of Stable Diffusion XL."""

    name = "auraflow"
    title = "AuraFlow"
    architecture = Architecture.AURAFLOW
    model = "AuraFlowTransformer2DModel"
    probes = ("double_layers.0.attn.w1q.weight", "cond_seq_linear.weight", "positional_encoding")
    keys = KeyTable(_KEYS)
    needs = (Need("text_encoder", PILE_T5), Need("vae", XL_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pony-v7": ("pony",), "base": ("auraflow", "aura_flow", "aura flow"),
    }  # fmt: skip
    vae_overflows = True
    latent_rgb = XL_RGB

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("base", "pony-v7")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The shift is ComfyUI's; the steps and CFG scales are those of diffusers' pipeline and, for Pony V7, CivitAI's.
        """
        return Defaults(steps=40 if variant == "pony-v7" else 50, cfg=3.5, shift=1.73)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes.

        In all published models, attention heads are 256 wide, which no shape shows.
        """
        width, inputs = shapes["init_x_linear.weight"]
        heads, rest = divmod(width, _HEAD)
        if rest:
            raise ValueError(f"{width} is not a multiple of {_HEAD}")
        return {
            "patch_size": _PATCH, "in_channels": inputs // _PATCH**2,
            "out_channels": shapes["final_linear.weight"][0] // _PATCH**2,
            "num_mmdit_layers": count(shapes, "double_layers."),
            "num_single_dit_layers": count(shapes, "single_layers."),
            "attention_head_dim": _HEAD, "num_attention_heads": heads,
            "joint_attention_dim": shapes["cond_seq_linear.weight"][1], "caption_projection_dim": width,
            # GGUF files may lack the first dimension, which is 1
            "pos_embed_max_size": math.prod(shapes["positional_encoding"]) // width,
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("d_model", transformer["joint_attention_dim"]),
            "vae": ("latent_channels", transformer["in_channels"]),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt with Pile-T5: 256 tokens, with zeros after the end token."""
        return FlowEncoded(texts.masked_t5("text_encoder", parsed, _TOKENS))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        x = at.x
        context = text.context.expand(len(x), -1, -1)
        answer = components["transformer"](
            hidden_states=x.to(context.dtype), encoder_hidden_states=context, timestep=at.of_each(at.sigmas),
            return_dict=False,
        )[0]  # fmt: skip
        return answer.float()


AURAFLOW = AuraFlow()
