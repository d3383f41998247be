"""Qwen-Image, whose checkpoints use diffusers' tensor names."""

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
    require_head,
)
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import QWEN25, WAN_VAE
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

SYSTEM = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
"""The system prompt before the user's prompt; the hidden states of its 34 tokens are dropped after encoding. Source:
Qwen-Image's pipeline.
"""
DROPPED = 34
_MOST_TOKENS = 1024


class QwenImage(FlowFamily):
    """Qwen-Image 1: the releases 2508 and 2512, and the Edit models, which civman runs without input images."""

    name = "qwen-image"
    title = "Qwen-Image"
    architecture = Architecture.QWEN_IMAGE
    model = "QwenImageTransformer2DModel"
    probes = ("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight", "img_in.weight")
    lacks = ("transformer_blocks.0.img_mlp.experts.0.weight",)
    keys = KeyTable()
    needs = (Need("text_encoder", QWEN25), Need("vae", WAN_VAE))
    known_extras = ("__index_timestep_zero__",)

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("",)

    def defaults(self, variant: str) -> Defaults:  # noqa: ARG002
        """Return the variant's defaults for options that a request does not set.

        The CFG scale is CivitAI's; the shift is that of SwarmUI and sd.cpp.
        """
        return Defaults(steps=20, cfg=3.5, shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        require_head(head, 128, self.title)
        width, channels = shapes["img_in.weight"]
        return {
            "in_channels": channels, "out_channels": shapes["proj_out.weight"][0] // 4,
            "num_layers": count(shapes, "transformer_blocks."), "attention_head_dim": head,
            "num_attention_heads": width // head, "joint_attention_dim": shapes["txt_in.weight"][1],
            "axes_dims_rope": (16, 56, 56), "zero_cond_t": "__index_timestep_zero__" in shapes,
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["joint_attention_dim"]),
            "vae": ("z_dim", transformer["out_channels"]),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt with Qwen2.5-VL's last layer, as a user message after a fixed system prompt."""
        words = f"{SYSTEM}{parsed.text}<|im_end|>\n<|im_start|>assistant\n"
        ids = texts.qwen_ids(words, _MOST_TOKENS + DROPPED)
        return FlowEncoded(texts.language_model("text_encoder", ids, None)[:, DROPPED:])

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        batch, _, height, width = at.x.shape
        context = text.context.expand(batch, -1, -1)
        answer = components["transformer"](
            hidden_states=at.tokens(context.dtype), timestep=at.of_each(at.sigmas).to(context.dtype),
            encoder_hidden_states=context, encoder_hidden_states_mask=None,
            img_shapes=[[(1, height // 2, width // 2)]] * batch, return_dict=False,
        )[0]  # fmt: skip
        return at.velocity(answer)


QWEN_IMAGE = QwenImage()
