"""Convert single values that CivitAI has written in different forms between 2023 and 2026.

Pure functions from a raw JSON value to a domain value. A value that cannot be parsed is reported through `tell` or
raises ValueError; nothing is guessed.

Source: CivitAI's public REST API, saved responses of 2023-07, 2024-01, 2025 and 2026.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from civman.domain.catalog import Gate
from civman.domain.digests import EMPTY_AUTOV3, Hashes, sha256_from

OnNotice = Callable[[str], None]

_RISING = ("Image", "RentCivit", "Rent", "Sell")
"""The commercial permissions, weakest first. In 2023, CivitAI sent only the strongest one, which includes the weaker
ones.
"""
_LENGTHS = {"blake3": 64, "crc32": 8, "autov1": 8, "autov2": 10}
_HEX = re.compile(r"[0-9a-f]+")
_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")
"""Characters that no file name may contain: path separators and control characters."""
_ENCODED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_IMAGE_LEVELS = {"none": 1, "soft": 2, "mature": 4, "x": 8, "blocked": 32}


def commercial_use(raw: object) -> tuple[str, ...] | None:
    """Parse the permitted commercial uses: `["Image"]`, `"{Image,Rent}"`, or one word that includes the weaker ones.

    Returns None if the response does not contain them.
    """
    if raw is None:
        return None
    if isinstance(raw, str) and not raw.strip().startswith("{"):
        word = raw.strip()
        words = list(_RISING[: _RISING.index(word) + 1]) if word in _RISING else [word]
    elif isinstance(raw, str):
        words = [part.strip().strip('"') for part in raw.strip().strip("{}").split(",")]
    elif isinstance(raw, list):
        words = [str(part).strip() for part in raw if part is not None]
    elif raw == {}:
        words = []
    else:
        raise ValueError("neither a string nor a list of strings")
    given = dict.fromkeys(word for word in words if word and word != "None")
    return tuple([word for word in _RISING if word in given] + [word for word in given if word not in _RISING])


def trained_words(entries: Iterable[str]) -> tuple[str, ...]:
    """Split trigger words into single entries; an entry of the response may be a comma-separated list."""
    parts = (part.strip() for entry in entries for part in entry.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def file_name(raw: str) -> str:
    """Decode a file name that an uploader's browser percent-encoded as UTF-8; other names are returned unchanged.

    >>> file_name("%E7%8C%AB.safetensors"), file_name("50%.safetensors")
    ('猫.safetensors', '50%.safetensors')
    """
    if "%" not in raw or not _ENCODED.fullmatch(raw):
        return raw
    try:
        name = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return raw
    return raw if _NO_NAME.search(name) else name


def hashes(raw: Mapping[str, object], tell: OnNotice) -> Hashes:
    """Convert digests to lower case; a value that is not a valid digest is skipped and reported."""
    found: dict[str, str] = {}
    for name, value in raw.items():
        key, text = name.lower(), str(value or "").strip().lower()
        if not text or key not in Hashes.__slots__:
            continue
        if key == "autov3" and len(text) == 64:
            text = text[:12]  # responses of early 2024 contain the whole digest; AutoV3 has only 12 digits
        if len(text) != {**_LENGTHS, "sha256": 64, "autov3": 12}[key] or not _HEX.fullmatch(text):
            tell(f"the declared {name} is not a valid digest and is ignored")
        elif not (key == "autov3" and text == EMPTY_AUTOV3):
            found[key] = text
    sha256 = found.pop("sha256", None)
    return Hashes(sha256=sha256_from(sha256) if sha256 else None, **found)


def size_bytes(size_kb: float | None) -> int | None:
    """Convert CivitAI's kilobytes (1024 bytes each, sent as a float) to bytes."""
    return None if size_kb is None else round(size_kb * 1024)


def timestamp(text: str) -> datetime:
    """Parse an ISO 8601 time as UTC; a time without a zone is taken as UTC. Raises: ValueError."""
    moment = datetime.fromisoformat(text.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def image_level(nsfw_level: object, nsfw: object) -> int:
    """Convert an image's rating (an integer; before 2024 and in `/images`, a word) to its bit in an NSFW level."""
    for raw in (nsfw_level, nsfw):
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.casefold() in _IMAGE_LEVELS:
            return _IMAGE_LEVELS[raw.casefold()]
    return 0


def gate(
    *,
    paid_access: tuple[bool, datetime | None] | None,
    ends: Iterable[datetime | None],
    days_after_publication: int | None,
    published_at: datetime | None,
    availability: str | None,
    now: datetime,
) -> Gate | None:
    """Determine which restriction on access (paid or early access) is in force at `now`.

    The arguments come from different years, and a response contains only some of them: `days_after_publication` from
    2023, `ends` (dates) from 2024 to 2026, `availability` "EarlyAccess" from 2025, and `paid_access` (permanent, end)
    from 2026. Responses are cached, so an end in the past means that access is no longer restricted.
    """
    if paid_access is not None:
        permanent, end = paid_access
        if permanent:
            return Gate(permanent=True)
        return Gate(ends_at=end) if end is None or end > now else None
    known = [end for end in ends if end is not None]
    if published_at is not None and days_after_publication and days_after_publication > 0:
        known.append(published_at + timedelta(days=min(days_after_publication, 36500)))
    if known:
        return Gate(ends_at=max(known)) if max(known) > now else None
    return Gate() if availability == "EarlyAccess" else None


def file_id_in(download_url: str | None) -> int | None:
    """Parse the `fileId` in a download URL; None if there is none."""
    try:
        query = parse_qs(urlsplit(download_url or "").query)
    except ValueError:  # the text is not a URL, e.g. it has square brackets that do not contain an IPv6 address
        return None
    digits = next(iter(query.get("fileId", [])), "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def linked_places(files: list[tuple[str, bool, str | None]], *, has_linked_vae: bool) -> set[int]:
    """Find the indices of files, given as (type, primary, URL), that belong to another version (a shared VAE).

    Responses do not mark a file of another version. It is at the end of the list and has type VAE. Since September
    2026, its URL has no `fileId`, while the URLs of the version's own files have one. In older responses, the version
    has a `vaeId`.
    """
    others_name_ids = any(file_id_in(url) is not None for _, _, url in files)
    found: set[int] = set()
    for place in range(len(files) - 1, -1, -1):
        kind, primary, url = files[place]
        if kind != "VAE" or primary or file_id_in(url) is not None or url is None:
            break
        if others_name_ids or has_linked_vae:
            found.add(place)
    return found
