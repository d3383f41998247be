"""What a failure in the middle of a file means: try again and when, with a fresh address or not, or give up."""

import random
import threading
import time
from datetime import UTC, datetime

from civman.civitai.transport import retry_after_s
from civman.domain.timeouts import Patience
from civman.errors import CivmanError, NetworkError, UnsafeRedirect

_HOPELESS = frozenset(
    {"login-page", "redirect-loop", "tls", "proxy", "offline", "quota", "blocked-client", "no-length", "too-long"}
)
"""A network's failures that another try does not cure."""
_MAY_PASS = frozenset({"storage-not-found"})
"""Not a network's failure, and yet a fresh address may cure it."""
_AT_ONCE = frozenset({"link-expired", "range-ignored", "range-not-satisfiable"})
"""Worth a second try without waiting."""
_ADDRESS_IS_GOOD = frozenset({"connection-cut", "stalled", "storage-busy", "range-ignored", "range-not-satisfiable"})
"""Worth a second try at the same address; every new one is a request that CivitAI counts."""
_SAME_ADDRESS_TRIES = 2


class Setbacks:
    """Failures in a row of one transfer, over all its workers. Thread-safe."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._count = 0
        self._counted_at = 0.0

    def forget(self) -> None:
        """Bytes have come: the count starts again."""
        with self._lock:
            self._count = 0

    def weigh(self, error: CivmanError, asked_at: float) -> float:
        """Seconds to wait before the next try. `asked_at` is when the request that failed began (monotonic).

        Requests that were under way together and fail together count once.
        Raises: `error`: it is final, or one too many. NetworkError: the server asks for more than patience allows.
        """
        may_pass = isinstance(error, NetworkError) or error.code in _MAY_PASS
        if not may_pass or isinstance(error, UnsafeRedirect) or error.code in _HOPELESS:
            raise error
        asked_s = self._asked_s(error)
        with self._lock:
            if asked_at >= self._counted_at:
                self._count += 1
                self._counted_at = time.monotonic()
            count = max(1, self._count)
        if count >= self._patience.tries:
            raise error
        if asked_s is not None:
            return asked_s
        if error.code in _AT_ONCE and count == 1:
            return 0.0
        spread = random.uniform(0.75, 1.25)  # noqa: S311  # keeps two clients apart, guards nothing
        return min(self._patience.backoff_s * 2.0 ** (count - 1), self._patience.longest_backoff_s) * spread

    def needs_address(self, error: CivmanError) -> bool:
        """Whether the next try should ask CivitAI for a fresh address."""
        return error.code not in _ADDRESS_IS_GOOD or self._count > _SAME_ADDRESS_TRIES

    def _asked_s(self, error: CivmanError) -> float | None:
        header = error.facts.get("retry_after")
        seconds = retry_after_s(header, datetime.now(UTC)) if isinstance(header, str) else None
        if seconds is not None and seconds > self._patience.longest_retry_after_s:
            raise NetworkError(
                f"{error.message}; it asks to wait {seconds:.0f} s",
                code=error.code,
                hint="go on then; what has arrived is kept",
                retry_after=header if isinstance(header, str) else None,
            ) from error
        return seconds
