"""Krea 2: Raw and Turbo, which have the same tensors."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

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
from civman.diffusion.families.flux1 import positions
from civman.diffusion.families.qwen_image import DROPPED, SYSTEM
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import QWEN3_VL, WAN_VAE
from civman.domain.architecture import Architecture
from civman.errors import CannotRender, Cause
from civman.prompts.emphasis import ParsedPrompt

_BLOCK = """
{0}.#.attn.wq = {1}.#.attn.to_q
{0}.#.attn.wk = {1}.#.attn.to_k
{0}.#.attn.wv = {1}.#.attn.to_v
{0}.#.attn.wo = {1}.#.attn.to_out.0
{0}.#.attn.gate = {1}.#.attn.to_gate
{0}.#.attn.qknorm.qnorm.scale = {1}.#.attn.norm_q.weight
{0}.#.attn.qknorm.knorm.scale = {1}.#.attn.norm_k.weight
{0}.#.mlp.gate = {1}.#.ff.gate
{0}.#.mlp.up = {1}.#.ff.up
{0}.#.mlp.down = {1}.#.ff.down
{0}.#.prenorm.scale = {1}.#.norm1.weight
{0}.#.postnorm.scale = {1}.#.norm2.weight
"""
_KEYS = """
blocks.#.mod.lin = transformer_blocks.#.scale_shift_table
first = img_in
tmlp.0 = time_embed.linear_1
tmlp.2 = time_embed.linear_2
tproj.1 = time_mod_proj
txtfusion.projector = text_fusion.projector
txtmlp.0.scale = txt_in.norm.weight
txtmlp.1 = txt_in.linear_1
txtmlp.3 = txt_in.linear_2
last.modulation.lin = final_layer.scale_shift_table
last.norm.scale = final_layer.norm.weight
last.linear = final_layer.linear
"""
_BLOCKS = {
    "blocks": "transformer_blocks",
    **{f"txtfusion.{kind}_blocks": f"text_fusion.{kind}_blocks" for kind in ("layerwise", "refiner")},
}
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_AFTER_TOKENS = 5
_MOST_TOKENS = 512
"""The maximum number of tokens that the transformer reads, including the tokens that follow the prompt."""
_LAYERS = tuple(range(2, 36, 3))
"""The indices of the encoder's hidden states that the transformer reads. Source: Krea 2's pipeline in diffusers."""


class Krea2(FlowFamily):
    """Krea 2. The transformer reads the hidden states of twelve text encoder layers and combines them itself."""

    name = "krea2"
    title = "Krea 2"
    architecture = Architecture.KREA2
    model = "Krea2Transformer2DModel"
    probes = ("txtfusion.projector.weight", "blocks.0.attn.gate.weight", "first.weight")
    keys = KeyTable(_KEYS + "".join(_BLOCK.format(*pair) for pair in _BLOCKS.items()))
    needs = (Need("text_encoder", QWEN3_VL), Need("vae", WAN_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "turbo": ("turbo",), "raw": ("-raw", "_raw", " raw", "2raw"),
    }  # fmt: skip
    single_precision = (".norm1.weight", ".norm2.weight", ".norm_q.weight", ".norm_k.weight", ".norm.weight")
    entries = 10000

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("turbo", "raw")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The steps and the CFG scales are CivitAI's; the shift is ComfyUI's: μ = 1.15 at every size.
        """
        shift = math.exp(1.15)
        return Defaults(steps=30, cfg=3.5, shift=shift) if variant == "raw" else Defaults(steps=8, shift=shift)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["blocks.0.attn.qknorm.qnorm.scale"][0]
        require_head(head, 128, self.title)
        if (layers := shapes["txtfusion.projector.weight"][1]) != len(_LAYERS):
            raise CannotRender(
                f"this {self.title} model reads {layers} layers of its text encoder; civman supports only models that "
                f"read {len(_LAYERS)}, because it does not know which layers other models read",
                code=Cause.UNKNOWN_FAMILY,
            )
        width, inputs = shapes["first.weight"]
        text = "txtfusion.layerwise_blocks."
        text_head = shapes[f"{text}0.attn.qknorm.qnorm.scale"][0]
        return {
            "in_channels": inputs, "num_layers": count(shapes, "blocks."), "attention_head_dim": head,
            "num_attention_heads": width // head,
            "num_key_value_heads": shapes["blocks.0.attn.wk.weight"][0] // head,
            "intermediate_size": shapes["blocks.0.mlp.gate.weight"][0],
            "timestep_embed_dim": shapes["tmlp.0.weight"][1], "num_text_layers": layers,
            "text_hidden_dim": shapes["txtmlp.1.weight"][1],
            "text_num_attention_heads": shapes[f"{text}0.attn.wq.weight"][0] // text_head,
            "text_num_key_value_heads": shapes[f"{text}0.attn.wk.weight"][0] // text_head,
            "text_intermediate_size": shapes[f"{text}0.mlp.gate.weight"][0],
            "num_layerwise_text_blocks": count(shapes, text),
            "num_refiner_text_blocks": count(shapes, "txtfusion.refiner_blocks."),
            "axes_dims_rope": (32, 48, 48), "rope_theta": 1000.0, "norm_eps": 1e-5,
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["text_hidden_dim"]),
            "vae": ("z_dim", transformer["in_channels"] // 4),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt with twelve layers of Qwen3-VL, as a user message after Qwen-Image's system prompt.

        In training, the text was padded between the prompt and the tokens that follow the prompt. The padding was
        masked and took no positions, so the hidden states are the same without it. Weights are ignored, as in ComfyUI.
        """
        ids = texts.qwen_ids(SYSTEM + parsed.text, DROPPED + _MOST_TOKENS - _AFTER_TOKENS)
        ids = [*ids, *texts.qwen_ids(_AFTER, _AFTER_TOKENS)]
        return FlowEncoded(texts.language_model("text_encoder", ids, _LAYERS)[:, DROPPED:])

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        import torch  # imported here, because planning uses this module without importing torch

        context = text.context.expand(len(at.x), -1, -1)
        answer = components["transformer"](
            hidden_states=at.tokens(context.dtype), timestep=at.of_each(at.sigmas),
            encoder_hidden_states=context.unflatten(-1, (len(_LAYERS), -1)), encoder_attention_mask=None,
            position_ids=torch.cat([at.x.new_zeros((context.shape[1], 3)), positions(at)]),
            return_dict=False,
        )[0]  # fmt: skip
        return at.velocity(answer)


KREA2 = Krea2()
