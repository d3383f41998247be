"""Decides how many connections a transfer uses: when to add some, how many, and when to stop.

If the server throttles each connection, eight connections are eight times as fast as one, and adding more makes the
download faster. If the network or this computer is the bottleneck, more connections only compete with each other. So
connections are added in steps, and each step is measured before the next: the step must have brought at least a
third of the ideal gain, which is a speed that grows in proportion to the number of connections.

Everything here is a plain value: no clock, no threads, no I/O.
"""

from dataclasses import dataclass, replace
from typing import Self

_FIRST_STEP = 8
"""The number of connections after connections were added for the first time."""
_ALONE_S = 0.05
"""How long the download speed of the first connection is measured, in seconds after its first response."""
_MEASURED_S = 0.08
"""How long the download speed is measured after connections were added, in seconds."""
_RESPONSES = 4
"""Every measurement lasts at least this many response times, because distant connections speed up slowly."""
_LEAST_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of a transfer at one moment.

    `spare_spans`: the number of pieces of the file that no connection is downloading.
    """

    now: float
    received_bytes: int
    connections: int
    spare_spans: int


@dataclass(frozen=True, slots=True)
class Ramp:
    """The measurements so far, on which the next decision is based. Immutable: methods return the next state."""

    most: int
    """The maximum number of connections."""
    is_fixed: bool = False
    """Whether the user chose the number of connections. Then all of them are opened in one step."""
    began: float | None = None
    """When the current measurement began; None before the first response."""
    began_bytes: int = 0
    """The bytes received in total when the current measurement began."""
    measured_s: float = _ALONE_S
    """The minimum duration of the current measurement."""
    before_connections: int = 0
    """The number of connections before the last ones were added; 0 if it need not be checked whether adding them
    helped.
    """
    before_rate: float = 0.0
    """The total speed, in bytes per second, that was reached before the last connections were added."""

    def begin(self, now: float, received_bytes: int) -> Self:
        """Start measuring, because the first response has arrived."""
        return replace(self, began=now, began_bytes=received_bytes)

    def is_due(self, now: float, response_s: float) -> bool:
        """Whether the current measurement has lasted long enough.

        `response_s`: how long a request waits for its response.
        """
        return self.began is not None and now - self.began >= max(self.measured_s, _RESPONSES * response_s)

    def decide(self, reading: Reading) -> tuple[Self, int]:
        """End a measurement. Returns the next state, and how many connections to add now (0: none)."""
        if self.began is None or reading.now <= self.began:
            return self, 0
        rate = (reading.received_bytes - self.began_bytes) / (reading.now - self.began)
        after = replace(self, began=reading.now, began_bytes=reading.received_bytes, measured_s=_MEASURED_S)
        more = self._more(reading) if self._has_paid(reading.connections, rate) else 0
        if more > 0:
            after = replace(after, before_connections=reading.connections, before_rate=rate)
        return after, more

    def after_failure(self) -> Self:
        """Record that a connection failed: new ones may then be added without checking if the last ones helped."""
        return replace(self, before_connections=0, before_rate=0.0)

    def limited_to(self, most: int) -> Self:
        """Limit the connections to `most` (at least one) from now on, because the server refused one."""
        return replace(self, most=max(1, most))

    def _has_paid(self, connections: int, rate: float) -> bool:
        growth = connections / max(1, self.before_connections) - 1
        return rate >= self.before_rate * (1 + growth * _LEAST_SHARE)

    def _more(self, reading: Reading) -> int:
        step = reading.spare_spans if self.is_fixed else max(2 * reading.connections, _FIRST_STEP - reading.connections)
        return max(0, min(self.most - reading.connections, step, reading.spare_spans))
