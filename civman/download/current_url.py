"""The storage URL that all connections of a transfer share; it is requested again once it is discarded."""

import threading
from collections.abc import Callable

from civman.civitai.responses import DownloadAddress


class CurrentUrl:
    """One signed URL, which is requested from CivitAI on first use and again after each `discard`. Thread-safe."""

    def __init__(self, request: Callable[[], DownloadAddress]) -> None:
        """`request` asks CivitAI for a fresh URL. Each call counts against the account's rate limit."""
        self._request = request
        self._requesting = threading.Lock()  # held while waiting for CivitAI's response, which may take minutes
        self._lock = threading.Lock()
        self._address: DownloadAddress | None = None

    def get(self) -> DownloadAddress:
        """Return the URL in use. If there is none, one thread requests it while other threads wait.

        Raises: the errors of `request`.
        """
        with self._requesting:
            address = self._address
            if address is None:
                address = self._request()
                with self._lock:
                    self._address = address
            return address

    def is_current(self, address: DownloadAddress | None) -> bool:
        """Whether `address` is the URL in use; None counts as current as long as no URL is in use."""
        return address is self._address

    def discard(self, address: DownloadAddress | None) -> None:
        """Make the next `get` request a fresh URL, unless another thread has already replaced `address`."""
        with self._lock:
            if address is self._address:
                self._address = None
