"""How hard a file is fetched, and how slow a connection may be."""

from dataclasses import dataclass

from civman.domain.timeouts import PATIENT, Patience
from civman.download.rate_limit import RateLimit
from civman.errors import Cause, NetworkError

_LIMITED_BYTES_PER_S = 1_000_000
"""Under a speed limit, what one connection brings with ease."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard to try."""

    max_connections: int | None = None
    """None: as many as pay, `most` at most."""
    most: int = 24
    limit: RateLimit | None = None
    patience: Patience = PATIENT

    @property
    def connections(self) -> int:
        """How many there may be."""
        if self.max_connections is not None:
            return self.max_connections
        if self.limit is not None:
            return max(1, min(self.most, int(self.limit.bytes_per_s / _LIMITED_BYTES_PER_S)))
        return self.most


class Crawl:
    """Notices a connection that is alive and useless."""

    def __init__(self, pace: Pace, host: str, now: float) -> None:
        slowest = 1024.0 if pace.limit is None else min(1024.0, pace.limit.bytes_per_s / 32)
        self._window_s, self._host = pace.patience.crawl_s, host
        self._least_bytes = slowest * self._window_s
        self._since, self._bytes = now, 0

    def count(self, count: int, now: float) -> None:
        """Take note of `count` bytes. Raises: NetworkError: too few came in the last window."""
        self._bytes += count
        if now - self._since >= self._window_s:
            if self._bytes < self._least_bytes:
                raise NetworkError(f"`{self._host}` sends next to nothing", code=Cause.STALLED, host=self._host)
            self._since, self._bytes = now, 0
