"""CLIP's tokenizer from the merges that ship with civman: no download, no torch.

Source: OpenAI CLIP, `simple_tokenizer.py`: 256 byte symbols, the same ending a word, 48,894 merges, two marks.
"""

import gzip
import json
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = 49406, 49407
"""Ids of the marks around every chunk."""
ZERO = 0
"""The id OpenCLIP's encoders (SD 2.x, SDXL's second) are padded with; its token is `!`."""
COMMA = 267
CHUNK = 75
"""Tokens between the marks."""

_START_TEXT, _END_TEXT, _ZERO_TEXT = "<|startoftext|>", "<|endoftext|>", "!"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class ClipTokenizer:
    """Text → token ids, and the id a text encoder's chunks are filled up with."""

    words: Tokenizer
    padding: int = END

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without marks.

        >>> clip_tokenizer().ids("a photo of a cat")
        [320, 1125, 539, 320, 2368]
        """
        return list(self.words.encode(text, add_special_tokens=False).ids)

    def padded_with(self, padding: int) -> "ClipTokenizer":
        """The same words for an encoder with another padding."""
        return ClipTokenizer(self.words, padding)


def clip_tokenizer(padding: int = END) -> ClipTokenizer:
    """A new tokenizer (about 0.2 s: build one and share it, `padded_with` costs nothing).

    `padding` is END for CLIP-L (SD 1.x, SDXL's first encoder), ZERO for OpenCLIP.
    """
    vocabulary, merges = _vocabulary()
    words = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for left, right in (merge.split() for merge in merges)],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=_END_TEXT,
        )
    )
    words.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words.add_special_tokens([_START_TEXT, _END_TEXT])
    return ClipTokenizer(words, padding)


def transformers_tokenizer(folder: Path, padding: int = END) -> "CLIPTokenizer":
    """The object a diffusers pipeline wants to hold, loaded from files kept in `folder`.

    The files (1.5 MB) are written when they are missing or differ from what they should be, each whole or not at all.
    """
    from transformers import CLIPTokenizer  # here: 1.1 s, and token counting does without

    home = folder / f"clip-{padding}"
    vocabulary, merges = _vocabulary()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CHUNK + 2,
        "bos_token": _START_TEXT,
        "eos_token": _END_TEXT,
        "unk_token": _END_TEXT,
        "pad_token": _ZERO_TEXT if padding == ZERO else _END_TEXT,
    }
    home.mkdir(parents=True, exist_ok=True)
    _write(home / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(home / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    _write(home / "tokenizer_config.json", json.dumps(settings))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(home, local_files_only=True)
    return tokenizer


def _write(path: Path, text: str) -> None:
    wanted = text.encode()
    if path.is_file() and path.read_bytes() == wanted:
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(wanted)
    Path(file.name).replace(path)


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    packed = files("civman.render").joinpath("data", "clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().splitlines()
    bytes_ = _byte_symbols()
    tokens = [
        *bytes_,
        *(f"{symbol}</w>" for symbol in bytes_),
        *(merge.replace(" ", "") for merge in merges),
        _START_TEXT,
        _END_TEXT,
    ]
    return {token: number for number, token in enumerate(tokens)}, merges


def _byte_symbols() -> list[str]:
    """A printable letter for each byte: itself where it is one, else the next letter from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
