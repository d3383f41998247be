"""HiDream-I1: Full, Dev and Fast, which have the same tensors. HiDream-E1 is recognised by its name, not rendered."""

from collections.abc import Mapping
from typing import Any, ClassVar

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.clip_and_vae_configs import count
from civman.diffusion.families.flow_family import Defaults, FlowEncoded, FlowFamily, Instant, Need, Texts
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import FLUX_VAE, LLAMA, LLAMA_LAYERS, LONG_CLIP, LONG_CLIP_G, LONG_CLIP_L, T5
from civman.domain.architecture import Architecture
from civman.errors import CannotRender, Cause
from civman.prompts.emphasis import ParsedPrompt

_HEAD = 128
_TOKENS = 128
"""The number of tokens of T5 and Llama; shorter prompts are padded."""
_START, _PADDING = "<|begin_of_text|>", "<|eot_id|>"
_LEAST_PADDED = 7 / 8
"""Images that are not square are padded if they have at least this fraction of the tokens of a square megapixel."""


class HiDream(FlowFamily):
    """HiDream-I1. Its files have diffusers' tensor names; the image's feed-forward layers are mixtures of experts."""

    name = "hidream"
    title = "HiDream-I1"
    architecture = Architecture.HIDREAM
    model = "HiDreamImageTransformer2DModel"
    probes = (
        "double_stream_blocks.0.block.adaLN_modulation.1.weight", "x_embedder.proj.weight",
        "caption_projection.0.linear.weight", "p_embedder.pooled_embedder.linear_1.weight",
    )  # fmt: skip
    keys = KeyTable()
    needs = (
        Need("text_encoder", LONG_CLIP_L), Need("text_encoder_2", LONG_CLIP_G), Need("text_encoder_3", T5),
        Need("text_encoder_4", LLAMA), Need("vae", FLUX_VAE),
    )  # fmt: skip
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {"full": ("full",), "dev": ("dev",), "fast": ("fast",)}
    refused_words: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("hidream-e1", "hidream_e1", "hidream e1", "hidreame1", "hidream-i1-e1", "hidream_i1_e1"),
        "it edits a picture that it is given, but civman renders only HiDream-I1",
    )

    def variants(self, shapes: Shapes) -> tuple[str, ...]:  # noqa: ARG002
        """Return the family's variants that may have these tensors, the most common one first."""
        return ("full", "dev", "fast")

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set.

        They are ComfyUI's, except Full's sampler: ComfyUI uses UniPC, which civman does not offer for flow matching.
        """
        if variant == "dev":
            return Defaults(steps=28, sampler="LCM", schedule="Normal", shift=6.0)
        if variant == "fast":
            return Defaults(steps=16, sampler="LCM", schedule="Normal", shift=3.0)
        return Defaults(steps=50, cfg=5.0, shift=3.0)

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes.

        In all published models, attention heads are 128 wide, and two experts process each token. Block n reads
        the output of Llama's layer n; if there are more blocks than layers, the rest read the last layer's.
        """
        width, inputs = shapes["x_embedder.proj.weight"]
        doubles, singles = (count(shapes, f"{kind}_stream_blocks.") for kind in ("double", "single"))
        blocks = doubles + singles
        return {
            "patch_size": 2, "in_channels": inputs // 4, "out_channels": shapes["final_layer.linear.weight"][0] // 4,
            "num_layers": doubles, "num_single_layers": singles, "attention_head_dim": _HEAD,
            "num_attention_heads": width // _HEAD,
            "caption_channels": [
                shapes[f"caption_projection.{number}.linear.weight"][1] for number in (blocks, 0)
            ],
            "text_emb_dim": shapes["p_embedder.pooled_embedder.linear_1.weight"][1],
            "num_routed_experts": count(shapes, "double_stream_blocks.0.block.ff_i.experts."),
            "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
            "llama_layers": [min(block, LLAMA_LAYERS - 1) for block in range(blocks)],
        }  # fmt: skip

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width).

        Of the pooled text's width, three eighths are CLIP-L's (768) and five eighths CLIP-G's (1280).
        """
        pooled = transformer["text_emb_dim"]
        t5, llama = transformer["caption_channels"]
        return {
            "text_encoder": ("projection_dim", pooled * 3 // 8), "text_encoder_2": ("projection_dim", pooled * 5 // 8),
            "text_encoder_3": ("d_model", t5), "text_encoder_4": ("hidden_size", llama),
            "vae": ("latent_channels", transformer["in_channels"]),
        }  # fmt: skip

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt: T5's states and those of all layers of Llama, side by side, and both CLIPs' pooled vectors.

        Weights apply to T5's states only.
        """
        import torch  # imported here, because planning uses this module without importing torch

        pooled = [texts.clip(each, parsed, most=LONG_CLIP)[1] for each in ("text_encoder", "text_encoder_2")]
        t5 = texts.t5("text_encoder_3", parsed, _TOKENS, _TOKENS, hides_padding=True)
        ends = texts.file_ids("text_encoder_4", _START + _PADDING, 3)
        if len(ends) != 2:
            raise CannotRender(
                f"the tokenizer is not that of Llama 3, because it lacks the tokens {_START} and {_PADDING}",
                hint="pass the tokenizer of Llama 3.1 with --part tokenizer=FILE", code=Cause.MISMATCHED_PARTS,
                part="tokenizer",
            )  # fmt: skip
        ids = texts.file_ids("text_encoder_4", _START + texts.plain(parsed), _TOKENS)
        layers = tuple(range(1, LLAMA_LAYERS + 1))
        llama = texts.language_model("text_encoder_4", ids, layers, least=_TOKENS, padding=ends[1])
        return FlowEncoded(torch.cat([t5.to(llama.dtype), llama], dim=-1), torch.cat(pooled, dim=-1))

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32, with one evaluation for each image.

        Images are computed one by one, because the last bits of an expert's output depend on how many tokens it gets.
        """
        import torch  # imported here, because planning uses this module without importing torch

        transformer = components["transformer"]
        t5, llama = transformer.config.caption_channels
        times = at.of_each([sigma * 1000 for sigma in at.sigmas])
        answers = []
        for number, x in enumerate(at.x.split(1)):
            own = min(number, len(text.context) - 1)
            context, *layers = text.context[own : own + 1].split([t5, *[llama] * LLAMA_LAYERS], dim=-1)
            tokens, mask, places = _laid_out(x.to(context.dtype), transformer.max_seq)
            answers.append(-transformer(
                hidden_states=tokens, hidden_states_masks=mask, img_ids=places,
                img_sizes=[(x.shape[-2] // 2, x.shape[-1] // 2)], timesteps=times[number : number + 1],
                encoder_hidden_states_t5=context, encoder_hidden_states_llama3=layers,
                pooled_embeds=text.pooled[min(number, len(text.pooled) - 1)][None], return_dict=False,
            )[0].float())  # fmt: skip
        return torch.cat(answers)


def _laid_out(x: Any, most: int) -> tuple[Any, Any, Any]:
    """Fold latents (1, channels, h, w) into tokens; return the tokens, a mask of the real ones, and all positions.

    `most`: the number of tokens of a square image of one megapixel. An image that is not square and has slightly fewer
    tokens is padded to this number, as in diffusers, whose pipeline scales all other images to one megapixel. Images of
    other sizes are not padded, as in ComfyUI. Padding changes the result: its keys are zero, but tokens attend to it.
    """
    import torch  # imported here, because planning uses this module without importing torch

    _, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    squares = x.reshape(channels, rows, 2, columns, 2).permute(1, 3, 2, 4, 0)
    tokens = squares.reshape(1, rows * columns, 4 * channels)
    places = torch.stack([
        torch.zeros(rows, columns, device=x.device),
        torch.arange(rows, device=x.device)[:, None].expand(rows, columns),
        torch.arange(columns, device=x.device)[None].expand(rows, columns),
    ], dim=-1).reshape(1, rows * columns, 3)  # fmt: skip
    mask = x.new_ones(1, rows * columns)
    missing = most - rows * columns
    if rows == columns or not _LEAST_PADDED * most <= rows * columns < most:
        return tokens, mask, places
    pad = torch.nn.functional.pad
    return pad(tokens, (0, 0, 0, missing)), pad(mask, (0, missing)), pad(places, (0, 0, 0, missing))


HIDREAM = HiDream()
