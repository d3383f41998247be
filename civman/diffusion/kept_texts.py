"""A cache of encoded prompts and encoded reference pictures, so that none of them is encoded twice."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Encoded = tuple[Tensor, Tensor | None, tuple[str, ...]]
"""A text's context (1, tokens, width), its pooled vector if the model takes one, and notes for the user."""
_MOST_BYTES = 64 * 2**20


class KeptTexts:
    """A cache of one model's encoded texts: the most recently used ones, up to `most_bytes` in total."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, encode: Callable[[], Encoded]) -> Encoded:
        """Return the encoded text for a key; if the cache does not contain it, encode it and add it.

        The key must contain everything on which the encoding depends, except the number of CPU threads, which may
        change the last bit: this method adds it.
        """
        key = (key, torch.get_num_threads())
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return found
        made = self._kept[key] = encode()
        self._bytes += _bytes_of(made)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes_of(dropped)
        return made


def _bytes_of(encoded: Encoded) -> int:
    return sum(each.numel() * each.element_size() for each in encoded[:2] if each is not None)
