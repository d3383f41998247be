"""Parameter and result types of the index, except those that `civman.domain` defines."""

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
    """No response: the row was added together with a file whose version was not yet in the index."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """When and from where a model or version was saved. `gone_*`: CivitAI has since returned 404 or 410 for it."""

    fetched_at: datetime
    source: str
    gone_at: datetime | None = None
    gone_status: int | None = None


USER_PIN = "user"
"""The reason stored with a pin that a user set; other pins have the reason "recipe <id>"."""
UNREAD = FileFacts()
"""The placeholder for the facts of a file whose header has not been read."""


@dataclass(frozen=True, slots=True)
class Record:
    """A file to add to the index: verified bytes, their path, and what is known about them.

    `hashes` are the other digests of these bytes. If they are None, the digests declared by CivitAI are used, provided
    that its SHA-256 matches. `model_type` is used only for files without a version (see `Identity.model_type`).
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
    """Selects the files that are compatible with a checkpoint.

    With `checkpoint` (its SHA-256): the files whose saved verdict is one of `verdicts`, where `label` is the
    checkpoint's base model and `rules` the version of the compatibility rules. Without `checkpoint`, compatibility is
    estimated: files of these `architectures`, and files with an unread header whose base model is in `base_models`.
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
    """A file for which some digests used by other programs have not been computed; `missing` lists their kinds."""

    sha256: Sha256
    path: str
    size_bytes: int
    missing: tuple[HashKind, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """The number of files and bytes in one group. `label` is empty for the files without a value to group by."""

    label: str
    count: int
    size_bytes: int


class Sort(StrEnum):
    """The order of assets. The default is RELEVANCE if there are search words, else ADDED (newest first)."""

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
"""The weight of a match in each column: names and the user's notes count more than a long description."""


@dataclass(frozen=True, slots=True)
class AssetFilter:
    """Which assets to return.

    All fields must match; any one of a field's values is enough; an empty field matches everything.

    `words` must all occur in names, alias, creator, tags, trigger words, base model, notes or descriptions. Case and
    accents are ignored, and a prefix of a word is enough. A word that is not a prefix of any indexed word is searched
    for inside words, then by similar spelling. `creator` and `base_models` ignore case; `base_models` also ignores
    spaces, dashes and underscores.
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
    """Only files whose licence allows selling images and whose base model is not known to forbid it."""
    is_safe: bool = False
    """Only models whose images on CivitAI are all rated PG or PG-13."""


EVERYTHING = AssetFilter()
