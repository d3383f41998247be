"""Tokenizes with a `tokenizer.json`, the file of Hugging Face's library `tokenizers`. Does not import torch."""

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from civman.errors import InvalidModelFile


@dataclass(frozen=True, slots=True)
class JsonTokenizer:
    """Converts text to token ids as a `tokenizer.json` describes, without its truncation and padding."""

    title: str
    """The text encoder's name, for messages."""
    words: Tokenizer = field(repr=False)
    start: int | None
    """The id that begins every text; None if texts have no such token."""
    end: int | None
    """The id that ends every text; None if texts have no such token."""

    def encode(self, text: str) -> list[int]:
        """Convert a text of any length to token ids, without the start and end tokens."""
        return list(self.words.encode(text, add_special_tokens=False).ids)


def read_json(data: bytes, title: str, file: str) -> JsonTokenizer:
    """Read a `tokenizer.json`.

    Args:
        data: the file's content.
        title: the text encoder's name, for messages.
        file: the name of the file that contains the tokenizer, for messages.

    Raises: InvalidModelFile: the library `tokenizers` cannot read the file, or the tokenizer gives no ids for a letter.
    """
    try:
        words = Tokenizer.from_str(data.decode())
        words.no_truncation()
        words.no_padding()
        letter = words.encode("a")
        ids, is_special = letter.ids, letter.special_tokens_mask
        return JsonTokenizer(title, words, ids[0] if is_special[0] else None, ids[-1] if is_special[-1] else None)
    except Exception as odd:  # the library raises only this class for all errors
        raise InvalidModelFile(f"the tokenizer of the {title} in `{file}` cannot be read") from odd
