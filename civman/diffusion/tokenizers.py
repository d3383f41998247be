"""The tokenizers of T5 v1.1 and of Qwen 2, 2.5 and 3, built from the vocabularies shipped with civman.

Does not import torch.

CLIP's tokenizer is in `civman.prompts.tokenizer`. The origin and licence of the vocabularies are in
`tokenizer_data/LICENSE.txt`.

Source: the `tokenizer.json` of both models. The ids are tested against Google's sentencepiece, OpenAI's tiktoken and
@lenml/tokenizers (`tests/fixtures/make_token_ids.py`).
"""

import base64
import json
import lzma
import struct
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from civman.prompts.tokenizer import byte_symbols

Name = Literal["t5", "qwen"]

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_QWEN_ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Qwen's added tokens that are not special tokens, so they are treated as ordinary text.

The ids of all added tokens follow the ids of the merges.
"""
QWEN_PADDING: Final = 151643
"""The id of `<|endoftext|>`, with which Qwen pads short texts."""
_T5_WORDS = 32000
"""The number of T5's ordinary tokens; their ids precede those of the 100 tokens `<extra_id_99>` to `<extra_id_0>`."""
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Fitted:
    """A text's token ids, cut off at a limit."""

    ids: list[int]
    dropped: int
    """The number of tokens that were cut off."""
    note: str
    """A sentence for the user about what was cut off; empty if nothing was."""


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Converts text to token ids."""

    title: str
    """The model's name, for messages."""
    words: Tokenizer
    padding: int
    """The id with which short texts are padded."""
    end: int | None
    """The id that ends every text; None if the model uses none."""

    def encode(self, text: str) -> list[int]:
        """Convert a text of any length to token ids. T5's end with `</s>`; Qwen's have no token before or after them.

        >>> load_tokenizer("t5").encode("a photo of a cat")
        [3, 9, 1202, 13, 3, 9, 1712, 1]
        >>> load_tokenizer("qwen").encode("a photo of a cat")
        [64, 6548, 315, 264, 8251]
        """
        return list(self.words.encode(text).ids)

    def fit(self, text: str, limit: int) -> Fitted:
        """Convert a text to at most `limit` token ids, including the end token, and note which words were cut off."""
        encoding = self.words.encode(text)
        ids = list(encoding.ids)
        if len(ids) <= limit:
            return Fitted(ids, 0, "")
        tail = [] if self.end is None else [self.end]
        kept = max(limit - len(tail), 0)
        lost = text[encoding.offsets[kept][0] :].strip()
        shown = lost if len(lost) <= _SHOWN else f"{lost[:_SHOWN].rstrip()} …"
        note = f"the text has {len(ids)} tokens, but {self.title} reads {limit} at most: `{shown}` is left out"
        return Fitted(ids[:kept] + tail, len(ids) - limit, note)


@cache
def load_tokenizer(name: Name) -> TextTokenizer:
    """Build a tokenizer from its shipped vocabulary, without network access; the first call takes up to 0.6 s.

    Args:
        name: "t5" for T5 v1.1, whose encoder is T5-XXL; "qwen" for Qwen 2, 2.5 and 3.
    """
    return _t5() if name == "t5" else _qwen()


def _t5() -> TextTokenizer:
    packed = json.loads(_unpacked("t5.json.xz"))
    pieces: list[str] = packed["pieces"]
    scores = struct.unpack(f"<{len(pieces)}f", base64.b64decode(packed["scores"]))
    words = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    words.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(base64.b64decode(packed["charsmap"])),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.add_special_tokens([*pieces[:3], *pieces[_T5_WORDS:]])
    return TextTokenizer("T5", words, padding=0, end=1)


def _qwen() -> TextTokenizer:
    merges = [tuple(merge.split(" ")) for merge in _unpacked("qwen_merges.txt.xz").decode().split("\n")]
    tokens = [*byte_symbols(), *("".join(pair) for pair in merges)]
    words = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(left, right) for left, right in merges],
        )
    )
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.add_special_tokens(list(_QWEN_SPECIAL))
    words.add_tokens(list(_QWEN_ADDED))
    return TextTokenizer("Qwen", words, padding=QWEN_PADDING, end=None)


def _unpacked(name: str) -> bytes:
    return lzma.decompress(files(__package__).joinpath("tokenizer_data", name).read_bytes())
