"""A query for CivitAI's search, validated before it is sent, and the type of its results.

CivitAI responds to a misspelt filter with an empty result (base models), with the whole catalogue (tags) or with an
error without explanation (types, sort orders). So every name is checked here, and similar names are suggested.

Source: CivitAI's public REST API, `GET /api/v1/models`, as of August 2026.
"""

import difflib
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from civman.domain.catalog import Model, ModelId, ModelType, ModelVersion, VersionId
from civman.errors import Cause, UsageError

LARGEST_ID = 2**31 - 1
"""CivitAI's ids are PostgreSQL `int4`; larger numbers cause a server error."""


class Sort(StrEnum):
    """Sort orders of a search, in CivitAI's spelling."""

    HIGHEST_RATED = "Highest Rated"
    MOST_DOWNLOADED = "Most Downloaded"
    MOST_LIKED = "Most Liked"
    MOST_DISCUSSED = "Most Discussed"
    MOST_COLLECTED = "Most Collected"
    MOST_IMAGES = "Most Images"
    NEWEST = "Newest"
    OLDEST = "Oldest"


class Period(StrEnum):
    """How recent a model's last version must be."""

    DAY = "Day"
    WEEK = "Week"
    MONTH = "Month"
    YEAR = "Year"
    ALL_TIME = "AllTime"

    @property
    def longest(self) -> timedelta | None:
        """The maximum length of the period; None for all time."""
        days = {Period.DAY: 1, Period.WEEK: 7, Period.MONTH: 31, Period.YEAR: 366}.get(self)
        return None if days is None else timedelta(days=days)


class CheckpointType(StrEnum):
    """How a checkpoint was created: trained or merged."""

    TRAINED = "Trained"
    MERGE = "Merge"


@dataclass(frozen=True, slots=True)
class ModelPage:
    """A model and its versions from a search response, in the creator's order (the first is the default).

    `versions` may be empty for an existing model: CivitAI's caches lag for minutes after an update.
    """

    model: Model
    versions: tuple[ModelVersion, ...] = ()

    def default_version(self, now: datetime) -> ModelVersion | None:
        """Return the version that a ref without a version means: the first that is published at `now` and lists files.

        If there is none: the first published one, else the first of all. None: the page lists no versions.
        """
        published = [version for version in self.versions if version.is_published(now)] or self.versions
        return next((version for version in published if version.files), next(iter(published), None))


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to search for. All filters must match; several types or base models mean any of them.

    `limit` counts models; None means all. `nsfw` includes models rated above PG. `early_access` restricts the search to
    models in time-limited early access; `include_archived` adds models that can no longer be downloaded.

    Raises: UsageError: a value that CivitAI would refuse or silently ignore.
    """

    text: str = ""
    types: tuple[ModelType, ...] = ()
    base_models: tuple[str, ...] = ()
    tag: str | None = None
    username: str | None = None
    sort: Sort | None = None
    period: Period = Period.ALL_TIME
    nsfw: bool = False
    limit: int | None = 100
    ids: tuple[ModelId, ...] = ()
    version_ids: tuple[VersionId, ...] = ()
    checkpoint_type: CheckpointType | None = None
    include_archived: bool = False
    early_access: bool = False
    page_size: int = 100
    """How many models to request at once, at most 100; a smaller page arrives sooner."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a search needs a limit of at least 1, not {self.limit}", code=Cause.BAD_LIMIT)
        if self.text and self.ids:
            raise UsageError("CivitAI cannot combine a text search with ids", hint="search by text or by ids")
        for number in (*self.ids, *self.version_ids):
            checked_id(number, "id")
        for name, value in (("tag", self.tag), ("creator", self.username)):
            if value is not None and not value.strip():
                raise UsageError(f"the {name} to search for is empty")
        if self.tag is not None and "," in self.tag:
            raise UsageError(
                f"CivitAI accepts only one tag per search: `{self.tag}`", hint="tags contain no commas; choose one tag"
            )


def checked_id(number: int, what: str) -> int:
    """Check that `number` can be an id on CivitAI, and return it. Raises: UsageError."""
    if isinstance(number, bool) or not 1 <= number <= LARGEST_ID:
        raise UsageError(
            f"not a valid {what} id: {number}", code=Cause.BAD_ID, hint=f"ids are between 1 and {LARGEST_ID}"
        )
    return number


_TYPE_ALIASES = {
    "embedding": ModelType.EMBEDDING,
    "ti": ModelType.EMBEDDING,
    "lycoris": ModelType.LOCON,
    "hypernet": ModelType.HYPERNETWORK,
    "motion": ModelType.MOTION_MODULE,
}


def model_type_named(text: str) -> ModelType:
    """Look up the model type named `text`, ignoring case. Raises: UsageError: unknown; the hint suggests names."""
    return _named(text, {**{member.value: member for member in ModelType}, **_TYPE_ALIASES}, "model type")


def sort_named(text: str) -> Sort:
    """Look up the sort order named `text` ("newest", "most-downloaded"). Raises: UsageError."""
    return _named(text, {member.value: member for member in Sort}, "sort order")


def period_named(text: str) -> Period:
    """Look up the period named `text` ("week", "all-time"). Raises: UsageError."""
    return _named(text, {member.value: member for member in Period}, "period")


def base_model_named(text: str) -> str:
    """Return CivitAI's spelling of the base model named `text` ("sdxl 1.0" → "SDXL 1.0").

    CivitAI adds base models every few weeks, so `=Name` means exactly `Name`, whether it is known here or not.

    Raises: UsageError: unknown; the hint suggests similar names.
    """
    if text.startswith("=") and text[1:].strip():
        return text[1:]
    escape = f"for a base model newer than this civman, write `={text}`"
    return _named(text, {name: name for name in known_base_models()}, "base model", more=escape)


@functools.cache
def known_base_models() -> tuple[str, ...]:
    """List the base models that CivitAI had when this version of civman was released, in alphabetical order."""
    text = importlib.resources.files("civman.domain").joinpath("data/search_names.json").read_text("utf-8")
    return tuple(json.loads(text)["base_models"])


T = TypeVar("T")


def _named(text: str, known: Mapping[str, T], what: str, *, more: str = "") -> T:
    by_key = {_key(name): (name, value) for name, value in known.items()}
    wanted = _key(text)
    if wanted in by_key:
        return by_key[wanted][1]
    near = [by_key[key][0] for key in difflib.get_close_matches(wanted, by_key, n=4, cutoff=0.6)]
    near = near or [name for key, (name, _) in by_key.items() if wanted and wanted in key][:4]
    hints = [_either(near)] if near else ([_either(known)] if len(known) < 30 else [])
    raise UsageError(
        f"unknown {what}: `{text}`", code=Cause.UNKNOWN_NAME, hint="; ".join([*hints, *([more] if more else [])]),
        suggestions=near,
    )  # fmt: skip


def _either(names: Iterable[str]) -> str:
    return "did you mean " + ", ".join(f"`{name}`" for name in names) + "?"


def _key(name: str) -> str:
    """Normalise a name for comparison by ignoring case, spaces, dashes and underscores."""
    return "".join(char for char in name.casefold() if char not in " -_")
