"""Determines which tensors of a GGUF file have their rows in llama.cpp's order instead of the authors'.

In models of Llama and Mistral, the rotary position embedding turns pairs of rows of each attention head's queries and
keys. The authors' files that transformers reads have the first row of every pair in the first half of the head's rows,
and the second row in the other half. llama.cpp stores the two rows of a pair next to each other. Only whole rows change
places, so that the blocks of quantised weights, which lie within a row, stay as they are.

Source: llama.cpp's converter. The tests compare with the reader of GGUF files in transformers.
"""

from collections.abc import Mapping
from typing import Final, NoReturn

from civman.domain.files.gguf_types import BLOCKS
from civman.domain.files.header_text import refuse, short

PAIRED: Final = frozenset({"llama", "mistral3"})
"""The values of `general.architecture` whose queries and keys llama.cpp reorders."""

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def heads_with_paired_rows(architecture: str, metadata: Mapping[str, str], tensors: Tensors) -> dict[str, int]:
    """Map each tensor whose rows llama.cpp has reordered to its number of attention heads; names as in the file.

    Raises: InvalidModelFile: the metadata does not state the number of heads, or it does not fit the tensors.
    """
    if architecture not in PAIRED:
        return {}
    found: dict[str, int] = {}
    for name, (kind, shape) in tensors.items():
        if ".attn_q." in name or ".attn_k." in name:
            heads = _stated_heads(architecture, metadata, is_key=".attn_k." in name)
            _require_whole_heads(name, kind, shape, heads, metadata.get(f"{architecture}.rope.dimension_count"))
            found[name] = heads
    return found


def _stated_heads(architecture: str, metadata: Mapping[str, str], *, is_key: bool) -> int:
    key = f"{architecture}.attention.head_count"
    # without a number for the keys, they have as many heads as the queries
    stated = (metadata.get(f"{key}_kv") if is_key else None) or metadata.get(key, "")
    if not stated.isdecimal() or int(stated) == 0:
        _refuse(f"the GGUF file does not state its number of attention heads (`{key}`)")
    return int(stated)


def _require_whole_heads(name: str, kind: str, shape: tuple[int, ...], heads: int, turned: str | None) -> None:
    """Check that the rows are whole heads of pairs, all of which are turned, and that rows are whole blocks."""
    rows = shape[0] if shape else 0
    if rows == 0 or rows % (2 * heads):
        _refuse(f"`{short(name)}` has {rows} rows, which cannot be divided among {heads} attention heads")
    if turned is not None and turned != str(rows // heads):
        _refuse(f"`{short(name)}` has {rows // heads} rows in each attention head, but the file states {short(turned)}")
    block = BLOCKS.get(kind, (1, 0))[0]
    if block > 1 and (len(shape) < 2 or shape[-1] % block):
        _refuse(f"the rows of `{short(name)}` are no whole blocks of {kind}")


def _refuse(message: str) -> NoReturn:
    refuse(message, cause="bad-shape")
