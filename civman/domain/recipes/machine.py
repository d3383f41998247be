"""Where pictures are computed, and with how much memory."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that computes. `device` None: the best there is; `low_vram`: use as little of its memory as possible.

    `threads`: how many threads the CPU uses, which decides the last bit of a picture; None: as many as torch takes.
    """

    device: str | None = None
    low_vram: bool = False
    threads: int | None = None
