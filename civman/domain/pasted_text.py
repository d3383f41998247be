"""Clean up pasted URLs, ids and digests: remove quotes, brackets, Markdown, punctuation, invisible characters."""

import re
import unicodedata

_MARKDOWN = re.compile(r"!?\[[^\]]*\]\(\s*<?([^\s<>]+?)>?(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)")
_ANCHOR = re.compile(r"<a\s[^>]*href=[\"']?([^\"'>\s]+)[^>]*>.*", re.IGNORECASE)
_MARKS = re.compile(r"(?:>\s*|[-*+•·–—▪◦‣]\s+|[0-9]{1,3}[.)]\s+|\[[ xX]\]\s+)+")
"""Matches the marker at the start of a quoted line, a list item or a task item."""
_QUOTES = "<>[]{}\"'`\u201c\u201d\u201e\u2018\u2019\u201a«»"
_EMPHASIS = re.compile(r"([*_~|]{1,3})(.+)\1")
_ENDINGS = ".,;:!?\u2026\u3002\uff0c"
_SPACED = re.compile(r"\s*([:@+])\s*")
_SPACED_AIR = re.compile(r"(?:civitai\s*:\s*)?[0-9]+\s*@\s*[0-9]+(?:\s*\+\s*[0-9]+)?", re.IGNORECASE)
_HEX = re.compile(r"0x([0-9a-f]+)", re.IGNORECASE)
_NAMED_HASH = re.compile(
    r"(?:(?:model|lora|file|vae|ti)\s+)?(hash|sha-?256|blake-?3|crc-?32|auto-?\s?v[123])\s*(?:[:=-]|\s)\s*(?:0x)?([0-9a-f]{8,64})",
    re.IGNORECASE,
)
_TITLE = re.compile(
    r".+\.(?:safetensors|sft|ckpt|pt|pth|bin|gguf) \[([0-9a-f]{8}|[0-9a-f]{10}|[0-9a-f]{64})\]", re.IGNORECASE
)
"""Matches A1111's title of a checkpoint: its file name and the first digits of its SHA-256."""
_CHECKSUM = re.compile(r"([0-9a-f]{64}) [ *].+", re.IGNORECASE)
"""Matches a line of output from `sha256sum`."""
_INSIDE = re.compile(
    r"(?<![^\s(<\[\"'=])(?:https?://)?(?:[a-z0-9-]+\.)*civitai\.(?:com|red|green)/[^\s<>\"'\[\]|]+", re.IGNORECASE
)
_QUOTED_SCHEME = re.compile(r"https?%3a%2f%2f", re.IGNORECASE)


def unwrapped(text: str) -> str:
    """Remove characters that copying and pasting may have added around `text`.

    Use the result only if it is a URL, an id or a digest. In any other text, the removed characters may belong to it.
    """
    visible = "".join(char for char in text if unicodedata.category(char) != "Cf").strip()
    if link := _MARKDOWN.fullmatch(visible.rstrip(_ENDINGS)) or _ANCHOR.fullmatch(visible):
        visible = link[1]
    if title := _TITLE.fullmatch(visible) or _CHECKSUM.fullmatch(visible):
        return title[1]
    bare = _peeled(visible)
    if link := _MARKDOWN.fullmatch(bare):
        bare = link[1]
    if named := _NAMED_HASH.fullmatch(bare.replace("[", "").replace('"', "")):
        kind = re.sub(r"[-\s]", "", named[1].lower())
        return f"{kind}:{named[2]}"
    if found := _HEX.fullmatch(bare):
        return found[1]
    if _SPACED_AIR.fullmatch(bare):
        return _SPACED.sub(r"\1", bare)
    return _plain_address(bare)


def _peeled(text: str) -> str:
    """Remove list markers, quotes, emphasis, brackets and punctuation around `text`."""
    while True:
        bare = text.strip().rstrip(_ENDINGS).strip()
        if mark := _MARKS.match(bare):
            bare = bare[mark.end() :]
        bare = bare.strip(_QUOTES).strip()
        if emphasised := _EMPHASIS.fullmatch(bare):
            bare = emphasised[2]
        if bare.startswith("(") and bare.endswith(")") and bare.count("(") == 1:
            bare = bare[1:-1]
        if bare.endswith(")") and bare.count(")") > bare.count("("):
            bare = bare[:-1]
        if bare == text:
            return bare
        text = bare


def _plain_address(text: str) -> str:
    """Return the only CivitAI URL among other words in `text`, or else `text` itself."""
    from urllib.parse import unquote

    if _QUOTED_SCHEME.match(text):
        text = unquote(text)
    text = text.replace("&amp;", "&")
    if any(char.isspace() for char in text):
        found = [match[0] for match in _INSIDE.finditer(text)]
        if len(found) == 1:
            return _peeled(found[0])
    return text
