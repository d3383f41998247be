"""A speed limit shared by every connection of a command."""

import re
import threading
import time

from civman.errors import UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?(?:/s)?", re.IGNORECASE)
_BURST_S = 0.1


class RateLimit:
    """At most `bytes_per_s` over all threads that ask."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._next = 0.0

    @property
    def burst_bytes(self) -> int:
        """The most that one read should ask for."""
        return max(1024, int(self.bytes_per_s * _BURST_S))

    def spend(self, count: int) -> float:
        """Take note of `count` bytes read; the seconds to wait before the next ones."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - _BURST_S) + count / self.bytes_per_s
            return max(0.0, self._next - now)


def parse_rate(text: str) -> float:
    """Bytes per second that `text` means: "5M" and "5MB/s" are 5,000,000, "5MiB" 5 x 2^20. Raises: UsageError."""
    match = _RATE.fullmatch(text.strip())
    step = 1024 if match and match[3] else 1000
    rate = float(match[1]) * step ** " kmgt".index(match[2].lower() or " ") if match else 0.0
    if rate < 1:
        raise UsageError(f"not a speed: `{text}`", hint="write it like 500K, 20M or 20MiB, in bytes per second")
    return rate
