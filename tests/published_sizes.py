"""The published sizes of the models that civman renders, as the headers of their files without weights.

A size is either the name of a header in `fixtures/headers.json.xz`, or a class with its arguments, whose parameters are
put together as the rows of the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import headers

from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.families.registry import FLOW_FAMILIES
from civman.diffusion.loader import unfilled
from civman.diffusion.model_classes import construct_class

Shape = tuple[int, ...]
Size = str | dict[str, Any]
"""The name of a header, or the arguments of the class that the family or the part has."""

_TOKENIZER_BYTES = 4_241_003
"""The size of Gemma's tokenizer in its file; that of the others matters as little."""
_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8}
PARTS: dict[str, Size] = {
    "clip-l": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
               "num_attention_heads": 12, "projection_dim": 768},
    "clip-g": "own/clip-g",
    "t5": "own/t5-xxl",
    "vae": "own/bfl-flux-ae",
    "wan-vae": {"num_res_blocks": 2},
    "flux2-vae": "own/vae-flux2-diffusers",
    "qwen3-0.6b": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                            "num_attention_heads": 16},
    "qwen3-4b": _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
    "qwen3-8b": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
    "qwen2.5-vl": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4},
    "gemma2": {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
               "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4},
    "ministral": {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
                  "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8},
    "pile-t5": {"vocab_size": 32128, "d_model": 2048, "d_kv": 64, "num_heads": 32, "d_ff": 5120, "num_layers": 24},
    "xl-vae": "own/vae-sd-ldm",
    "long-clip-l": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                    "num_attention_heads": 12, "projection_dim": 768, "max_position_embeddings": 248},
    "long-clip-g": {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                    "num_attention_heads": 20, "projection_dim": 1280, "max_position_embeddings": 218},
    "llama": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
              "num_attention_heads": 32, "num_key_value_heads": 8},
    "mistral": {"vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 30,
                "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "final_norm": False},
}  # fmt: skip
"""Text encoders and VAEs, by a name that `MODELS` refers to."""


@dataclass(frozen=True)
class Published:
    """One published size of a family."""

    transformer: Size
    parts: Mapping[str, str] = field(default_factory=dict)
    """Role → the name in `PARTS`, for parts whose name is not their role."""
    extras: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """The other networks in the transformer's file: component → class and arguments."""


_ANIMA = Published(
    {"in_channels": 17, "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28, "text_embed_dim": 1024,
     "adaln_lora_dim": 256, "concat_padding_mask": False, "extra_pos_embed_type": None},
    {"qwen3": "qwen3-0.6b", "vae": "wan-vae"},
    {"text_conditioner": ("AnimaTextConditioner", {
        "target_dim": 1024, "source_dim": 1024, "model_dim": 1024, "num_layers": 6, "num_attention_heads": 16,
        "target_vocab_size": 32128, "use_self_attention": True,
    })},
)  # fmt: skip
_KLEIN_9B = {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
    "guidance_embeds": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Published]] = {
    "flux1": {"dev": Published("own/bfl-flux-dev"), "schnell": Published("own/bfl-flux-schnell")},
    "flux2-dev": {"": Published("own/bfl-flux2-dev", {"vae": "flux2-vae"})},
    "flux2": {
        "4B": Published("own/bfl-flux2-klein-4b", {"qwen3": "qwen3-4b", "vae": "flux2-vae"}),
        "9B": Published(_KLEIN_9B, {"qwen3": "qwen3-8b", "vae": "flux2-vae"}),
    },
    "chroma": {"": Published("own/orig-chroma")},
    "z-image": {"": Published("own/orig-z-image", {"qwen3": "qwen3-4b"})},
    "anima": {"": _ANIMA},
    "qwen-image": {"": Published("own/qwen-image-diffusers", {"vae": "wan-vae"})},
    "sd3": {
        "3 Medium": Published("own/orig-sd3m"), "3.5 Medium": Published("own/orig-sd35m"),
        "3.5 Large": Published("own/orig-sd35l"),
    },
    "lumina2": {"": Published("own/orig-lumina2")},
    "krea2": {"": Published({}, {"qwen3-vl": "qwen3-4b", "vae": "wan-vae"})},
    "hidream": {"": Published("own/hidream-diffusers", {"clip-l": "long-clip-l", "clip-g": "long-clip-g"})},
    "ernie-image": {"": Published(
        {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288,
         "text_in_dim": 3072}, {"vae": "flux2-vae"},
    )},
    "auraflow": {"": Published({"pos_embed_max_size": 9216}, {"vae": "xl-vae"})},
}  # fmt: skip
"""Family → the name of a size, if there are several → what was published."""

UNETS = {
    "sd1": "own/ckpt-sd15", "sd2": "own/ckpt-sd2", "sdxl": "own/ckpt-sdxl", "sdxl-refiner": "own/ckpt-sdxl-refiner",
}  # fmt: skip
"""Family → the header of a whole checkpoint."""


def family_named(name: str) -> FlowFamily:
    return next(each for each in FLOW_FAMILIES if each.name == name)


@cache
def recorded(name: str) -> dict[str, Shape]:
    return {key: tuple(shape) for key, (_, shape) in headers.case(name)["tensors"].items()}


def class_shapes(model: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """The parameters of a class, which is built without weights."""
    with unfilled():
        module = construct_class(model, config)
    return {name: tuple(value.shape) for name, value in module.state_dict().items() if "position_ids" not in name}


def transformer_shapes(family: FlowFamily, published: Published) -> dict[str, Shape]:
    """The tensors of a transformer's file, without prefix, if it is a class that is built."""
    if isinstance(published.transformer, str):
        return recorded(published.transformer)
    found: dict[str, Shape] = {}
    for component, (model, config) in {
        "transformer": (family.model, published.transformer),
        **published.extras,
    }.items():
        sources = partial(family.sources, component, prefix="")
        found |= in_file(class_shapes(model, config), sources)
    return found


def part_shapes(family: FlowFamily, role: str, size: str) -> dict[str, Shape]:
    """The tensors of a part's file."""
    kind = next(need.kind for need in family.needs if need.kind.role == role)
    what = PARTS[size]
    if isinstance(what, str):
        return recorded(what)
    found = in_file(class_shapes(kind.model, what), partial(kind.sources, config=what))
    found |= dict.fromkeys(kind.tokenizers[-1:], (_TOKENIZER_BYTES,))
    # Qwen3-VL is recognised by its names alone
    return {f"model.language_model.{name}" if role == "qwen3-vl" else name: shape for name, shape in found.items()}


def in_file(wanted: Mapping[str, Shape], sources: Any) -> dict[str, Shape]:
    """The tensors of a file: the rows that several parameters have of one tensor put together."""
    found: dict[str, Shape] = {}
    for name, source in sources(wanted).items():
        before = found.get(source.name, (0,))[0] if source.rows else 0
        found[source.name] = (before + wanted[name][0], *wanted[name][1:])
    return found


def files_of(family: FlowFamily) -> Iterator[tuple[str, dict[str, Shape], dict[str, dict[str, Shape]]]]:
    """For each published size: its name, the tensors of the transformer's file, and those of each part's file."""
    for label, published in MODELS[family.name].items():
        roles = [need.kind.role for need in family.needs]
        parts = {role: part_shapes(family, role, published.parts.get(role, role)) for role in roles}
        yield label, transformer_shapes(family, published), parts
