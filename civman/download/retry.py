"""Decides when to retry after a failure during a download, and whether to request a fresh URL first.

The cause of a failure determines whether retrying or a fresh URL can help (`Cause.recovery`). This module counts
failures and chooses the delay.
"""

import random
import threading
import time
from datetime import UTC, datetime

from civman.civitai.transport import retry_after_s
from civman.domain.timeouts import Patience
from civman.errors import CivmanError, NetworkError

_SAME_URL_TRIES = 2


class Retries:
    """Counts the consecutive failures of one transfer, over all its connections. Thread-safe."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._failures = 0
        self._counted_at = 0.0

    def reset(self) -> None:
        """Set the count to zero, because bytes have arrived."""
        with self._lock:
            self._failures = 0

    def delay_s(self, error: CivmanError, requested_at: float) -> float:
        """Seconds to wait before the next attempt. `requested_at`: when the failed request began (monotonic clock).

        Requests that were in flight at the same time and failed count as one failure.

        Raises: `error`: no retry can help, or there were too many failures. NetworkError: the server asks for a longer
            wait than `patience` allows.
        """
        if not error.code.recovery.is_possible:
            raise error
        requested_s = self._requested_delay_s(error)
        with self._lock:
            if requested_at >= self._counted_at:
                self._failures += 1
                self._counted_at = time.monotonic()
            failures = max(1, self._failures)
        if failures >= self._patience.tries:
            raise error
        if requested_s is not None:
            return requested_s
        if error.code.recovery.is_immediate and failures == 1:
            return 0.0
        # a random factor keeps clients from retrying simultaneously; it need not be cryptographically secure
        spread = random.uniform(0.75, 1.25)  # noqa: S311
        return min(self._patience.backoff_s * 2.0 ** (failures - 1), self._patience.longest_backoff_s) * spread

    def needs_fresh_url(self, error: CivmanError) -> bool:
        """Whether to request a fresh download URL from CivitAI before the next attempt."""
        return not error.code.recovery.keeps_url or self._failures > _SAME_URL_TRIES

    def _requested_delay_s(self, error: CivmanError) -> float | None:
        """The delay that the server asked for in a Retry-After header, or None."""
        header = error.facts.get("retry_after")
        seconds = retry_after_s(header, datetime.now(UTC)) if isinstance(header, str) else None
        if seconds is not None and seconds > self._patience.longest_retry_after_s:
            raise NetworkError(
                f"{error.message}; the server asks clients to wait {seconds} s",
                code=error.code,
                hint="try again after that time; the bytes received so far are kept",
                retry_after=header if isinstance(header, str) else None,
            ) from error
        return seconds
