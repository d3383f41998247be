"""Values that only CivitAI gives: accounts, published pictures, search pages, fresh glances at one file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit, urlunsplit

from civman.domain.catalog import Gate, ModelFile, VersionId
from civman.domain.search_query import ModelPage

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Account:
    """Whose key it is."""

    id: int
    name: str
    tier: str | None = None
    """CivitAI's word: "free", "founder", "bronze", "silver", "gold"."""
    is_member: bool = False
    status: str | None = None
    """"active", "muted" or "banned"."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of a search as the site gave it; without a cursor and a next page it is the last."""

    items: tuple[ModelPage, ...]
    next_cursor: str | None = None
    next_page: str | None = field(default=None, repr=False)
    received_count: int = 0
    """Items in the answer, with those that could not be read."""


@dataclass(frozen=True, slots=True)
class Glance:
    """The freshest word on one file of a version, past all caches."""

    file: ModelFile
    air: str | None = None
    model_name: str = ""
    version_name: str = ""
    base_model: str | None = None
    published_at: datetime | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture somebody published, with what its file said about its making."""

    id: int
    url: str
    width: int | None = None
    height: int | None = None
    nsfw_level: int = 0
    media: str = "image"
    username: str | None = None
    base_model: str | None = None
    version_ids: tuple[VersionId, ...] = ()
    meta: Mapping[str, Json] | None = None
    """Generation data with CivitAI's keys ("prompt", "seed", "civitaiResources" …); None where there is none."""


@dataclass(frozen=True, slots=True)
class DownloadAddress:
    """Where the bytes are now. Storage addresses are signed: they hold a secret and last hours.

    `send_token` is True only where the configured site itself serves the bytes.
    """

    url: str = field(repr=False)
    send_token: bool = False

    def __repr__(self) -> str:
        return f"DownloadAddress({safe_url(self.url)!r}, send_token={self.send_token})"


def safe_url(url: str) -> str:
    """`url` fit to be shown, logged and kept: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "(an unreadable address)"
