"""CLIP's tokenizer, built from the merges shipped with civman. No download, no torch.

Source: OpenAI CLIP, `simple_tokenizer.py`: 256 byte symbols, the same 256 with an end-of-word suffix, 48,894 merges and
    two special tokens.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

START, END = 49406, 49407
"""The ids of the special tokens at the start and end of every chunk."""
ZERO = 0
"""The padding id of OpenCLIP's text encoders (SD 2.x, SDXL's second encoder), which is the id of the token `!`."""
COMMA = 267
CHUNK = 75
"""The number of tokens between the start token and the end token."""

START_TEXT, END_TEXT, ZERO_TEXT = "<|startoftext|>", "<|endoftext|>", "!"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class ClipTokenizer:
    """Converts text to token ids. `padding` is the id that fills up a text encoder's chunks."""

    words: Tokenizer
    padding: int = END

    def ids(self, text: str) -> list[int]:
        """Convert a text to token ids, without special tokens.

        >>> clip_tokenizer().ids("a photo of a cat")
        [320, 1125, 539, 320, 2368]
        """
        return list(self.words.encode(text, add_special_tokens=False).ids)

    def padded_with(self, padding: int) -> "ClipTokenizer":
        """Return a tokenizer with the same vocabulary and the padding id `padding`."""
        return ClipTokenizer(self.words, padding)


def clip_tokenizer(padding: int = END) -> ClipTokenizer:
    """Return CLIP's tokenizer; `padding` is END for CLIP-L (SD 1.x, SDXL's first encoder), ZERO for OpenCLIP."""
    return ClipTokenizer(_words(), padding)


@cache
def _words() -> Tokenizer:
    """Build CLIP's tokenizer. This takes about 0.1 s, so the result is cached."""
    token_ids, merges = vocabulary()
    words = Tokenizer(
        models.BPE(
            vocab=token_ids,
            merges=[(left, right) for left, right in (merge.split() for merge in merges)],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END_TEXT,
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
    words.add_special_tokens([START_TEXT, END_TEXT])
    return words


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Load CLIP's 49,408 tokens with their ids, and the BPE merges in order of priority."""
    packed = files("civman.prompts").joinpath("data", "clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().splitlines()
    bytes_ = byte_symbols()
    tokens = [
        *bytes_,
        *(f"{symbol}</w>" for symbol in bytes_),
        *(merge.replace(" ", "") for merge in merges),
        START_TEXT,
        END_TEXT,
    ]
    return {token: number for number, token in enumerate(tokens)}, merges


def byte_symbols() -> list[str]:
    """Map each byte to a printable character: itself if printable, else the next unused character from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
