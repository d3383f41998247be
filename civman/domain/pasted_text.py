"""Clean up pasted URLs, ids and digests: remove quotes, brackets, Markdown, punctuation, invisible characters."""

import re
import unicodedata

_MARKDOWN = re.compile(r"\[[^\]]*\]\(\s*(\S+?)\s*\)")
_QUOTES = "<>[]\"'`\u201c\u201d\u2018\u2019«»"
_ENDINGS = ".,;:!"
_SPACED = re.compile(r"\s*([:@+])\s*")
_SPACED_AIR = re.compile(r"(?:civitai\s*:\s*)?[0-9]+\s*@\s*[0-9]+(?:\s*\+\s*[0-9]+)?", re.IGNORECASE)
_HEX = re.compile(r"(?:0x|sha-?256-)([0-9a-f]+)", re.IGNORECASE)


def unwrapped(text: str) -> str:
    """`text` without characters that copying may have added around it.

    Use the result only if it is a URL, an id or a digest; for other text the removed characters may be part of it.
    """
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf").strip()
    visible = visible.rstrip(_ENDINGS)
    if link := _MARKDOWN.fullmatch(visible):
        visible = link[1]
    bare = visible.strip(_QUOTES).rstrip(_ENDINGS).strip()
    if bare.endswith(")") and "(" not in bare:
        bare = bare[:-1].rstrip(_ENDINGS)
    if found := _HEX.fullmatch(bare):
        return found[1]
    if _SPACED_AIR.fullmatch(bare):
        return _SPACED.sub(r"\1", bare)
    return bare.replace("&amp;", "&")
