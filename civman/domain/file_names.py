"""Turn names from untrusted sources into file names that are valid on every file system."""

import re
import unicodedata

_PORTS = {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | _PORTS
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]')
MOST_BYTES = 200
"""The maximum length of a file name in bytes. File systems allow 255; the rest leaves room for a suffix such as
`.preview.png`.
"""


def safe_name(name: str, fallback: str = "file", *, most_bytes: int = MOST_BYTES) -> str:
    """Turn `name` into one path component that is valid on Linux, macOS and Windows.

    Returns `fallback` if no usable character is left.

    Folders, control and text-direction characters, names reserved on Windows, and leading or trailing dots and spaces
    are removed or replaced. If the name is longer than `most_bytes` (at least 32), it is shortened before its suffix. A
    reserved name gets a `_`, which may make it one byte longer. Idempotent.
    """
    text = unicodedata.normalize("NFC", name)
    text = text.encode("utf-8", "ignore").decode()  # remove lone surrogates, which cannot be encoded
    text = re.split(r"[/\\]", text)[-1]
    text = _UNSAFE.sub("_", text).strip(" .")
    stem, dot, suffix = text.rpartition(".")
    if not dot or len(suffix.encode()) > 20:
        stem, dot, suffix = text, "", ""
    stem = _shortened(stem, most_bytes - len(suffix.encode()) - len(dot)).rstrip(" .")
    if stem.partition(".")[0].rstrip().casefold() in _RESERVED:
        stem = f"_{stem}"
    return f"{stem or fallback}{dot}{suffix}"


def folded(name: str) -> str:
    """Normalise a name so that names which collide in case-insensitive folders (Windows, macOS) become equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).upper().casefold())


def marked_name(name: str, mark: str, *, most_bytes: int = MOST_BYTES) -> str:
    """Insert `mark` into `name`, before its suffix.

    The stem is shortened if necessary, but never `mark`, which must be short and valid in file names.
    """
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    stem = _shortened(stem, max(0, most_bytes - len(f"_{mark}{dot}{suffix}".encode())))
    return safe_name(f"{stem}_{mark}{dot}{suffix}" if stem else f"{mark}{dot}{suffix}", most_bytes=most_bytes)


def _shortened(text: str, most_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= most_bytes else data[:most_bytes].decode("utf-8", "ignore")
