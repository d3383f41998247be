"""The only code that knows SQL."""

from civman.index.index import Index, Page
from civman.index.values import (
    EVERYTHING,
    UNREAD,
    AssetFilter,
    Fits,
    Record,
    SeenFile,
    Snapshot,
    Source,
)

__all__ = ["Index", "Page", "AssetFilter", "EVERYTHING", "Fits", "Record", "UNREAD", "SeenFile", "Snapshot", "Source"]
