"""How a file is downloaded: the number of connections, the speed limit, and how slow a connection may be."""

from dataclasses import dataclass

from civman.domain.timeouts import PATIENT, Patience
from civman.download.rate_limit import RateLimit
from civman.errors import Cause, NetworkError

_LIMITED_BYTES_PER_S = 1_000_000
"""With a speed limit, the number of connections is the limit divided by this many bytes per second, at least one."""


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """The connections, speed limit and timeouts for downloading one file."""

    max_connections: int | None = None
    """The number of connections that the user chose; None: as many as make the download faster, up to `most`."""
    most: int = 24
    limit: RateLimit | None = None
    patience: Patience = PATIENT

    @property
    def connections(self) -> int:
        """The maximum number of connections."""
        if self.max_connections is not None:
            return self.max_connections
        if self.limit is not None:
            return max(1, min(self.most, int(self.limit.bytes_per_s / _LIMITED_BYTES_PER_S)))
        return self.most


class StallDetector:
    """Detects a connection that still sends data, but too slowly to be useful."""

    def __init__(self, options: TransferOptions, host: str, now: float) -> None:
        slowest = 1024.0 if options.limit is None else min(1024.0, options.limit.bytes_per_s / 32)
        self._window_s, self._host = options.patience.crawl_s, host
        self._least_bytes = slowest * self._window_s
        self._since, self._bytes = now, 0

    def count(self, count: int, now: float) -> None:
        """Record that `count` bytes arrived.

        Raises: NetworkError: too few bytes arrived in the last `crawl_s` seconds.
        """
        self._bytes += count
        if now - self._since >= self._window_s:
            if self._bytes < self._least_bytes:
                raise NetworkError(f"`{self._host}` is sending almost no data", code=Cause.STALLED, host=self._host)
            self._since, self._bytes = now, 0
