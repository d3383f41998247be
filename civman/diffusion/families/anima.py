"""Anima: the transformer of Cosmos-Predict2, with a text adapter that converts Qwen3's hidden states to its input."""

from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.component_layouts import Source
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts, require_head
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import QWEN3, WAN_VAE
from civman.domain.architecture import Architecture
from civman.prompts.emphasis import ParsedPrompt

_KEYS = """
x_embedder.proj.1 = patch_embed.proj
t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
t_embedding_norm = time_embed.norm
final_layer.adaln_modulation.1 = norm_out.linear_1
final_layer.adaln_modulation.2 = norm_out.linear_2
final_layer.linear = proj_out
blocks.#.mlp.layer1 = transformer_blocks.#.ff.net.0.proj
blocks.#.mlp.layer2 = transformer_blocks.#.ff.net.2
"""
_MODULATION = """
blocks.#.adaln_modulation_{0}.1 = transformer_blocks.#.norm{1}.linear_1
blocks.#.adaln_modulation_{0}.2 = transformer_blocks.#.norm{1}.linear_2
"""
_ATTENTION = """
blocks.#.{0}_attn.q_proj = transformer_blocks.#.attn{1}.to_q
blocks.#.{0}_attn.k_proj = transformer_blocks.#.attn{1}.to_k
blocks.#.{0}_attn.v_proj = transformer_blocks.#.attn{1}.to_v
blocks.#.{0}_attn.output_proj = transformer_blocks.#.attn{1}.to_out.0
blocks.#.{0}_attn.q_norm = transformer_blocks.#.attn{1}.norm_q
blocks.#.{0}_attn.k_norm = transformer_blocks.#.attn{1}.norm_k
"""
_ADAPTER = "text_conditioner"
_MOST_TOKENS = 512
_PADDING = 151643
"""The id of Qwen's padding token, which represents an empty prompt."""


class Anima(FlowFamily):
    """Anima. The transformer takes σ itself as its timestep, and a padding mask (all zeros) as its last channel."""

    name = "anima"
    title = "Anima"
    architecture = Architecture.ANIMA
    model = "CosmosTransformer3DModel"
    probes = ("llm_adapter.embed.weight", "x_embedder.proj.1.weight", "blocks.0.self_attn.q_proj.weight")
    keys = KeyTable(
        _KEYS + "".join(_MODULATION.format(*each) for each in (("self_attn", 1), ("cross_attn", 2), ("mlp", 3)))
        + "".join(_ATTENTION.format(*each) for each in (("self", 1), ("cross", 2)))
    )  # fmt: skip
    needs = (Need("text_encoder", QWEN3), Need("vae", WAN_VAE))
    known_extras = ("pos_embedder.", "accum_", "model_sampling.", "llm_adapter.rotary_emb.")
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {"base": ("base", "preview"), "turbo": ("turbo",)}

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("base", "turbo")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        The steps and the sampler are CivitAI's; the CFG scale is within the range that the model's authors advise.
        """
        if variant == "turbo":
            return Defaults(steps=8, sampler="Euler a", shift=3.0)
        return Defaults(steps=25, cfg=4.5, sampler="Euler a", shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes.

        The padding mask counts as an ordinary input channel.
        """
        head = shapes["blocks.0.self_attn.q_norm.weight"][0]
        require_head(head, 128, self.title)
        width, patch = shapes["x_embedder.proj.1.weight"]
        return {
            "in_channels": patch // 4, "out_channels": shapes["final_layer.linear.weight"][0] // 4,
            "num_attention_heads": width // head, "attention_head_dim": head, "num_layers": count(shapes, "blocks."),
            "mlp_ratio": shapes["blocks.0.mlp.layer1.weight"][0] / width,
            "text_embed_dim": shapes["blocks.0.cross_attn.k_proj.weight"][1],
            "adaln_lora_dim": shapes["blocks.0.adaln_modulation_mlp.1.weight"][0],
            "patch_size": (1, 2, 2), "max_size": (128, 240, 240), "rope_scale": (1.0, 4.0, 4.0),
            "concat_padding_mask": False, "extra_pos_embed_type": None,
        }  # fmt: skip

    def extra_components(self, shapes: Shapes) -> dict[str, tuple[str, Config]]:
        """Return the networks that the file contains besides the transformer: only the text adapter."""
        vocabulary, target = shapes["llm_adapter.embed.weight"]
        inner, width = shapes["llm_adapter.blocks.0.cross_attn.q_proj.weight"]
        config = {
            "source_dim": shapes["llm_adapter.blocks.0.cross_attn.k_proj.weight"][1], "target_dim": target,
            "model_dim": width, "num_layers": count(shapes, "llm_adapter.blocks."),
            "num_attention_heads": inner // shapes["llm_adapter.blocks.0.cross_attn.q_norm.weight"][0],
            "mlp_ratio": shapes["llm_adapter.blocks.0.mlp.0.weight"][0] / width, "target_vocab_size": vocabulary,
            "use_self_attention": "llm_adapter.blocks.0.self_attn.q_proj.weight" in shapes,
            "use_layer_norm": "llm_adapter.blocks.0.norm_mlp.bias" in shapes, "min_sequence_length": _MOST_TOKENS,
        }  # fmt: skip
        return {_ADAPTER: ("AnimaTextConditioner", config)}

    def sources(self, component: str, wanted: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Source]:
        """Map each parameter of the transformer, or of an extra component, to its tensor in the file."""
        if component == _ADAPTER:
            return {parameter: Source(f"{prefix}llm_adapter.{parameter}") for parameter in wanted}
        return self.keys.sources(wanted, prefix)

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width).

        In all known models, the text adapter's input is as wide as its output, so the text encoder has this width, too.
        """
        return {
            "text_encoder": ("hidden_size", transformer["text_embed_dim"]),
            "vae": ("z_dim", transformer["out_channels"]),
        }

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt: the text adapter attends to Qwen3's last hidden states and returns one vector per T5 token.

        Each vector is multiplied by the weight of its token.
        """
        ids = texts.qwen_ids(texts.plain(parsed), _MOST_TOKENS) or [_PADDING]
        states = texts.language_model("text_encoder", ids, None)
        tokens, weights = texts.t5_ids(parsed, _MOST_TOKENS)
        context = texts.run(_ADAPTER, states, tokens)
        for place, weight in enumerate(weights):
            if weight != 1:
                context[:, place] *= weight
        return FlowEncoded(context)

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32 in one evaluation."""
        import torch  # imported here, because planning uses this module without importing torch

        x = at.x
        masked = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)[:, :, None].to(text.context.dtype)
        answer = components["transformer"](
            hidden_states=masked, timestep=at.of_each(at.sigmas).to(masked.dtype),
            encoder_hidden_states=text.context.expand(len(x), -1, -1), return_dict=False,
        )[0]  # fmt: skip
        return answer.float()[:, :, 0]


ANIMA = Anima()
