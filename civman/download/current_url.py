"""The storage URL that all connections of one transfer use, and its replacement."""

import threading
from collections.abc import Callable

from civman.civitai.responses import DownloadAddress


class CurrentUrl:
    """One signed URL, requested from CivitAI when it is first needed and after it was discarded. Thread-safe."""

    def __init__(self, request: Callable[[], DownloadAddress]) -> None:
        """`request` asks CivitAI for a fresh URL; each call counts against the account."""
        self._request = request
        self._requesting = threading.Lock()  # held for as long as CivitAI takes, which may be minutes
        self._lock = threading.Lock()
        self._address: DownloadAddress | None = None

    def get(self) -> DownloadAddress:
        """The URL in use; one thread requests it and the others wait. Raises: as the request does."""
        with self._requesting:
            address = self._address
            if address is None:
                address = self._request()
                with self._lock:
                    self._address = address
            return address

    def is_current(self, address: DownloadAddress | None) -> bool:
        """Whether `address` is what `get` returned last, or nothing has been returned yet and it is None."""
        return address is self._address

    def discard(self, address: DownloadAddress | None) -> None:
        """Request a fresh URL next time, unless another thread has replaced `address` already."""
        with self._lock:
            if address is self._address:
                self._address = None
