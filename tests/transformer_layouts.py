"""Transformers of diffusers without weights, at full size and tiny, and the layout of their files.

The original layout of a family comes from a recorded header where there is one. Of the others it is written backwards
from diffusers' classes, and a test asks diffusers' own converters whether it is right.
"""

from collections.abc import Mapping
from typing import Any

import torch

from civman.diffusion.component_layouts import Source
from civman.domain.adapters.module_names import ModuleIndex
from civman.domain.files.header import Header, Tensor

Shape = tuple[int, ...]

FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "flux1": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2-dev": ("Flux2Transformer2DModel", {}),
    "sd3": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "sd35-large": (
        "SD3Transformer2DModel",
        {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
         "qk_norm": "rms_norm"},
    ),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "auraflow": ("AuraFlowTransformer2DModel", {}),
    "anima": (
        "CosmosTransformer3DModel",
        {"num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28, "text_embed_dim": 1024,
         "extra_pos_embed_type": None},
    ),
    "krea2": ("Krea2Transformer2DModel", {}),
    "hidream": (
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": (64, 32, 32),
         "llama_layers": [*range(32), *[31] * 16]},
    ),
    "ernie-image": (
        "ErnieImageTransformer2DModel",
        {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288,
         "text_in_dim": 3072},
    ),
}  # fmt: skip
"""Family → diffusers' class and its arguments at the published size."""

RECORDED = {
    "flux1": "bfl-flux-dev", "flux2-dev": "bfl-flux2-dev", "sd3": "orig-sd3m", "sd35-large": "orig-sd35l",
    "lumina2": "orig-lumina2", "qwen-image": "orig-qwen-image",
}  # fmt: skip
SWAPPED = ("norm_out.linear.weight", "norm_out.linear.bias")
"""Shift and scale are the other way round in the files of these families."""
SWAPS = ("flux1", "flux2-dev", "sd3", "sd35-large", "auraflow")
JOINT = ("to_q", "add_q_proj", "to_k", "add_k_proj", "to_v", "add_v_proj", "proj_mlp")
"""The order in which a joint layer of a file holds the modules of diffusers."""

BACKWARDS: dict[str, list[tuple[str, str]]] = {
    "chroma": [
        ("distilled_guidance_layer.layers.#.linear_1", "distilled_guidance_layer.layers.#.in_layer"),
        ("distilled_guidance_layer.layers.#.linear_2", "distilled_guidance_layer.layers.#.out_layer"),
        ("single_transformer_blocks.#.attn.to_[qkv]", "single_blocks.#.linear1"),
        ("single_transformer_blocks.#.proj_mlp", "single_blocks.#.linear1"),
        ("single_transformer_blocks.#.proj_out", "single_blocks.#.linear2"),
        ("transformer_blocks.#.attn.to_[qkv]", "double_blocks.#.img_attn.qkv"),
        ("transformer_blocks.#.attn.add_[qkv]_proj", "double_blocks.#.txt_attn.qkv"),
        ("transformer_blocks.#.attn.to_out.0", "double_blocks.#.img_attn.proj"),
        ("transformer_blocks.#.attn.to_add_out", "double_blocks.#.txt_attn.proj"),
        ("transformer_blocks.#.ff.net.0.proj", "double_blocks.#.img_mlp.0"),
        ("transformer_blocks.#.ff.net.2", "double_blocks.#.img_mlp.2"),
        ("transformer_blocks.#.ff_context.net.0.proj", "double_blocks.#.txt_mlp.0"),
        ("transformer_blocks.#.ff_context.net.2", "double_blocks.#.txt_mlp.2"),
        ("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("proj_out", "final_layer.linear"),
    ],
    "z-image": [
        ("(layers|noise_refiner|context_refiner).#.attention.to_[qkv]", "@.#.attention.qkv"),
        ("(layers|noise_refiner|context_refiner).#.attention.to_out.0", "@.#.attention.out"),
        ("all_final_layer.2-1.linear", "final_layer.linear"), ("all_x_embedder.2-1", "x_embedder"),
        ("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
    ],
    "auraflow": [
        ("joint_transformer_blocks.#.attn.to_([qkv])", "double_layers.#.attn.w2@"),
        ("joint_transformer_blocks.#.attn.to_out.0", "double_layers.#.attn.w2o"),
        ("joint_transformer_blocks.#.attn.add_([qkv])_proj", "double_layers.#.attn.w1@"),
        ("joint_transformer_blocks.#.attn.to_add_out", "double_layers.#.attn.w1o"),
        ("joint_transformer_blocks.#.ff.linear_([12])", "double_layers.#.mlpX.c_fc@"),
        ("joint_transformer_blocks.#.ff.out_projection", "double_layers.#.mlpX.c_proj"),
        ("joint_transformer_blocks.#.ff_context.linear_([12])", "double_layers.#.mlpC.c_fc@"),
        ("joint_transformer_blocks.#.ff_context.out_projection", "double_layers.#.mlpC.c_proj"),
        ("joint_transformer_blocks.#.norm1.linear", "double_layers.#.modX.1"),
        ("joint_transformer_blocks.#.norm1_context.linear", "double_layers.#.modC.1"),
        ("single_transformer_blocks.#.attn.to_([qkv])", "single_layers.#.attn.w1@"),
        ("single_transformer_blocks.#.attn.to_out.0", "single_layers.#.attn.w1o"),
        ("single_transformer_blocks.#.ff.linear_([12])", "single_layers.#.mlp.c_fc@"),
        ("single_transformer_blocks.#.ff.out_projection", "single_layers.#.mlp.c_proj"),
        ("single_transformer_blocks.#.norm1.linear", "single_layers.#.modCX.1"),
        ("time_step_proj.linear_1", "t_embedder.mlp.0"), ("time_step_proj.linear_2", "t_embedder.mlp.2"),
        ("context_embedder", "cond_seq_linear"), ("proj_out", "final_linear"), ("norm_out.linear", "modF.1"),
        ("pos_embed.proj", "init_x_linear"),
    ],
    "anima": [
        ("transformer_blocks.#.attn1.to_([qkv])", "blocks.#.self_attn.@_proj"),
        ("transformer_blocks.#.attn1.to_out.0", "blocks.#.self_attn.output_proj"),
        ("transformer_blocks.#.attn2.to_([qkv])", "blocks.#.cross_attn.@_proj"),
        ("transformer_blocks.#.attn2.to_out.0", "blocks.#.cross_attn.output_proj"),
        ("transformer_blocks.#.norm1.linear_([12])", "blocks.#.adaln_modulation_self_attn.@"),
        ("transformer_blocks.#.norm2.linear_([12])", "blocks.#.adaln_modulation_cross_attn.@"),
        ("transformer_blocks.#.norm3.linear_([12])", "blocks.#.adaln_modulation_mlp.@"),
        ("transformer_blocks.#.ff.net.0.proj", "blocks.#.mlp.layer1"),
        ("transformer_blocks.#.ff.net.2", "blocks.#.mlp.layer2"),
        ("patch_embed.proj", "x_embedder.proj.1"), ("time_embed.t_embedder", "t_embedder.1"),
        ("norm_out.linear_([12])", "final_layer.adaln_modulation.@"), ("proj_out", "final_layer.linear"),
        ("time_embed.t_embedder.linear_([12])", "t_embedder.1.linear_@"),
    ],
    "krea2": [
        ("transformer_blocks.#.attn.to_([qkv])", "blocks.#.attn.w@"),
        ("transformer_blocks.#.attn.to_out.0", "blocks.#.attn.wo"),
        ("transformer_blocks.#.attn.to_gate", "blocks.#.attn.gate"),
        ("transformer_blocks.#.ff.(gate|up|down)", "blocks.#.mlp.@"),
        ("text_fusion.(layerwise_blocks|refiner_blocks).#.attn.to_q", "txtfusion.@.#.attn.wq"),
        ("text_fusion.(layerwise_blocks|refiner_blocks).#.attn.to_k", "txtfusion.@.#.attn.wk"),
        ("text_fusion.(layerwise_blocks|refiner_blocks).#.attn.to_v", "txtfusion.@.#.attn.wv"),
        ("text_fusion.(layerwise_blocks|refiner_blocks).#.attn.to_out.0", "txtfusion.@.#.attn.wo"),
        ("text_fusion.(layerwise_blocks|refiner_blocks).#.attn.to_gate", "txtfusion.@.#.attn.gate"),
        ("text_fusion.layerwise_blocks.#.ff.(gate|up|down)", "txtfusion.layerwise_blocks.#.mlp.@"),
        ("text_fusion.refiner_blocks.#.ff.(gate|up|down)", "txtfusion.refiner_blocks.#.mlp.@"),
        ("text_fusion.projector", "txtfusion.projector"), ("img_in", "first"), ("time_embed.linear_1", "tmlp.0"),
        ("time_embed.linear_2", "tmlp.2"), ("time_mod_proj", "tproj.1"), ("txt_in.linear_1", "txtmlp.1"),
        ("txt_in.linear_2", "txtmlp.3"), ("final_layer.linear", "last.linear"),
    ],
    "ernie-image": [], "hidream": [],
}  # fmt: skip
"""Diffusers' name of a module → its name in the family's files; `#` is a number, `@` what the group matches."""


def model(family: str, **changes: Any) -> torch.nn.Module:
    """Build a family's transformer without memory."""
    import diffusers

    name, config = FULL[family]
    with torch.device("meta"):
        return getattr(diffusers, name)(**(config | changes))


def weights(module: torch.nn.Module) -> dict[str, Shape]:
    """The shapes of a model's parameters."""
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def backwards(family: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of the file that a model would have been loaded from; only modules with a matrix."""
    import re

    rules = [
        (re.compile(left.replace(".", r"\.").replace("#", r"(?P<n>\d+)") + r"\Z"), right)
        for left, right in BACKWARDS[family]
    ]
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.weight" not in shapes or len(shapes[f"{module}.weight"]) < 2:
            continue
        original = module
        for pattern, right in rules:
            if match := pattern.match(module):
                groups = [group for key, group in enumerate(match.groups(), 1) if key != pattern.groupindex.get("n")]
                original = right.replace("#", match["n"] if "#" in right else "").replace("@", (groups or [""])[0])
                break
        whole = f"{original}.{leaf}"
        found[whole] = (found[whole][0] + shape[0], *shape[1:]) if whole in found else shape
    return found


def header(shapes: Mapping[str, Shape]) -> Header:
    """A header with these tensors."""
    return Header({name: Tensor("BF16", shape, 0, 0) for name, shape in shapes.items()}, {}, 8, 8)


def sources(family: str, shapes: Mapping[str, Shape], index: ModuleIndex, layers: int = 0) -> dict[str, Source]:
    """Where each parameter comes from, according to an index of the file's names. `layers`: SD 3's number of blocks."""
    found: dict[str, Source] = {}
    filled: dict[str, int] = {}
    last = f"transformer_blocks.{layers - 1}.norm1_context.linear."

    def place(name: str) -> int:
        return next((number for number, part in enumerate(JOINT) if f".{part}." in name), 0)

    for name in sorted(shapes, key=place):
        module, _, leaf = name.rpartition(".")
        weight = index.weight("unet", module.replace(".", "_"))
        if weight is None:
            continue
        swaps = (family in SWAPS and name in SWAPPED) or (family in ("sd3", "sd35-large") and name.startswith(last))
        original = f"{weight.name}.{leaf}"
        if weight.slice:
            start = filled.get(original, 0)
            filled[original] = start + shapes[name][0]
            found[name] = Source(original, rows=(start, shapes[name][0]), swaps_halves=swaps)
        else:
            found[name] = Source(original, swaps_halves=swaps)
    return found
