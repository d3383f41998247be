"""Reads the arguments of a pickle's opcodes from its bytes, within limits."""

import struct
from typing import Final

from civman.domain.files.header_text import refuse

MAX_PICKLE_BYTES: Final = 32 << 20
"""civman's limit on the size of a pickle without its tensors. A large checkpoint takes about 2 MB."""
MAX_NUMBER_BYTES: Final = 256
_MAX_LINE_BYTES: Final = 4_096


class NeedsMore(Exception):
    """The pickle is longer than the bytes given. The caller must read more of the file and try again."""


class Cursor:
    """A position in a pickle's bytes. `member` is the pickle's name in messages."""

    def __init__(self, data: bytes, start: int, member: str) -> None:
        self.data = data
        self.at = start
        self.member = member

    def take(self, count: int) -> bytes:
        """Read and return the next `count` bytes. Raises: NeedsMore."""
        end = self.at + count
        if end > len(self.data):
            if count > MAX_PICKLE_BYTES:
                refuse(f"{self.member} contains a string that is too long: {count:,} bytes", cause="bad-pickle")
            raise NeedsMore
        found = self.data[self.at : end]
        self.at = end
        return found

    def size(self, form: str) -> int:
        """Read the next number, whose format is `form` as in `struct`. Raises: NeedsMore."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self, limit: int = _MAX_LINE_BYTES) -> str:
        """Read the text up to the next line break. Raises: NeedsMore. InvalidModelFile: the line is too long."""
        end = self.data.find(b"\n", self.at, self.at + limit + 1)
        if end < 0:
            if len(self.data) - self.at > limit:
                refuse(f"{self.member} has a line that is too long", cause="bad-pickle")
            raise NeedsMore
        found = self.data[self.at : end]
        self.at = end + 1
        return self.text(found)

    def text(self, raw: bytes) -> str:
        """Decode `raw` as UTF-8. Raises: InvalidModelFile: it is not valid UTF-8."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            refuse(f"{self.member} contains text that is not UTF-8", cause="bad-text")

    def integer(self, text: str) -> int:
        """Parse an integer in decimal digits. Raises: InvalidModelFile."""
        digits = text.removesuffix("L").removeprefix("-")
        if not digits.isascii() or not digits.isdecimal() or len(digits) > MAX_NUMBER_BYTES:
            refuse(f"{self.member} contains an invalid number", cause="bad-pickle")
        return int(text.removesuffix("L"))
