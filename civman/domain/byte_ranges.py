"""A set of half-open byte ranges, which records the parts of a file that are present."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Sorted, disjoint, non-adjacent ranges `[start, end)` of bytes.

    Not thread-safe: the owner must hold a lock.
    """

    __slots__ = ("_ends", "_starts", "total_bytes")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total_bytes = 0
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add `[start, end)`, merging it with ranges that overlap or touch it. Raises: ValueError: not a range."""
        if start < 0 or end < start:
            raise ValueError(f"not a byte range: {start}-{end}")
        if start == end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        joined = sum(self._ends[first:last]) - sum(self._starts[first:last])
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self.total_bytes += end - start - joined

    @property
    def frontier(self) -> int:
        """The length of the contiguous range that starts at byte 0."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, stop: int, *, start: int = 0) -> list[tuple[int, int]]:
        """List the gaps in `[start, stop)`, in order."""
        gaps = []
        at = start
        for index in range(bisect_right(self._ends, start), len(self._starts)):
            low, high = self._starts[index], self._ends[index]
            if low >= stop:
                break
            if low > at:
                gaps.append((at, low))
            at = high
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def copy(self) -> "Ranges":
        """Create an independent set with the same ranges."""
        twin = Ranges()
        twin._starts, twin._ends, twin.total_bytes = self._starts[:], self._ends[:], self.total_bytes
        return twin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"
