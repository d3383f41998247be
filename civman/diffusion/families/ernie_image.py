"""Ernie-Image: base and Turbo, which have the same tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts, require_head
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import ERNIE_VAE, MINISTRAL
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_MOST_TOKENS = 2048
"""The number of tokens at which the published tokenizer cuts off prompts."""


class ErnieImage(FlowFamily):
    """Ernie-Image. Its files have diffusers' tensor names; its latents are Flux.2's, folded in squares of 2×2."""

    name = "ernie-image"
    title = "Ernie-Image"
    architecture = Architecture.ERNIE_IMAGE
    model = "ErnieImageTransformer2DModel"
    probes = ("layers.0.adaLN_sa_ln.weight", "layers.0.mlp.linear_fc2.weight", "x_embedder.proj.weight")
    keys = KeyTable()
    needs = (Need("text_encoder", MINISTRAL), Need("vae", ERNIE_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "turbo": ("turbo",), "base": ("base", "ernie-image", "ernie_image"),
    }  # fmt: skip

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("base", "turbo")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The steps and the CFG scales are CivitAI's; the shift is ComfyUI's.
        """
        return Defaults(steps=8, shift=3.0) if variant == "turbo" else Defaults(steps=20, cfg=4.0, shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["layers.0.self_attention.norm_q.weight"][0]
        require_head(head, 128, self.title)
        width, inputs, patch, _ = shapes["x_embedder.proj.weight"]
        return {
            "hidden_size": width, "num_attention_heads": width // head, "num_layers": count(shapes, "layers."),
            "ffn_hidden_size": shapes["layers.0.mlp.gate_proj.weight"][0], "in_channels": inputs,
            "out_channels": shapes["final_linear.weight"][0] // patch**2, "patch_size": patch,
            "text_in_dim": shapes.get("text_proj.weight", (width, width))[1], "rope_theta": 256,
            "rope_axes_dim": (32, 48, 48), "eps": 1e-6, "qk_layernorm": True,
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["text_in_dim"]),
            "vae": ("latent_channels", transformer["in_channels"] // 4),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt, after the start token, with Ministral's second-to-last layer.

        Weights are ignored, as in ComfyUI.
        """
        ids = texts.file_ids("text_encoder", f"<s>{parsed.text}", _MOST_TOKENS)
        return FlowEncoded(texts.language_model("text_encoder", ids, -2))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        import torch  # imported here, because planning uses this module without importing torch

        x = at.x
        context = text.context.expand(len(x), -1, -1)
        answer = components["transformer"](
            hidden_states=torch.nn.functional.pixel_unshuffle(x, 2).to(context.dtype),
            timestep=at.of_each(at.sigmas) * 1000, text_bth=context,
            text_lens=torch.full((len(x),), context.shape[1], device=x.device), return_dict=False,
        )[0]  # fmt: skip
        return torch.nn.functional.pixel_shuffle(answer.float(), 2)


ERNIE_IMAGE = ErnieImage()
