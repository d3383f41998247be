"""Tokenizes with a SentencePiece model of byte-pair encoding, such as those in files of the text encoder Gemma.

Only models that use byte-pair encoding and do not rewrite characters are supported. The result equals SentencePiece's:
of all adjacent symbols that together form a piece, the pair with the highest score is joined first; of equal scores,
the leftmost. Does not import torch.

Source: the protobuf message `ModelProto` and the file `bpe_model.cc` of Google's SentencePiece.
"""

import heapq
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from civman.domain.files.tokenizer_files import BYTE_PAIRS, fields
from civman.errors import CannotRender, Cause, InvalidModelFile

_SPACE = "▁"
_NORMAL, _USER_DEFINED, _UNUSED, _BYTE = 1, 4, 5, 6
"""The types of pieces that represent text; pieces of other types (unknown, control) never do."""
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
"""The numbers of fields in SentencePiece's protobuf message `ModelProto`."""


@dataclass(frozen=True, slots=True)
class PieceTokenizer:
    """Converts text to token ids with a SentencePiece vocabulary."""

    title: str
    """The text encoder's name, for messages."""
    start: int
    """The id that begins every text."""
    ids: dict[str, int] = field(repr=False)
    """Maps each piece that represents text to its id."""
    scores: dict[str, float] = field(repr=False)
    """Maps each piece to its score; pairs with higher scores are joined first."""
    unused: frozenset[str] = field(repr=False)
    """Pieces that are only intermediate results: if they are not joined to longer pieces, they are split again."""
    bytes: tuple[int, ...] = field(repr=False)
    """The ids of all 256 bytes, which encode characters without a piece."""
    whole: re.Pattern[str] | None = field(repr=False)
    """Matches pieces that are neither split nor joined with their neighbours."""
    adds_space: bool = False
    trims_spaces: bool = False
    end: int | None = None
    """The id of the end token; None if the vocabulary has none."""

    def encode(self, text: str) -> list[int]:
        """Convert a text of any length to token ids, without the start token."""
        if self.trims_spaces:
            text = re.sub(" +", " ", text).strip(" ")
        if not text:
            return []
        spaced = (" " if self.adds_space else "") + text
        return [number for piece in self._pieces(spaced.replace(" ", _SPACE)) for number in self._ids_of(piece)]

    def _ids_of(self, piece: str) -> list[int]:
        if (number := self.ids.get(piece)) is not None:
            return [number]
        return [self.bytes[byte] for byte in piece.encode("utf-8", "replace")]

    def _pieces(self, text: str) -> Iterator[str]:
        """Split a text into pieces."""
        symbols, is_whole = self._symbols(text)
        following, previous = list(range(1, len(symbols) + 1)), list(range(-1, len(symbols) - 1))
        pairs: list[tuple[float, int, int, str]] = []
        halves: dict[str, tuple[str, str]] = {}

        def offer(left: int, right: int) -> None:
            if left < 0 or right >= len(symbols) or is_whole[left] or is_whole[right]:
                return
            joined = symbols[left] + symbols[right]
            if (score := self.scores.get(joined)) is not None:
                heapq.heappush(pairs, (-score, left, right, joined))
                if joined in self.unused:
                    halves[joined] = (symbols[left], symbols[right])

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while pairs:
            _, left, right, joined = heapq.heappop(pairs)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue  # skip this pair, because one of its symbols has since been joined with another one
            symbols[left], symbols[right] = joined, ""
            following[left] = following[right]
            if following[left] < len(symbols):
                previous[following[left]] = left
            offer(previous[left], left)
            offer(left, following[left])
        for symbol in symbols:
            if symbol:
                yield from self._split(symbol, halves)

    def _symbols(self, text: str) -> tuple[list[str], list[bool]]:
        """Split a text into symbols: pieces that are never split, and characters.

        Returns the symbols and, for each, whether it is a piece that is never split.
        """
        symbols, is_whole, at = [], [], 0
        for match in self.whole.finditer(text) if self.whole is not None else ():
            symbols += [*text[at : match.start()], match[0]]
            is_whole += [*[False] * (match.start() - at), True]
            at = match.end()
        return [*symbols, *text[at:]], [*is_whole, *[False] * (len(text) - at)]

    def _split(self, piece: str, halves: dict[str, tuple[str, str]]) -> Iterator[str]:
        if piece in self.unused and piece in halves:
            for half in halves[piece]:
                yield from self._split(half, halves)
        else:
            yield piece


def read_pieces(data: bytes, title: str, file: str) -> PieceTokenizer:
    """Read a SentencePiece model.

    Args:
        data: the serialised model.
        title: the text encoder's name, for messages.
        file: the name of the file that contains the model, for messages.

    Raises:
        InvalidModelFile: the bytes are not a SentencePiece model.
        CannotRender: the model uses rules that civman does not support.
    """
    try:
        found = _read(data, title)
    except (IndexError, KeyError, ValueError, struct.error) as odd:
        raise InvalidModelFile(f"the tokenizer of the {title} in `{file}` cannot be read") from odd
    if isinstance(found, str):
        raise CannotRender(
            f"civman does not support the tokenizer of the {title} in `{file}`, because {found}",
            hint="use the published file of this text encoder", code=Cause.MISMATCHED_PARTS, file=file,
        )  # fmt: skip
    return found


def _read(data: bytes, title: str) -> PieceTokenizer | str:
    """Read a SentencePiece model; if civman does not support it, return the reason."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    scores: dict[str, float] = {}
    ids: dict[str, int] = {}
    kinds: dict[int, set[str]] = {_USER_DEFINED: set(), _UNUSED: set(), _BYTE: set()}
    number = 0
    for key, value in fields(data):
        if key == _PIECE:
            message = dict(fields(_bytes(value)))
            piece, kind = _bytes(message[1]).decode(), _whole(message.get(3, _NORMAL))
            kinds.setdefault(kind, set()).add(piece)
            if kind in (_NORMAL, _USER_DEFINED, _UNUSED):
                scores[piece] = struct.unpack("<f", _bytes(message.get(2, bytes(4))))[0]
            if kind in (_NORMAL, _USER_DEFINED, _UNUSED, _BYTE):
                ids[piece] = number
            number += 1
        elif key == _TRAINER:
            trainer = dict(fields(_bytes(value)))
        elif key == _NORMALIZER:
            normalizer = dict(fields(_bytes(value)))
    if not trainer or not scores:
        raise ValueError("no vocabulary")
    if trainer.get(3, 1) != BYTE_PAIRS:
        return "it does not use byte-pair encoding"
    if normalizer.get(2, b"") or trainer.get(24, 0) or not normalizer.get(5, 1):
        return "it rewrites characters before it splits the text"
    if len(kinds[_BYTE]) != 256:
        return "its vocabulary has no pieces for single bytes"
    whole = sorted(kinds[_USER_DEFINED], key=len, reverse=True)
    return PieceTokenizer(
        title, _whole(trainer.get(41, 1)),
        {piece: number for piece, number in ids.items() if piece not in kinds[_BYTE]}, scores,
        frozenset(kinds[_UNUSED]), tuple(ids[f"<0x{byte:02X}>"] for byte in range(256)),
        re.compile("|".join(map(re.escape, whole))) if whole else None,
        bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), _whole(trainer.get(42, 2)),
    )  # fmt: skip


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a protobuf field contains a number instead of a nested message")  # noqa: TRY004  # the file is wrong, not the caller
    return value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a protobuf field contains a nested message instead of a number")  # noqa: TRY004  # the file is wrong, not the caller
    return value
