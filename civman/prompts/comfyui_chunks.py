"""Split a prompt in ComfyUI's syntax into chunks of 75 tokens. No torch.

Each fragment is tokenized as a whole. If a fragment does not fit into the current chunk, it starts a new chunk if it
has fewer than eight tokens, and is divided otherwise.

Source: ComfyUI, `comfy/sd1_clip.py` since January 2025. Earlier versions applied this rule to single words.
"""

from collections.abc import Mapping
from typing import Final

from civman.prompts.comfyui_syntax import named, pieces
from civman.prompts.emphasis import ParsedPrompt
from civman.prompts.token_chunks import Chunk, Insert
from civman.prompts.tokenizer import CHUNK, ClipTokenizer

_KEPT_WHOLE: Final = 8
"""A group with fewer tokens than this is not divided between two chunks."""


def cut(parsed: ParsedPrompt, tokenizer: ClipTokenizer, lengths: Mapping[str, int]) -> tuple[Chunk, ...]:
    """Split a prompt into one or more chunks. `lengths` maps each available embedding to its number of vectors."""
    packer = _Packer()
    for fragment in parsed.sections[0]:
        for piece in pieces(fragment.text):
            name, rest = named(piece)
            bare = name.strip(",")
            if name not in lengths and bare != name:
                name, rest = bare, f"{name[len(bare) :]} {rest}"
            if name in lengths:
                packer.insert(name, lengths[name], fragment.weight)
            packer.add(tokenizer.ids(rest), fragment.weight)
    return packer.finished()


class _Packer:
    """Fills chunks with groups of tokens, from left to right."""

    def __init__(self) -> None:
        self._done: list[Chunk] = []
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._inserts: list[Insert] = []

    def add(self, tokens: list[int], weight: float) -> None:
        """Add a group of tokens. If it does not fit, a short group starts a new chunk, and a long group is divided."""
        is_long = len(tokens) >= _KEPT_WHOLE
        while tokens:
            room = CHUNK - len(self._ids)
            if len(tokens) <= room:
                self._ids += tokens
                self._weights += [weight] * len(tokens)
                return
            if is_long:
                self._ids += tokens[:room]
                self._weights += [weight] * room
                tokens = tokens[room:]
            self._close()

    def insert(self, name: str, length: int, weight: float) -> None:
        """Add an embedding's vectors. If they do not fit, fewer than eight start a new chunk, and more are divided."""
        begun, is_long = 0, length >= _KEPT_WHOLE
        while begun < length:
            taken = min(length - begun, CHUNK - len(self._ids))
            if taken == length - begun or (is_long and taken):
                self._inserts.append(Insert(len(self._ids), name, taken, begun))
                self._ids += [0] * taken
                self._weights += [weight] * taken
                begun += taken
            if begun < length:
                self._close()

    def finished(self) -> tuple[Chunk, ...]:
        """Return all chunks."""
        self._close()
        return tuple(self._done)

    def _close(self) -> None:
        self._done.append(Chunk(tuple(self._ids), tuple(self._weights), tuple(self._inserts)))
        self._ids, self._weights, self._inserts = [], [], []
