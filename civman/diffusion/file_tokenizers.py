"""Reads the tokenizers of text encoders for which civman ships none. Does not import torch.

A text encoder's file contains its tokenizer as a tensor of bytes; the same bytes may also be a separate file.
"""

from collections.abc import Callable, Mapping

from civman.diffusion.json_tokenizer import JsonTokenizer, read_json
from civman.diffusion.piece_tokenizer import PieceTokenizer, read_pieces
from civman.diffusion.tekken_tokenizer import TekkenTokenizer, read_tekken
from civman.domain.files.tokenizer_files import JSON, PIECES, TEKKEN

FileTokenizer = PieceTokenizer | TekkenTokenizer | JsonTokenizer
"""The types of tokenizers that civman reads from files."""

_READERS: Mapping[str, Callable[[bytes, str, str], FileTokenizer]] = {
    PIECES: read_pieces,
    TEKKEN: read_tekken,
    JSON: read_json,
}
"""Maps the last part of a tokenizer tensor's name to the function that reads the tokenizer."""


def read_tokenizer(tensor: str, data: bytes, title: str, file: str) -> FileTokenizer:
    """Read the tokenizer of a text encoder.

    Args:
        tensor: the name of the tensor that contains the tokenizer, which shows its kind.
        data: the bytes of this tensor.
        title: the text encoder's name, for messages.
        file: the name of the file that contains the tensor, for messages.

    Raises:
        InvalidModelFile: the bytes are not a tokenizer of this kind.
        CannotRender: the tokenizer uses rules that civman does not support.
    """
    return _READERS[tensor.rpartition(".")[2]](data, title, file)
