"""Every exit code of civman, every error code, and how to retry after each error.

`civman.errors` has the exceptions that carry these codes.
"""

from enum import Enum, IntEnum, StrEnum
from typing import Self


class ExitCode(IntEnum):
    """The exit code of a civman process. Documented in docs/exit-codes.md and never reused."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    NETWORK = 5
    INTEGRITY = 6
    INCOMPATIBLE = 7
    CANNOT_RENDER = 8
    CLOSE = 9
    DIFFERENT = 10
    UNKNOWN = 11
    ANOTHER = 12
    BUG = 70
    INTERRUPTED = 130


class Recovery(Enum):
    """How to retry after a failure: not at all, with the same URL, or with a fresh one.

    Each request for a fresh storage URL counts against the CivitAI account, so a URL that is probably still valid is
    tried again first.
    """

    NONE = "none"
    SAME_URL = "same-url"
    SAME_URL_AT_ONCE = "same-url-at-once"
    FRESH_URL = "fresh-url"
    FRESH_URL_AT_ONCE = "fresh-url-at-once"

    @property
    def is_possible(self) -> bool:
        """Whether another attempt may succeed."""
        return self is not Recovery.NONE

    @property
    def is_immediate(self) -> bool:
        """Whether the first retry may be made without a delay."""
        return self in (Recovery.SAME_URL_AT_ONCE, Recovery.FRESH_URL_AT_ONCE)

    @property
    def keeps_url(self) -> bool:
        """Whether the first retries use the URL that failed."""
        return self in (Recovery.SAME_URL, Recovery.SAME_URL_AT_ONCE)


class Cause(StrEnum):
    """All error codes. They are stable, printed in messages and JSON, and more specific than the exit codes.

    `recovery`: the kind of retry that may help. `is_of_one_connection`: other connections to the same server may still
    work, so a download can continue with fewer connections.
    """

    recovery: Recovery
    is_of_one_connection: bool

    def __new__(cls, code: str, recovery: Recovery = Recovery.NONE, is_of_one_connection: bool = False) -> Self:
        """Create a member whose string value is `code`."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.recovery = recovery
        member.is_of_one_connection = is_of_one_connection
        return member

    # error codes for problems on this computer: in the program, on the disk or in the library
    FAILED = "failed"
    BUG = "bug"
    DEMO_FAILED = "demo-failed"
    UNHEALTHY = "unhealthy"
    PARTLY_FAILED = "partly-failed"
    STORE = "store"
    WORKER_LIED = "worker-lied"
    WORKER_LOST = "worker-lost"
    DISK_FULL = "disk-full"
    FILE_IN_USE = "file-in-use"
    PATH_TOO_LONG = "path-too-long"
    BLOB_BUSY = "blob-busy"
    REMOVAL_BUSY = "removal-busy"
    REMOVED_MEANWHILE = "removed-meanwhile"
    AWAY = "away"
    INDEX = "index"
    NEWER_LIBRARY = "newer-library"
    LIBRARY_BACKUP = "library-backup"
    LIBRARY_FOREIGN = "library-foreign"
    LIBRARY_IO = "library-io"
    LIBRARY_LOCKED = "library-locked"
    LIBRARY_MALFORMED = "library-malformed"
    LIBRARY_NOT_A_DATABASE = "library-not-a-database"
    LIBRARY_READ_ONLY = "library-read-only"
    LIBRARY_UPGRADE = "library-upgrade"
    BAD_TEXT = "bad-text"

    # error codes for mistakes in the command line, the settings, a recipe or an input file
    USAGE = "usage"
    ALIAS_TAKEN = "alias-taken"
    AMBIGUOUS_EMBEDDING = "ambiguous-embedding"
    AMBIGUOUS_REF = "ambiguous-ref"
    BAD_ALIAS = "bad-alias"
    BAD_CERTIFICATES = "bad-certificates"
    BAD_CONFIG = "bad-config"
    BAD_FILE_NAME = "bad-file-name"
    BAD_FORMAT = "bad-format"
    BAD_GRID = "bad-grid"
    BAD_ID = "bad-id"
    BAD_KEY_SHAPE = "bad-key-shape"
    BAD_KIND = "bad-kind"
    BAD_LIMIT = "bad-limit"
    BAD_PARAMETERS = "bad-parameters"
    BAD_PICTURE = "bad-picture"
    BAD_PROXY = "bad-proxy"
    BAD_STORE = "bad-store"
    BAD_WILDCARDS = "bad-wildcards"
    BAD_WORKERS = "bad-workers"
    BAD_RECIPE = "bad-recipe"
    BAD_REQUEST = "bad-request"
    BAD_SCALE = "bad-scale"
    BAD_SETTING = "bad-setting"
    BAD_SIZE = "bad-size"
    BAD_STEPS = "bad-steps"
    BAD_VALUE = "bad-value"
    CLIP_SKIP = "clip-skip"
    CONTACT_SHEET = "contact-sheet"
    EMBEDDING_UNUSED = "embedding-unused"
    EMPTY_MASK = "empty-mask"
    INSECURE_ADDRESS = "insecure-address"
    INVALID_REF = "invalid-ref"
    LOCK_MISSING = "lock-missing"
    LOCK_STALE = "lock-stale"
    MALFORMED_KEY = "malformed-key"
    NEWER_RECIPE = "newer-recipe"
    NO_CHECKPOINT = "no-checkpoint"
    NO_PRESET = "no-preset"
    NO_START_IMAGE = "no-start-image"
    NO_STYLE = "no-style"
    NOT_COMPILABLE = "not-compilable"
    PROMPT_SYNTAX = "prompt-syntax"
    TEXT_TOO_LONG = "text-too-long"
    TWO_SCHEDULES = "two-schedules"
    UNKNOWN_FIELD = "unknown-field"
    UNKNOWN_NAME = "unknown-name"
    UNKNOWN_SAMPLER = "unknown-sampler"
    UNKNOWN_SCHEDULE = "unknown-schedule"
    UNREADABLE_PICTURE = "unreadable-picture"
    UNREADABLE_PROMPTS = "unreadable-prompts"
    UNWRITABLE_PICTURE = "unwritable-picture"
    WRONG_KIND = "wrong-kind"

    # error codes for things that were not found or no longer exist
    NOT_FOUND = "not-found"
    ARCHIVED = "archived"
    DELETED_UPSTREAM = "deleted-upstream"
    GONE = "gone"
    MISSING = "missing"
    MISSING_FILES = "missing-files"
    NO_FILES = "no-files"
    NO_LIBRARY = "no-library"
    NO_PROJECT = "no-project"
    NO_RECIPE = "no-recipe"
    NOT_DRAWABLE = "not-drawable"
    NO_SUCH_FILE = "no-such-file"
    NO_VERSIONS = "no-versions"
    NOT_ON_CIVITAI = "not-on-civitai"
    OTHER_MODEL = "other-model"
    STORAGE_NOT_FOUND = "storage-not-found", Recovery.FRESH_URL

    # error codes for requests that CivitAI does not allow, or that civman refuses for safety
    NOT_ALLOWED = "not-allowed"
    REFUSED = "refused"
    BAD_KEY = "bad-key"
    BANNED = "banned"
    DOWNLOADS_DISABLED = "downloads-disabled"
    EARLY_ACCESS = "early-access"
    INDEX_EMPTY = "index-empty"
    LICENCE = "licence"
    NO_HASH = "no-hash"
    NO_KEY = "no-key"
    NOT_SAFETENSORS = "not-safetensors"
    PAID_ACCESS = "paid-access"
    PICKLE = "pickle"
    PINNED = "pinned"
    PRIVATE = "private"
    REGION_BLOCKED = "region-blocked"
    SCAN_DANGER = "scan-danger"
    SCAN_ERROR = "scan-error"
    SCAN_PENDING = "scan-pending"

    # error codes for problems of the network or a server
    NETWORK = "network", Recovery.FRESH_URL
    BAD_ANSWER = "bad-answer", Recovery.FRESH_URL
    BAD_CURSOR = "bad-cursor"
    BAD_RANGE = "bad-range", Recovery.FRESH_URL, True
    BLOCKED_CLIENT = "blocked-client"
    COMPRESSED_BODY = "compressed-body", Recovery.FRESH_URL, True
    COMPRESSED_RANGE = "compressed-range", Recovery.SAME_URL_AT_ONCE
    CONNECTION_CUT = "connection-cut", Recovery.SAME_URL, True
    LINK_EXPIRED = "link-expired", Recovery.FRESH_URL_AT_ONCE
    LOGIN_PAGE = "login-page"
    LONG_HEADER = "long-header"
    NO_LENGTH = "no-length"
    NO_RANGES = "no-ranges"
    OFFLINE = "offline"
    PAGE_CAP = "page-cap"
    PROXY = "proxy"
    QUOTA = "quota"
    RANGE_IGNORED = "range-ignored", Recovery.SAME_URL_AT_ONCE
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable", Recovery.SAME_URL_AT_ONCE
    RATE_LIMITED = "rate-limited", Recovery.FRESH_URL
    REDIRECT_LOOP = "redirect-loop"
    REDIRECTED = "redirected", Recovery.FRESH_URL
    SERVER_ERROR = "server-error", Recovery.FRESH_URL
    STALLED = "stalled", Recovery.SAME_URL, True
    STORAGE_BUSY = "storage-busy", Recovery.SAME_URL, True
    STORAGE_ERROR = "storage-error", Recovery.FRESH_URL
    STORAGE_REFUSED = "storage-refused", Recovery.FRESH_URL
    TIMEOUT = "timeout", Recovery.FRESH_URL
    TLS = "tls"
    TOO_LONG = "too-long"
    UNREACHABLE = "unreachable", Recovery.FRESH_URL, True
    UNSAFE_REDIRECT = "unsafe-redirect"
    WRONG_ANSWER = "wrong-answer", Recovery.FRESH_URL

    # error codes for data that differs from what was declared
    INTEGRITY = "integrity"
    BAD_BUNDLE = "bad-bundle"
    BAD_SIDECAR = "bad-sidecar"
    CHANGED = "changed"
    CHANGED_UPSTREAM = "changed-upstream"
    EDITED_RECIPE = "edited-recipe"
    HASH_MISMATCH = "hash-mismatch"
    INVALID_MODEL_FILE = "invalid-model-file"
    LOCK_MISMATCH = "lock-mismatch"
    REPLACED_UPSTREAM = "replaced-upstream"
    SIZE_MISMATCH = "size-mismatch"

    # error codes for files that do not work together
    INCOMPATIBLE = "incompatible"
    ADAPTER_NO_CHANGE = "adapter-no-change"
    ADAPTER_NO_MATCH = "adapter-no-match"
    ADAPTER_NOT_FINITE = "adapter-not-finite"
    ADAPTER_PARTIAL = "adapter-partial"
    CANNOT_WORK = "cannot-work"
    EMBEDDING_TOO_LONG = "embedding-too-long"
    EMBEDDING_WIDTH = "embedding-width"
    PARTLY_APPLIES = "partly-applies"
    UNKNOWN_FIT = "unknown-fit"

    # error codes for problems in rendering and replay
    CANNOT_RENDER = "cannot-render"
    BAD_PRECISION = "bad-precision"
    BLACK_PICTURE = "black-picture"
    CLOSE = "close"
    DIFFERENT = "different"
    ANOTHER_PICTURE = "another-picture"
    CANNOT_TELL = "cannot-tell"
    FLAT_PICTURE = "flat-picture"
    MISSING_PART = "missing-part"
    MISSING_TENSOR = "missing-tensor"
    MISMATCHED_PARTS = "mismatched-parts"
    NEEDS_PICTURE = "needs-picture"
    NO_COMPILER = "no-compiler"
    NO_DEVICE = "no-device"
    NO_FACE_MODEL = "no-face-model"
    NO_UPSCALER = "no-upscaler"
    NO_PIPELINE = "no-pipeline"
    NO_PIPELINE_SAMPLER = "no-pipeline-sampler"
    NO_CLUSTER_EXTRA = "no-cluster-extra"
    NO_RENDER_EXTRA = "no-render-extra"
    NO_S3_EXTRA = "no-s3-extra"
    NO_WILDCARDS_EXTRA = "no-wildcards-extra"
    NOT_A_NUMBER = "not-a-number"
    ODD_INPUT = "odd-input"
    NO_STRUCTURE = "no-structure"
    OUT_OF_MEMORY = "out-of-memory"
    QUANTISED_WEIGHTS = "quantised-weights"
    UNKNOWN_FAMILY = "unknown-family"
    UNKNOWN_PREDICTION = "unknown-prediction"

    # the user stopped the command
    INTERRUPTED = "interrupted"
