"""Split pasted lists of refs: one or several refs per line, with commas, bullets, notes or columns."""

import re

from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import InvalidRef

_SEPARATORS = re.compile(r"[,;|\t]+")


def decoded(data: bytes) -> str:
    """Decode the text of a list file, which may be UTF-8, with or without a byte order mark, or UTF-16.

    Raises: UnicodeDecodeError: the text is in another encoding.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if data and len(data) % 2 == 0 and data[1::2].count(0) > len(data) // 4:
        return data.decode("utf-16-le")  # some Windows programs write UTF-16 without a byte order mark
    return data.decode("utf-8-sig")


def listed_refs(text: str) -> list[str]:
    """List the refs in the lines of `text`, ignoring empty lines and text after `#`."""
    lines = (line.split(" #", 1)[0].strip() for line in text.lstrip("\ufeff").splitlines())
    return [ref for line in lines if line and not line.startswith("#") for ref in split_refs(line)]


def split_refs(text: str) -> list[str]:
    """Split one line or argument into refs; return the text itself unless it clearly contains several.

    A name may contain commas and spaces, so the text is split only if this results in ids, URLs or digests.
    """
    if _is_plain(text):
        return [text]
    parts = [part.strip() for part in _SEPARATORS.split(text) if part.strip()]
    plain = [part for part in parts if _is_plain(part)]
    if plain and (len(plain) == len(parts) or any("civitai" in part.lower() for part in plain)):
        # use only the columns with refs; the other columns of a table are names and notes
        return plain if len(plain) == len(parts) else [part for part in plain if not part.isdecimal()]
    words = text.split()
    if len(words) > 1 and all(map(_is_plain, words)):
        return words
    return [text]


def _is_plain(text: str) -> bool:
    """Whether `text` is a ref that cannot be a name or a path."""
    try:
        return not isinstance(parse_ref(text), NameRef | PathRef)
    except InvalidRef:
        return False
