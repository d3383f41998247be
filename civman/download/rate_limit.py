"""A speed limit shared by all connections of a command."""

import re
import threading
import time

from civman.errors import UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?(?:/s)?", re.IGNORECASE)
_BURST_S = 0.1


class RateLimit:
    """Limits all threads that use it to `bytes_per_s` in total."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._next = 0.0

    @property
    def burst_bytes(self) -> int:
        """The maximum number of bytes to read at once."""
        return max(1024, int(self.bytes_per_s * _BURST_S))

    def spend(self, count: int) -> float:
        """Count `count` bytes as read. Returns the seconds to wait before the next read."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - _BURST_S) + count / self.bytes_per_s
            return max(0.0, self._next - now)


def parse_rate(text: str) -> float:
    """Parse a speed in bytes per second: "5M" and "5MB/s" are 5,000,000, "5MiB" is 5 x 2^20. Raises: UsageError."""
    match = _RATE.fullmatch(text.strip())
    step = 1024 if match and match[3] else 1000
    rate = float(match[1]) * step ** " kmgt".index(match[2].lower() or " ") if match else 0.0
    if rate < 1:
        raise UsageError(
            f"`{text}` is not a valid speed", hint="give the speed in bytes per second, such as 500K, 20M or 20MiB"
        )
    return rate
