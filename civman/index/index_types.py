"""What the index takes and gives beyond the values of the domain."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from civman.domain.catalog import Blob, FileFacts, ModelFile, ModelId, ModelType, ModelVersion
from civman.domain.digests import Hashes, Sha256


class Source(StrEnum):
    """Which kind of answer a row came from."""

    MODEL = "model"
    """`/models/{id}`: the whole page, all versions in the creator's order."""
    SEARCH = "search"
    """`/models`: versions may be narrowed to those that match."""
    VERSION = "version"
    HASH = "by-hash"
    SIDECAR = "sidecar"
    RECORD = "record"
    """Came along with a file and nothing had been remembered before."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How current a saved model or version is. Gone: CivitAI answered `gone_status` (404, 410) at `gone_at`."""

    fetched_at: datetime
    source: str
    gone_at: datetime | None = None
    gone_status: int | None = None


USER_PIN = "user"
"""The reason of a pin that a person set; others are "recipe <id>"."""
UNREAD = FileFacts()
"""The facts of a file that nobody has looked into."""


@dataclass(frozen=True, slots=True)
class Record:
    """A file to be recorded: proven bytes, where they are, and what they are as far as known.

    `hashes` are further digests of these bytes; None: the file's declared ones, where its SHA-256 agrees.
    `model_type` counts only without a version (see `Identity.model_type`).
    """

    blob: Blob
    path: str
    name: str
    origin: str
    added_at: datetime
    version: ModelVersion | None = None
    file: ModelFile | None = None
    facts: FileFacts = UNREAD
    hashes: Hashes | None = None
    model_type: ModelType | None = None


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file outside the store and what it hashed to; the digest holds while the other fields do."""

    path: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Fits:
    """What may go with some checkpoint: files of these architectures, and unread ones with these base models."""

    architectures: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A blob's file as the index knows it. `seen`: what it looked like when its bytes were last proven."""

    sha256: Sha256
    size_bytes: int
    path: str
    kept_path: str
    """The path as `seen_file` knows it: relative to the library where it lies below."""
    verified_at: datetime
    name: str
    seen: SeenFile | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one group of files takes: `label` is the group's name, empty where there is none."""

    label: str
    count: int
    size_bytes: int


class Sort(StrEnum):
    """In which order assets come. Ranked by the words asked for, the best first; newest first without words."""

    RELEVANCE = "relevance"
    ADDED = "added"
    NAME = "name"
    SIZE = "size"
    RATING = "rating"
    USED = "used"


SEARCH_COLUMNS = (
    "name", "model", "version", "alias", "trigger_words", "tags", "creator", "base_model", "note", "description",
)  # fmt: skip
"""Columns of the full-text table, in its order."""
SEARCH_WEIGHTS = (6.0, 10.0, 3.0, 12.0, 5.0, 4.0, 4.0, 2.0, 5.0, 1.0)
"""How much a hit in each of them counts: names and the user's own words over what a creator tells at length."""


@dataclass(frozen=True, slots=True)
class AssetFilter:
    """Which assets are wanted: within a field any of its values, all fields together; empty asks nothing.

    `words` must all occur in names, alias, creator, tags, trigger words, base model, notes or descriptions, without
    regard to case and accents; beginnings of words are enough, and what nothing begins with is looked for inside
    words, then among words spelled alike. `base_models` and `creator` are compared without regard to case.
    """

    types: tuple[ModelType, ...] = ()
    base_models: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    creator: str | None = None
    words: tuple[str, ...] = ()
    fits: Fits | None = None
    model_id: ModelId | None = None
    tags: tuple[str, ...] = ()
    """All of these must be among CivitAI's tags and the user's."""
    is_favourite: bool | None = None
    min_rating: int | None = None
    larger_bytes: int | None = None
    smaller_bytes: int | None = None
    since: datetime | None = None
    """Added then or later."""
    is_commercial: bool = False
    """Pictures may be sold, as far as the creator's and the base model's licence are known."""
    is_safe: bool = False
    """CivitAI rates all pictures of the model PG or PG-13."""


EVERYTHING = AssetFilter()
