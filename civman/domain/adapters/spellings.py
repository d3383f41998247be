"""The names of tensors in adapter files: a table of endings, a table of prefixes, and the parser that uses them.

A tensor's name in an adapter file is the name of a module (`lora_unet_mid_block_attentions_0_proj_in`) plus an ending
that shows which part of the change the tensor contains (`lora_down.weight`). The module's name starts with a prefix for
the part of the model (`lora_unet_`). All code of civman that reads adapters uses these tables. The weight that a
module's name refers to is looked up in `civman.domain.adapters.module_names`.

Source: names as kohya's scripts, LyCORIS, PEFT, diffusers, ComfyUI, OneTrainer, ai-toolkit and cloneofsimo's first LoRA
    scripts write them.
"""

import re
from collections.abc import Iterator

ENDINGS: dict[str, str] = {
    "alpha": "alpha", "dora_scale": "dora_scale", "rescale": "rescale",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "lora_down": "down", "lora_up": "up", "lora_mid": "mid", "lora_up.bias": "up_bias",
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_A": "down", "lora_B": "up", "lora_B.bias": "up_bias",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "down.weight": "down", "up.weight": "up",
    **{f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")},
    "oft_blocks": "oft_blocks", "oft_diag": "oft_diag",
    "oft_R.weight": "oft_r", "oft_R": "oft_r", "boft_R": "boft_r", "boft_s": "boft_s", "ia3_l": "ia3_l",
    **{f"{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    "weight": "factor", "on_input": "on_input",
    "diff": "diff", "diff_b": "diff_b", "w_norm": "diff", "b_norm": "diff_b", "set_weight": "set_weight",
}  # fmt: skip
"""Maps the ending of a tensor's name to the part of the change that the tensor contains."""

_NAMED = re.compile(
    r"\.(?P<part>lora_A|lora_B|lora_magnitude_vector|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])"
    r"|b?oft_R|boft_s|ia3_l)"
    r"\.(?P<name>[^.]+)(?P<leaf>\.weight|\.bias)?\Z"
)
"""Matches PEFT's tensor names, which include the name of the adapter: `lora_A.default.weight`."""

_XLABS = {
    "qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv", "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj", "qkv_lora": "linear1", "proj_lora": "linear2",
}  # fmt: skip
"""Maps XLabs' attention processors for Flux to the layers that these processors change."""
_BARE_SIDES = ("down.weight", "up.weight")
_FIRST = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)\Z")
"""Matches names in cloneofsimo's first layout, which numbers the layers instead of naming them."""

MARKS = (
    "lora", "hada_w", "lokr_w", "oft_", ".diff\n", ".diff_b\n", ".set_weight", ".a1.weight", ".on_input", "_norm\n",
    "magnitude_vector", "unet:0:", "text_encoder:0:", "ia3_l",
)  # fmt: skip
"""Strings that identify adapters: the list of an adapter's tensor names, one per line, contains at least one of them.
"""
WRAPPED = ".base_layer."
"""A part of the names of PEFT's wrapped layers, which occur if the base model's weights were saved too."""
BUNDLED = "bundle_emb."
"""The prefix of the tensors of an embedding that is bundled in an adapter file."""

ONLY_ENCODERS = (
    "qwen3_06b", "qwen3_4b", "qwen3_8b", "qwen3vl_4b", "qwen25_7b", "gemma2_2b", "mistral3_24b", "ministral3_3b",
    "pile_t5xl",
)  # fmt: skip
"""ComfyUI's names of the text encoders of models that have only one text encoder."""

_PARTS = {
    **{f"{kind}_{name}_": part for kind in ("lora", "oft", "lycoris") for name, part in (
        ("unet", "unet"), ("te", "te1"), ("te1", "te1"), ("te2", "te2"), ("te3", "te3"), ("te4", "te4"))},
    "lora_transformer_": "unet", "lora_prior_unet_": "unet", "lora_prior_te_": "te1",
    "lycoris_text_encoder_2_": "te2", "lycoris_text_encoder_": "te1", "lycoris_text_model_": "te1", "lycoris_": "unet",
    "lora_unet.": "unet", "lora_te1.": "te1", "lora_te2.": "te2", "lora_te.": "te1",
    "text_encoder_4.": "te4", "text_encoder_3.": "te3", "text_encoder_2.": "te2",
    "text_encoder_1.": "te1", "text_encoder.": "te1",
    "text_encoders.clip_l.": "te1", "text_encoders.clip_h.": "te1", "text_encoders.clip_g.": "te2",
    "text_encoders.t5xxl.": "te3", "text_encoders.llama.": "te4",
    "clip_l.": "te1", "clip_h.": "te1", "clip_g.": "te2", "t5xxl.": "te3",
    "cond_stage_model.transformer.": "te1", "cond_stage_model.model.": "te1",
    "conditioner.embedders.0.transformer.": "te1", "conditioner.embedders.1.model.": "te2",
    "model.diffusion_model.": "unet", "diffusion_model.": "unet", "unet.": "unet",
    "transformer.text_model.": "te1", "text_model.": "te1", "transformer.": "unet",
    **{f"text_encoders.{name}.": "te1" for name in ONLY_ENCODERS},
    "net.": "unet",
    "base_model.model.": "",
}  # fmt: skip
"""Maps the prefix of a module's name to the part of the model; "" if the prefix does not show the part."""
_UNSAID = ("lycoris_text_model_", "text_model.", "transformer.text_model.", "base_model.model.text_model.")


def _one_of(names: list[str]) -> "re.Pattern[str]":
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


_PREFIX = _one_of(list(_PARTS))
# prefixes to skip after the first one: repetitions of it, and prefixes that a wrapper of the model adds
_AGAIN = _one_of([*(prefix for prefix in _PARTS if prefix != "lycoris_"), "diffusion_model_", "model_diffusion_model_",
                  "unet_", "base_model_model_"])  # fmt: skip
_TEXT_LEADS = ("transformer_text_model_", "text_model_", "transformer_", "model_")
_OLD_TEXT = {
    "_to_q": "_q_proj", "_to_k": "_k_proj", "_to_v": "_v_proj", "_to_out": "_out_proj", "_to_out_0": "_out_proj",
}  # fmt: skip
"""Maps diffusers' old names of the text encoders' attention layers to transformers' names."""


def split_name(name: str) -> tuple[str, str]:
    """Split a tensor's name into module and part of the change; the part is "" if no trainer writes such a name.

    >>> split_name("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    ('lora_unet_mid_block_attentions_0_proj_in', 'down')
    >>> split_name("unet.mid_block.attentions.0.proj_in.lora_A.my_style.weight")
    ('unet.mid_block.attentions.0.proj_in', 'down')
    """
    module, _, ending = name.partition(".")
    if ending in ENDINGS and ending not in _BARE_SIDES:
        # the ending follows the first dot, because kohya's module names contain no dot
        return module, ENDINGS[ending]
    last = name.rfind(".")
    middle = name.rfind(".", 0, max(last, 0))
    for dot in (name.rfind(".", 0, max(middle, 0)), middle, last):
        if dot >= 0 and (ending := name[dot + 1 :]) in ENDINGS:
            if ending == "weight" and (named := _NAMED.search(name)):
                break
            return _processors(name, name[:dot], ending)
    if named := _NAMED.search(name):
        ending = named["part"] + (named["leaf"] or "")
        return (name[: named.start()], ENDINGS[ending]) if ending in ENDINGS else (name, "")
    if first := _FIRST.match(name):
        return f"{first[1]}:{first[2]}", first[3]
    return name, ""


def _processors(name: str, module: str, ending: str) -> tuple[str, str]:
    """Parse the names of diffusers' old attention processors: `attn1.processor.to_out_lora.down.weight`."""
    bare = ending in _BARE_SIDES
    stem, dot, tail = module.rpartition(".processor.")
    if dot and tail in _XLABS:
        return f"{stem}.{_XLABS[tail]}", ENDINGS[ending]
    if not module.endswith("_lora"):
        return (name, "") if bare else (module.replace(".processor.", "."), ENDINGS[ending])
    module = module.removesuffix("_lora").replace(".processor.", ".")
    return f"{module}.0" if module.endswith(".to_out") else module, ENDINGS[ending]


def says_which_encoder(module: str) -> bool:
    """Whether a module's name shows which of two text encoders it refers to; also True for a name of another part."""
    return not module.startswith(_UNSAID)


def means_the_only_encoder(module: str) -> bool:
    """Whether a module's name shows that the model has only one text encoder; otherwise kohya adds a number to `te`."""
    return module.startswith(("lora_te_", "oft_te_", "lycoris_te_"))


def locate(module: str, *, is_extended: bool = False) -> tuple[str, str]:
    """Split a module's name into the model's part ("unet", or "te1" to "te4") and the path within it.

    Dots in the path become underscores. `is_extended`: the file is in cloneofsimo's first layout, with convolutions.

    >>> locate("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    ('te2', 'encoder_layers_0_mlp_fc1')
    >>> locate("base_model.model.unet.unet.mid_block.attentions.0.proj_in")
    ('unet', 'mid_block_attentions_0_proj_in')
    """
    if ":" in module and (layer := _first_layer(module, is_extended=is_extended)):
        return layer
    part, rest = "", module
    pattern = _PREFIX
    while found := pattern.match(rest):
        part = part or _PARTS.get(found[0], "")
        rest, pattern = rest[found.end() :], _AGAIN
    part = part or "unet"
    path = rest.replace(".", "_")
    if part != "unet":
        while lead := next((lead for lead in _TEXT_LEADS if path.startswith(lead)), ""):
            path = path[len(lead) :]
        for old, now in _OLD_TEXT.items():
            if path.endswith(f"_self_attn{old}"):
                path = path.removesuffix(old) + now
    return part, path


_FIRST_BLOCKS = [
    *(f"down_blocks_{level}_attentions_{number}" for level in (0, 1, 2) for number in (0, 1)),
    *(f"up_blocks_{level}_attentions_{number}" for level in (1, 2, 3) for number in (0, 1, 2)),
    "mid_block_attentions_0",
]
_FIRST_LAYERS = (
    "attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "ff_net_0_proj",
    "attn2_to_q", "attn2_to_k", "attn2_to_v", "attn2_to_out_0",
)  # fmt: skip
_FIRST_TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
EXTENDED_MARK = f"\nunet:{len(_FIRST_BLOCKS) * len(_FIRST_LAYERS)}:"
"""A string that the list of a file's tensor names contains only in cloneofsimo's extended layout, which numbers more
layers than the original one.
"""


def _extended_layers() -> Iterator[str]:
    """List the layers that the extended layout numbers: for each block its attention layers, then its ResNets."""
    blocks = [(f"down_blocks_{level}", 2, level < 3, level in (1, 2)) for level in range(4)]
    blocks += [(f"up_blocks_{level}", 3, level > 0, True) for level in range(4)]
    for block, count, attends, widens in (*blocks, ("mid_block", 2, True, False)):
        for number in range(min(count, 1) if block == "mid_block" else count if attends else 0):
            yield from (f"{block}_attentions_{number}_transformer_blocks_0_{layer}" for layer in _FIRST_LAYERS)
        for number in range(count):
            yield from (f"{block}_resnets_{number}_{layer}" for layer in ("conv1", "time_emb_proj", "conv2"))
            if widens and (number == 0 or block.startswith("up")):
                yield f"{block}_resnets_{number}_conv_shortcut"


_EXTENDED = tuple(_extended_layers())


def _first_layer(module: str, *, is_extended: bool) -> tuple[str, str] | None:
    """Return the layer that a number in cloneofsimo's first layout refers to; None if there is none.

    The numbers count the attention layers of diffusers 0.11's UNet in the order in which its modules were created: the
    middle block comes last, and each feed-forward layer comes between its two attention layers. The shapes in two files
    of cloneofsimo/lora confirm this order. An extended file also numbers the layers of the ResNets, which each block
    creates after its attention layers.
    """
    where, _, number = module.partition(":")
    if not number.isdecimal():
        return None
    if where == "text_encoder":
        layer, projection = divmod(int(number), len(_FIRST_TEXT))
        return "te1", f"encoder_layers_{layer}_self_attn_{_FIRST_TEXT[projection]}"
    if is_extended:
        return ("unet", _EXTENDED[int(number)]) if where == "unet" and int(number) < len(_EXTENDED) else None
    block, layer = divmod(int(number), len(_FIRST_LAYERS))
    if where != "unet" or block >= len(_FIRST_BLOCKS):
        return None
    return "unet", f"{_FIRST_BLOCKS[block]}_transformer_blocks_0_{_FIRST_LAYERS[layer]}"
