"""Z-Image: base and Turbo, which have the same tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts, require_head
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import FLUX_VAE, QWEN3
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_BLOCK = """
{0}.#.attention.qkv = {0}.#.attention.to_q {0}.#.attention.to_k {0}.#.attention.to_v
{0}.#.attention.out = {0}.#.attention.to_out.0
{0}.#.attention.q_norm = {0}.#.attention.norm_q
{0}.#.attention.k_norm = {0}.#.attention.norm_k
"""
_KEYS = """
x_embedder = all_x_embedder.2-1
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
"""
_MOST_TOKENS = 512


class ZImage(FlowFamily):
    """Z-Image. The model takes 1 − σ as its timestep and predicts the velocity with the opposite sign."""

    name = "z-image"
    title = "Z-Image"
    architecture = Architecture.Z_IMAGE
    model = "ZImageTransformer2DModel"
    probes = ("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight", "x_pad_token", "cap_pad_token")
    keys = KeyTable(_KEYS + "".join(_BLOCK.format(name) for name in ("layers", "noise_refiner", "context_refiner")))
    needs = (Need("text_encoder", QWEN3), Need("vae", FLUX_VAE))
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "turbo": ("zimageturbo", "turbo"), "base": ("zimagebase", "base"),
    }  # fmt: skip
    known_extras = ("norm_final.",)

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("turbo", "base")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The steps and the CFG scales are CivitAI's.
        """
        return Defaults(steps=20, cfg=4.0, shift=3.0) if variant == "base" else Defaults(steps=9, shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes."""
        head = shapes["layers.0.attention.q_norm.weight"][0]
        require_head(head, 128, self.title)
        width = shapes["x_embedder.weight"][0]
        return {
            "in_channels": shapes["x_embedder.weight"][1] // 4, "dim": width, "n_heads": width // head,
            "n_kv_heads": (shapes["layers.0.attention.qkv.weight"][0] - width) // 2 // head,
            "n_layers": count(shapes, "layers."), "n_refiner_layers": count(shapes, "noise_refiner."),
            "cap_feat_dim": shapes["cap_embedder.1.weight"][1], "norm_eps": 1e-5, "qk_norm": True,
            "rope_theta": 256.0, "t_scale": 1000.0, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        return {
            "text_encoder": ("hidden_size", transformer["cap_feat_dim"]),
            "vae": ("latent_channels", transformer["in_channels"]),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode the prompt with Qwen3's second-to-last layer, as a user message.

        Weights are ignored, as in ComfyUI.
        """
        words = f"<|im_start|>user\n{parsed.text}<|im_end|>\n<|im_start|>assistant\n"
        ids = texts.qwen_ids(words, _MOST_TOKENS)
        return FlowEncoded(texts.language_model("text_encoder", ids, -2))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        x = at.x
        pictures = list(x.to(text.context.dtype)[:, :, None].unbind(0))
        answers = components["transformer"](
            pictures, at.of_each([1 - sigma for sigma in at.sigmas]), list(text.context.expand(len(x), -1, -1)),
            return_dict=False,
        )[0]  # fmt: skip
        return -_stacked(answers)


def _stacked(answers: Any) -> Any:
    """Stack the outputs (channels, 1, h, w) of a batch, and remove their frame axis."""
    import torch  # imported here, because planning uses this module without importing torch

    return torch.stack([answer.float()[:, 0] for answer in answers])


Z_IMAGE = ZImage()
