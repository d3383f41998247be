"""Values that occur only in CivitAI's responses: accounts, published images, search pages, the state of a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import urlsplit, urlunsplit

from civman.domain.catalog import Gate, ModelFile, VersionId
from civman.domain.search_query import ModelPage

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class Account:
    """The account that an API key belongs to."""

    id: int
    name: str
    tier: str | None = None
    """CivitAI's name for the subscription: "free", "founder", "bronze", "silver" or "gold". None if unknown."""
    is_member: bool = False
    status: str | None = None
    """The status of the account: "active", "muted" or "banned". None if unknown."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of search results. It is the last page if it has neither `next_cursor` nor `next_page`."""

    items: tuple[ModelPage, ...]
    next_cursor: str | None = None
    next_page: str | None = field(default=None, repr=False)
    received_count: int = 0
    """The number of items in the response, including those that could not be read."""


@dataclass(frozen=True, slots=True)
class Glance:
    """The current state of one file of a version, from an endpoint that bypasses the site's caches."""

    file: ModelFile
    air: str | None = None
    model_name: str = ""
    version_name: str = ""
    base_model: str | None = None
    published_at: datetime | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image published on CivitAI, with its generation data."""

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
    """Generation data under CivitAI's keys ("prompt", "seed", "civitaiResources" …); None if there is none."""


@dataclass(frozen=True, slots=True)
class DownloadAddress:
    """The current download URL of a file. Storage URLs are signed: they contain a secret and expire within hours.

    `send_token` is True only if the configured site serves the file itself.
    """

    url: str = field(repr=False)
    send_token: bool = False

    def __repr__(self) -> str:
        return f"DownloadAddress({safe_url(self.url)!r}, send_token={self.send_token})"


def safe_url(url: str) -> str:
    """Remove user, password, query and fragment from a URL, so that it is safe to show, log and store."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return "(an unreadable URL)"
