"""Tokenizes with Tekken, the byte-level vocabulary of Mistral's models, which is stored in text encoder files.

A text is divided into words by the pattern in the file. Then adjacent bytes or tokens in a word are joined to longer
tokens: the pair whose token has the lowest rank first; of equal ranks, the leftmost. The name of a control token in a
text, such as `[INST]`, is encoded as this token, as in transformers and ComfyUI.

Does not import torch.

Source: the file `tekken.py` of Mistral's package mistral-common. The ids are tested against that package
(`tests/fixtures/make_tekken.py`) and against transformers.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, pre_tokenizers

from civman.diffusion.piece_tokenizer import PieceTokenizer
from civman.errors import InvalidModelFile
from civman.prompts.tokenizer import byte_symbols

_START, _END = "<s>", "</s>"


@dataclass(frozen=True, slots=True)
class TekkenTokenizer:
    """Converts text to token ids with a Tekken vocabulary."""

    title: str
    """The text encoder's name, for messages."""
    start: int
    """The id that begins every text."""
    end: int
    """The id of the end token."""
    words: pre_tokenizers.PreTokenizer = field(repr=False)
    """Divides a text into words and writes each word with one character per byte."""
    pieces: PieceTokenizer = field(repr=False)
    """Joins the bytes of a word into tokens."""
    control: Mapping[str, int] = field(repr=False)
    """Maps the name of each control token to its id."""
    names: re.Pattern[str] = field(repr=False)
    """Matches the names of control tokens in a text."""

    def encode(self, text: str) -> list[int]:
        """Convert a text of any length to token ids, without the start token."""
        ids: list[int] = []
        at = 0
        for match in self.names.finditer(text):
            ids += [*self._plain(text[at : match.start()]), self.control[match[0]]]
            at = match.end()
        return [*ids, *self._plain(text[at:])]

    def _plain(self, text: str) -> list[int]:
        words = self.words.pre_tokenize_str(text.encode("utf-8", "replace").decode())
        return [number for word, _ in words for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        whole = self.pieces.ids.get(word)
        return self.pieces.encode(word) if whole is None else [whole]


def read_tekken(data: bytes, title: str, file: str) -> TekkenTokenizer:
    """Read a Tekken vocabulary, which is a JSON document.

    Args:
        data: the document.
        title: the text encoder's name, for messages.
        file: the name of the file that contains the vocabulary, for messages.

    Raises: InvalidModelFile: the bytes are not a Tekken vocabulary.
    """
    try:
        return _read(json.loads(data), title)
    except (KeyError, TypeError, ValueError) as odd:
        raise InvalidModelFile(f"the tokenizer of the {title} in `{file}` cannot be read") from odd


def _read(document: Any, title: str) -> TekkenTokenizer:
    config = document["config"]
    reserved = int(config["default_num_special_tokens"])
    ordinary = int(config["default_vocab_size"]) - reserved
    control = {f"<SPECIAL_{number}>": number for number in range(len(document["special_tokens"]), reserved)}
    control |= {str(token["token_str"]): int(token["rank"]) for token in document["special_tokens"]}
    symbols = _symbol_of_each_byte()
    # the file has more tokens than the model, so leave out the last ones
    ranks = {
        "".join(symbols[byte] for byte in base64.b64decode(token["token_bytes"])): int(token["rank"])
        for token in document["vocab"]
        if int(token["rank"]) < ordinary
    }
    if len(ranks) != ordinary or not ranks.keys() >= set(symbols.values()):
        raise ValueError("tokens are missing")
    pieces = PieceTokenizer(
        title, control[_START], {token: reserved + rank for token, rank in ranks.items()},
        {token: -float(rank) for token, rank in ranks.items()}, frozenset(), (), None,
    )  # fmt: skip
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_pattern(str(config["pattern"])), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    longest_first = sorted(control, key=len, reverse=True)
    return TekkenTokenizer(
        title, control[_START], control[_END], words, pieces, control,
        re.compile("|".join(map(re.escape, longest_first))),
    )  # fmt: skip


def _symbol_of_each_byte() -> dict[int, str]:
    """Map each byte to the character that represents it in a word, as the package `tokenizers` does."""
    symbols = byte_symbols()
    own = {ord(symbol): symbol for symbol in symbols if ord(symbol) < 256}
    rest = (byte for byte in range(256) if byte not in own)
    return own | dict(zip(rest, symbols[len(own) :], strict=True))


def _pattern(text: str) -> Regex:
    try:
        return Regex(text)
    except Exception as odd:  # the package `tokenizers` raises only this class for all errors
        raise ValueError("no regular expression") from odd
