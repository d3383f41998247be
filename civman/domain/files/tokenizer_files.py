"""Recognise tokenizer files: `tokenizer.model` (SentencePiece), `tokenizer.json` and Mistral's `tekken.json`.

A tokenizer file is treated as a model file with one tensor, which contains all of its bytes. Some text encoders' files
contain the same bytes in a tensor of the same name, so the same code can read both.

Source: SentencePiece's protobuf message `ModelProto`; `tokenizer.json` as Hugging Face's library `tokenizers` writes
it.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from civman.errors import InvalidModelFile

PIECES: Final = "spiece_model"
JSON: Final = "tokenizer_json"
TEKKEN: Final = "tekken_model"
TENSORS: Final = (PIECES, JSON, TEKKEN)
"""The names of tensors that contain a tokenizer. ComfyUI defined them, except the one for `tokenizer.json`."""
TITLES: Final = {
    PIECES: "a SentencePiece model", JSON: "a tokenizer in the format of Hugging Face's `tokenizers`",
    TEKKEN: "a Tekken tokenizer",
}  # fmt: skip
NAMES: Final = {PIECES: "sentencepiece", JSON: "tokenizers", TEKKEN: "tekken"}
TOKENS: Final = "tokens"
"""The name under which the metadata of a tokenizer file contains the number of its token ids."""
BYTE_PAIRS: Final = 2
"""The value of the field `model_type` in SentencePiece's protobuf message `TrainerSpec` for byte-pair encoding."""
_PIECE, _TRAINER, _KIND = 1, 2, 3
_JSON_MARKS = {JSON: (b'"added_tokens"',), TEKKEN: (b'"config"', b'"pattern"')}


def tokenizer_tensor(first: bytes) -> str | None:
    """Return the name of the tensor that a tokenizer file is treated as; None for other files.

    `first`: the file's first 512 bytes.
    """
    if first[:1] == first[2:3] == b"\n" and len(first) > 4 and first[4 + first[3] :][:1] in (b"\x15", b"\x18"):
        return PIECES  # the file starts with an entry of a vocabulary: a text, followed by a score or a type
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text.startswith(b"{"):
        return None
    return next((name for name, marks in _JSON_MARKS.items() if all(mark in text for mark in marks)), None)


def token_count(tensor: str, data: bytes) -> int:
    """Return the number of token ids of a tokenizer, special tokens included.

    Args:
        tensor: the kind of tokenizer, one of `TENSORS`.
        data: the whole file.

    Raises: InvalidModelFile: the file is damaged, or is a SentencePiece model without byte-pair encoding.
    """
    try:
        return _pieces(data) if tensor == PIECES else _of_json(tensor, json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelFile(f"{TITLES[tensor]} cannot be read", hint="download the file again") from error


def _pieces(data: bytes) -> int:
    count, options = 0, b""
    for key, value in fields(data):
        count += key == _PIECE
        if key == _TRAINER and isinstance(value, bytes):
            options = value
    if not options:
        raise ValueError("no vocabulary")
    if dict(fields(options)).get(_KIND) != BYTE_PAIRS:
        raise InvalidModelFile(
            "the SentencePiece model does not use byte-pair encoding, so civman cannot tokenize with it"
        )
    return count


def _of_json(tensor: str, content: Any) -> int:
    if tensor == TEKKEN:
        return int(content["config"]["default_vocab_size"])
    words = content["model"]["vocab"]
    numbers = words.values() if isinstance(words, dict) else range(len(words))
    return max(map(int, [*numbers, *(token["id"] for token in content["added_tokens"])])) + 1


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """List the fields of a protocol buffer message: integers as numbers, everything else as bytes.

    Raises: ValueError, IndexError: the message is damaged.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("a field of the protocol buffer message has an unknown wire type")
        if at + size > len(data):
            raise IndexError("the protocol buffer message ends within a field")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
