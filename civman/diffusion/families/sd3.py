"""Stable Diffusion 3 and 3.5: Medium and Large."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.component_layouts import Source
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import CLIP_G, CLIP_L_PROJECTED, SD3_VAE, T5
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_KEYS = """
pos_embed = pos_embed.pos_embed
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
joint_blocks.#.x_block.attn.qkv = transformer_blocks.#.attn.to_q transformer_blocks.#.attn.to_k transformer_blocks.#.attn.to_v
joint_blocks.#.context_block.attn.qkv = transformer_blocks.#.attn.add_q_proj transformer_blocks.#.attn.add_k_proj transformer_blocks.#.attn.add_v_proj
joint_blocks.#.x_block.attn2.qkv = transformer_blocks.#.attn2.to_q transformer_blocks.#.attn2.to_k transformer_blocks.#.attn2.to_v
joint_blocks.#.x_block.attn.ln_q = transformer_blocks.#.attn.norm_q
joint_blocks.#.x_block.attn.ln_k = transformer_blocks.#.attn.norm_k
joint_blocks.#.context_block.attn.ln_q = transformer_blocks.#.attn.norm_added_q
joint_blocks.#.context_block.attn.ln_k = transformer_blocks.#.attn.norm_added_k
joint_blocks.#.x_block.attn2.ln_q = transformer_blocks.#.attn2.norm_q
joint_blocks.#.x_block.attn2.ln_k = transformer_blocks.#.attn2.norm_k
joint_blocks.#.x_block.attn.proj = transformer_blocks.#.attn.to_out.0
joint_blocks.#.context_block.attn.proj = transformer_blocks.#.attn.to_add_out
joint_blocks.#.x_block.attn2.proj = transformer_blocks.#.attn2.to_out.0
joint_blocks.#.x_block.adaLN_modulation.1 = transformer_blocks.#.norm1.linear
joint_blocks.#.context_block.adaLN_modulation.1 = transformer_blocks.#.norm1_context.linear
joint_blocks.#.x_block.mlp.fc1 = transformer_blocks.#.ff.net.0.proj
joint_blocks.#.x_block.mlp.fc2 = transformer_blocks.#.ff.net.2
joint_blocks.#.context_block.mlp.fc1 = transformer_blocks.#.ff_context.net.0.proj
joint_blocks.#.context_block.mlp.fc2 = transformer_blocks.#.ff_context.net.2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~ norm_out.linear
"""  # noqa: E501
_HEAD = 64


class SD3(FlowFamily):
    """Stable Diffusion 3 and 3.5. T5 is optional: without it, prompts are encoded only by the two CLIP encoders."""

    name = "sd3"
    title = "Stable Diffusion 3"
    architecture = Architecture.SD3
    model = "SD3Transformer2DModel"
    probes = ("joint_blocks.0.context_block.adaLN_modulation.1.weight", "x_embedder.proj.weight", "pos_embed")
    keys = KeyTable(_KEYS)
    needs = (
        Need("text_encoder", CLIP_L_PROJECTED), Need("text_encoder_2", CLIP_G),
        Need("text_encoder_3", T5, is_optional=True), Need("vae", SD3_VAE),
    )  # fmt: skip

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("",)

    def defaults(self, variant: str) -> Defaults:  # noqa: ARG002
        """Return the variant's defaults for options that a request does not set."""
        return Defaults(steps=28, cfg=4.5, schedule="SGM Uniform", shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes.

        In all published models, attention heads are 64 wide.
        """
        width, channels, patch, _ = shapes["x_embedder.proj.weight"]
        blocks = count(shapes, "joint_blocks.")
        return {
            "sample_size": 128, "patch_size": patch, "in_channels": channels,
            "out_channels": shapes["final_layer.linear.weight"][0] // patch**2, "num_layers": blocks,
            "attention_head_dim": _HEAD, "num_attention_heads": width // _HEAD,
            "joint_attention_dim": shapes["context_embedder.weight"][1],
            "caption_projection_dim": shapes["context_embedder.weight"][0],
            "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
            "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
            "dual_attention_layers": tuple(
                block for block in range(blocks) if f"joint_blocks.{block}.x_block.attn2.qkv.weight" in shapes
            ),
            "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
        }  # fmt: skip

    def sources(self, component: str, wanted: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Source]:
        """Map each parameter of the transformer, or of an extra component, to its tensor in the file.

        The last block only normalises the text. For this norm, diffusers expects the two halves of the weights (shift
        and scale) in reverse order.
        """
        assert component == "transformer"
        found = self.keys.sources(wanted, prefix)
        numbers = [int(match[1]) for name in wanted if (match := re.match(r"transformer_blocks\.(\d+)\.", name))]
        last = f"transformer_blocks.{max(numbers)}.norm1_context.linear."
        return {
            name: replace(source, swaps_halves=True) if name.startswith(last) else source
            for name, source in found.items()
        }

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width).

        Of the pooled text's width, three eighths are CLIP-L's (768) and five eighths CLIP-G's (1280).
        """
        pooled = transformer["pooled_projection_dim"]
        return {
            "text_encoder": ("projection_dim", pooled * 3 // 8), "text_encoder_2": ("projection_dim", pooled * 5 // 8),
            "text_encoder_3": ("d_model", transformer["joint_attention_dim"]),
            "vae": ("latent_channels", transformer["out_channels"]),
        }  # fmt: skip

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt: both CLIPs' states side by side, zero-padded to T5's width, followed by T5's states."""
        import torch  # imported here, because planning uses this module without importing torch

        (narrow, first), (wide, second) = (texts.clip(each, parsed, -2) for each in ("text_encoder", "text_encoder_2"))
        context = torch.cat([narrow, wide], dim=-1)
        missing = texts.context_width - context.shape[-1]
        context = torch.nn.functional.pad(context, (0, missing))
        if texts.has("text_encoder_3"):
            states = texts.t5("text_encoder_3", parsed, 77, 512)
            context = torch.cat([context.to(states.dtype), states], dim=1)
        return FlowEncoded(context, torch.cat([first, second], dim=-1))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        x = at.x
        context = text.context.expand(len(x), -1, -1)
        answer = components["transformer"](
            hidden_states=x.to(context.dtype), timestep=at.of_each([sigma * 1000 for sigma in at.sigmas]),
            encoder_hidden_states=context, pooled_projections=text.pooled.expand(len(x), -1), return_dict=False,
        )[0]  # fmt: skip
        return answer.float()


SD3_FAMILY = SD3()
