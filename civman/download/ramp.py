"""How many connections a transfer uses: when to add some, how many, and when to stop adding.

Where each connection is throttled, eight bring eight times as much as one, and three times as many may follow. Where
the network or this computer is the limit, more connections only get in each other's way. So connections are added in
steps, and each step is measured before the next: it must have brought at least a third of its share.

Everything here is a value: no clock, no threads, no I/O.
"""

from dataclasses import dataclass, replace
from typing import Self

_FIRST_STEP = 8
"""How many connections there are after the first step."""
_ALONE_S = 0.05
"""How long the first connection is measured, from its first response on."""
_MEASURED_S = 0.08
"""How long the connections are measured after a step."""
_RESPONSES = 4
"""Both times last at least this many response times: connections to distant servers gather speed slowly."""
_LEAST_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Reading:
    """What a transfer looks like at one moment. `spare_spans`: pieces of the file that no connection works on."""

    now: float
    received_bytes: int
    connections: int
    spare_spans: int


@dataclass(frozen=True, slots=True)
class Ramp:
    """The state between two decisions. Methods that change something return a new value."""

    most: int
    """The largest number of connections."""
    is_fixed: bool = False
    """Whether the user chose the number: then all of them are opened in one step."""
    began: float | None = None
    """When the current measurement began; None before the first response."""
    began_bytes: int = 0
    measured_s: float = _ALONE_S
    """How long the current measurement lasts at least."""
    before_connections: int = 0
    """How many connections there were before the last step; 0: the next step need not justify the last one."""
    before_rate: float = 0.0
    """The bytes per second of those connections."""

    def begin(self, now: float, received_bytes: int) -> Self:
        """The first response has arrived: start measuring."""
        return replace(self, began=now, began_bytes=received_bytes)

    def is_due(self, now: float, response_s: float) -> bool:
        """Whether the current measurement has lasted long enough; `response_s` is how long a request waits."""
        return self.began is not None and now - self.began >= max(self.measured_s, _RESPONSES * response_s)

    def decide(self, reading: Reading) -> tuple[Self, int]:
        """End a measurement: the next state, and how many connections to add now (0: none)."""
        if self.began is None or reading.now <= self.began:
            return self, 0
        rate = (reading.received_bytes - self.began_bytes) / (reading.now - self.began)
        after = replace(self, began=reading.now, began_bytes=reading.received_bytes, measured_s=_MEASURED_S)
        more = self._more(reading) if self._has_paid(reading.connections, rate) else 0
        if more > 0:
            after = replace(after, before_connections=reading.connections, before_rate=rate)
        return after, more

    def after_failure(self) -> Self:
        """A connection failed: with fewer of them, or after a pause, more may pay again."""
        return replace(self, before_connections=0, before_rate=0.0)

    def limited_to(self, most: int) -> Self:
        """The server refused a connection: use at most `most` (at least one) from now on."""
        return replace(self, most=max(1, most))

    def _has_paid(self, connections: int, rate: float) -> bool:
        growth = connections / max(1, self.before_connections) - 1
        return rate >= self.before_rate * (1 + growth * _LEAST_SHARE)

    def _more(self, reading: Reading) -> int:
        step = reading.spare_spans if self.is_fixed else max(2 * reading.connections, _FIRST_STEP - reading.connections)
        return max(0, min(self.most - reading.connections, step, reading.spare_spans))
