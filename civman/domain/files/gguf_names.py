"""Translates the tensor names of text encoders in GGUF files to the original authors' names.

llama.cpp renames the tensors of language models. Names are translated only for architectures of which civman knows what
llama.cpp changes in the tensors: nothing, or the order of rows (see `gguf_rows`). Gemma is not among them, because
llama.cpp adds one to its norms.

Source: the name tables of the package `gguf`; a test compares each name with them.
"""

import re
from collections.abc import Iterable
from typing import Final

_LANGUAGE_MODEL: Final = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "blk.#.attn_norm": "model.layers.#.input_layernorm", "blk.#.ffn_norm": "model.layers.#.post_attention_layernorm",
    "blk.#.attn_q": "model.layers.#.self_attn.q_proj", "blk.#.attn_k": "model.layers.#.self_attn.k_proj",
    "blk.#.attn_v": "model.layers.#.self_attn.v_proj", "blk.#.attn_output": "model.layers.#.self_attn.o_proj",
    "blk.#.attn_q_norm": "model.layers.#.self_attn.q_norm", "blk.#.attn_k_norm": "model.layers.#.self_attn.k_norm",
    "blk.#.ffn_gate": "model.layers.#.mlp.gate_proj", "blk.#.ffn_up": "model.layers.#.mlp.up_proj",
    "blk.#.ffn_down": "model.layers.#.mlp.down_proj",
}  # fmt: skip
_BLOCK = "encoder.block.#.layer"
_T5: Final = {
    "token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm",
    "enc.blk.#.attn_norm": f"{_BLOCK}.0.layer_norm", "enc.blk.#.ffn_norm": f"{_BLOCK}.1.layer_norm",
    "enc.blk.#.attn_q": f"{_BLOCK}.0.SelfAttention.q", "enc.blk.#.attn_k": f"{_BLOCK}.0.SelfAttention.k",
    "enc.blk.#.attn_v": f"{_BLOCK}.0.SelfAttention.v", "enc.blk.#.attn_o": f"{_BLOCK}.0.SelfAttention.o",
    "enc.blk.#.attn_rel_b": f"{_BLOCK}.0.SelfAttention.relative_attention_bias",
    "enc.blk.#.ffn_gate": f"{_BLOCK}.1.DenseReluDense.wi_0", "enc.blk.#.ffn_up": f"{_BLOCK}.1.DenseReluDense.wi_1",
    "enc.blk.#.ffn_down": f"{_BLOCK}.1.DenseReluDense.wo",
}  # fmt: skip
ARCHITECTURES: Final = {
    "t5": _T5, "t5encoder": _T5, "qwen2": _LANGUAGE_MODEL, "qwen2vl": _LANGUAGE_MODEL, "qwen3": _LANGUAGE_MODEL,
    "llama": _LANGUAGE_MODEL, "mistral3": _LANGUAGE_MODEL,
    "qwen3vl": {theirs: name.replace("model.", "model.language_model.") for theirs, name in _LANGUAGE_MODEL.items()},
}  # fmt: skip
"""For each value of `general.architecture`: a table of module names in the file and their original names; `#` is a
block number.
"""

_NUMBER = re.compile(r"(?<=blk\.)\d+(?=\.)")


def author_names(architecture: str, names: Iterable[str]) -> dict[str, str]:
    """Map each tensor name of a file of this architecture to the original name; unknown names stay unchanged."""
    table = ARCHITECTURES.get(architecture, {})
    return {name: _author_name(name, table) for name in names}


def _author_name(name: str, table: dict[str, str]) -> str:
    module, dot, leaf = name.rpartition(".")
    number = _NUMBER.search(module)
    pattern = f"{module[: number.start()]}#{module[number.end() :]}" if number else module
    theirs = table.get(pattern)
    return name if theirs is None else f"{theirs.replace('#', number[0] if number else '')}{dot}{leaf}"
