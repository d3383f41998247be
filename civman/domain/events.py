"""Progress events as plain values. The library emits them and callers display them; this module prints nothing.

Every event of a transfer has a `key`, which identifies the file within one command.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from civman.errors import Cause


@dataclass(frozen=True, slots=True)
class Queued:
    """A file whose transfer starts when others have finished; its size is already included in the totals."""

    key: str
    name: str
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Started:
    """A transfer starts; `held_bytes` of `total_bytes` are already on disk from an earlier attempt."""

    key: str
    name: str
    total_bytes: int | None
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """`count_bytes` more bytes have been written to disk."""

    key: str
    count_bytes: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The transfer is waiting for another process, for a rate limit or for a retry."""

    key: str
    reason: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Restarted:
    """The bytes from an earlier attempt cannot be used, and the transfer starts from zero."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verifying:
    """`done_bytes` of `total_bytes` have been read back from disk and hashed. `name` is the file's name, if known."""

    key: str
    done_bytes: int
    total_bytes: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A transfer has finished: the file is verified and stored."""

    key: str
    name: str
    size_bytes: int
    was_present: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The transfer has failed; `message` is for the user."""

    key: str
    name: str
    code: Cause
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Information for the user that is not an error."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """The sampler has finished `step` of `steps` for images `first` … `first + pictures - 1` of `count`.

    `stage` is "first" or "hires" for a pass, "redraw" for detail passes, whose steps are counted over all regions, or
    "upscale", which counts tiles; the alphabetical order of these names is the order of the stages. `preview`, if not
    None, returns the current prediction of the first image as a small JPEG; call it before the sampler continues.
    """

    key: str
    step: int
    steps: int
    first: int = 1
    pictures: int = 1
    count: int = 1
    stage: str = "first"
    preview: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)


Event = Queued | Started | Received | Waiting | Restarted | Verifying | Finished | Failed | Notice | Step
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore an event. The default for `on_event`."""
