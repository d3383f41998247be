"""The library's SQLite database. All SQL of civman is in this package."""

from civman.index.index import Index, Page
from civman.index.index_types import (
    EVERYTHING,
    UNREAD,
    USER_PIN,
    AssetFilter,
    Fits,
    HeldFile,
    Record,
    SeenFile,
    Share,
    Snapshot,
    Sort,
    Source,
)

__all__ = [
    "Index", "Page", "AssetFilter", "EVERYTHING", "Fits", "HeldFile", "Record", "UNREAD", "USER_PIN", "SeenFile",
    "Share", "Snapshot", "Sort", "Source",
]  # fmt: skip
