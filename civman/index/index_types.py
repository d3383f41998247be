"""Parameters and results of the index that are not already types of the domain."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from civman.domain.catalog import Blob, FileFacts, ModelFile, ModelId, ModelType, ModelVersion
from civman.domain.digests import Hashes, Sha256
from civman.domain.refs import HashKind


class Source(StrEnum):
    """Which API response a row was saved from."""

    MODEL = "model"
    """`/models/{id}`: the whole page with all versions in the creator's order."""
    SEARCH = "search"
    """`/models`: the response may contain only the versions that match the search."""
    VERSION = "version"
    HASH = "by-hash"
    SIDECAR = "sidecar"
    RECORD = "record"
    """Saved when a file was added whose version was not yet in the index."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How current a saved model or version is. If CivitAI returned 404 or 410, `gone_status` and `gone_at` say so."""

    fetched_at: datetime
    source: str
    gone_at: datetime | None = None
    gone_status: int | None = None


USER_PIN = "user"
"""The reason of a pin that a user set; other reasons are "recipe <id>"."""
UNREAD = FileFacts()
"""The placeholder for the facts of a file whose header has not been read."""


@dataclass(frozen=True, slots=True)
class Record:
    """A file to add to the index: verified bytes, their path, and what is known about them.

    `hashes` are further digests of these bytes; if None, the digests that CivitAI declares are used, provided that its
    SHA-256 agrees. `model_type` is used only for files without a version (see `Identity.model_type`).
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
    """A file outside the store and its SHA-256, valid as long as the other fields are unchanged."""

    path: str
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Fits:
    """Which files fit a checkpoint.

    With `checkpoint` (its SHA-256): the files whose saved verdict is one of `verdicts`; `label` is the checkpoint's
    base model, and `rules` the version of the rules that the verdicts must come from. Without `checkpoint`, an
    estimate: files of these `architectures`; files whose header has not been read count if their base model is in
    `base_models`.
    """

    architectures: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    checkpoint: str = ""
    label: str = ""
    rules: int = 0
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldFile:
    """The file of a blob as recorded in the index.

    `seen` is the stat information of the file when its contents were last verified.
    """

    sha256: Sha256
    size_bytes: int
    path: str
    kept_path: str
    """The path as stored in the database: relative if the file is inside the library's folder."""
    verified_at: datetime
    name: str
    seen: SeenFile | None = None


@dataclass(frozen=True, slots=True)
class Undigested:
    """A file for which some digests used by other programs are not known yet. `missing` lists their kinds."""

    sha256: Sha256
    path: str
    size_bytes: int
    missing: tuple[HashKind, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """The number of files and bytes in one group. `label` is the group's name; empty means that the files have none."""

    label: str
    count: int
    size_bytes: int


class Sort(StrEnum):
    """The order of assets. The default is by relevance if there are search words, else newest first."""

    RELEVANCE = "relevance"
    ADDED = "added"
    NAME = "name"
    SIZE = "size"
    RATING = "rating"
    USED = "used"


SEARCH_COLUMNS = (
    "name", "model", "version", "alias", "trigger_words", "tags", "creator", "base_model", "note", "description",
)  # fmt: skip
"""The columns of the full-text table, in order."""
SEARCH_WEIGHTS = (6.0, 10.0, 3.0, 12.0, 5.0, 4.0, 4.0, 2.0, 5.0, 1.0)
"""How much a match in each column counts: names and the user's own notes count more than a long description."""


@dataclass(frozen=True, slots=True)
class AssetFilter:
    """Which assets to return.

    All fields must match; within a field, any of its values is enough; an empty field matches all.

    `words` must all occur in names, alias, creator, tags, trigger words, base model, notes or descriptions. Case and
    accents are ignored and a prefix of a word is enough; a word that is not a prefix of anything is searched for inside
    words, then by similar spelling. `creator` and `base_models` ignore case; `base_models` also ignores blanks, dashes
    and underscores.
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
    """The asset must have all of these tags, from CivitAI or from the user."""
    is_favourite: bool | None = None
    min_rating: int | None = None
    larger_bytes: int | None = None
    smaller_bytes: int | None = None
    since: datetime | None = None
    """Only assets that were added at this time or later."""
    is_commercial: bool = False
    """Only files whose licence and whose base model's licence allow selling images, as far as they are known."""
    is_safe: bool = False
    """Only models whose images CivitAI all rates PG or PG-13."""


EVERYTHING = AssetFilter()
