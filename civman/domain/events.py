"""Progress as values. The library tells, callers show; nothing here prints.

Every event of a transfer carries `key`, one string per file for the length of a command.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A transfer begins: `held_bytes` of `total_bytes` are already proven on disk from an earlier attempt."""

    key: str
    name: str
    total_bytes: int | None
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """`count_bytes` more have been written to disk."""

    key: str
    count_bytes: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing moves for a reason: another process has the file, a rate limit, a back-off."""

    key: str
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was held is of no use and the transfer starts from nothing."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verifying:
    """`done_bytes` of `total_bytes` have been read back from disk and hashed."""

    key: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The file is proven and stored."""

    key: str
    name: str
    size_bytes: int
    was_present: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The file will not come; `message` is for people."""

    key: str
    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know that is no failure."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """The model has finished `step` of `steps` of one pass over pictures `first` … `first + pictures - 1` of `count`.

    `stage` is "first" or "hires".
    """

    key: str
    step: int
    steps: int
    first: int = 1
    pictures: int = 1
    count: int = 1
    stage: str = "first"


Event = Started | Received | Waiting | Restarted | Verifying | Finished | Failed | Notice | Step
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""
