"""Reads the tokenizers that files of text encoders contain as tensors of bytes. Does not import torch."""

from collections.abc import Callable, Mapping

from civman.diffusion.piece_tokenizer import PieceTokenizer, read_pieces
from civman.diffusion.tekken_tokenizer import TekkenTokenizer, read_tekken

FileTokenizer = PieceTokenizer | TekkenTokenizer
"""Any tokenizer from a file."""

_READERS: Mapping[str, Callable[[bytes, str, str], FileTokenizer]] = {
    "spiece_model": read_pieces,
    "tekken_model": read_tekken,
}
"""Maps the last part of the tensor's name, as ComfyUI writes it, to the function that reads the tokenizer."""


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
