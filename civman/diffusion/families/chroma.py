"""Chroma: Flux.1 schnell without CLIP, in which one small network computes the modulation of all blocks."""

from collections.abc import Mapping
from typing import Any

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import (
    Defaults,
    FlowEncoded,
    FlowFamily,
    Instant,
    Need,
    Texts,
)
from civman.diffusion.families.flux1 import BLOCKS, block_dimensions, positions
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import FLUX_VAE, T5
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_KEYS = """
distilled_guidance_layer.layers.#.in_layer = distilled_guidance_layer.layers.#.linear_1
distilled_guidance_layer.layers.#.out_layer = distilled_guidance_layer.layers.#.linear_2
distilled_guidance_layer.norms.#.scale = distilled_guidance_layer.norms.#.weight
"""


class Chroma(FlowFamily):
    """Chroma 1; its variant Radiance works on pixels and is not supported."""

    name = "chroma"
    title = "Chroma"
    architecture = Architecture.CHROMA
    model = "ChromaTransformer2DModel"
    probes = ("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight", "img_in.weight")
    keys = KeyTable(BLOCKS + _KEYS)
    needs = (Need("text_encoder", T5), Need("vae", FLUX_VAE))

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("",)

    def defaults(self, variant: str) -> Defaults:  # noqa: ARG002
        """Return the variant's defaults for options that a request does not set.

        The shift and the schedule are SwarmUI's; the steps and the CFG scale are CivitAI's.
        """
        return Defaults(steps=25, cfg=3.5, schedule="Beta", shift=1.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        return block_dimensions(shapes, self.title) | {
            "approximator_num_channels": shapes["distilled_guidance_layer.in_proj.weight"][1],
            "approximator_hidden_dim": shapes["distilled_guidance_layer.in_proj.weight"][0],
            "approximator_layers": count(shapes, "distilled_guidance_layer.layers."),
        }

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("d_model", transformer["joint_attention_dim"]),
            "vae": ("latent_channels", transformer["out_channels"] // 4),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt with T5 without padding, as in ComfyUI."""
        return FlowEncoded(texts.t5("text_encoder", parsed, 1, 512))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        answer = components["transformer"](
            hidden_states=at.tokens(text.context.dtype), timestep=at.of_each(at.sigmas),
            encoder_hidden_states=text.context.expand(len(at.x), -1, -1),
            txt_ids=at.x.new_zeros((text.context.shape[1], 3)), img_ids=positions(at), return_dict=False,
        )[0]  # fmt: skip
        return at.velocity(answer)


CHROMA = Chroma()
