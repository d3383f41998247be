"""The device for rendering and the limits on its resources."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that renders.

    `device` None: the best one available; `low_vram`: use as little of its memory as possible.

    `threads`: the number of CPU threads, which can change the last bit of a pixel; None: torch's default. `compiled`:
    whether to compile the model's blocks, which also changes the last bits; None: only in a replay of an image that was
    rendered with compiled blocks.
    """

    device: str | None = None
    low_vram: bool = False
    threads: int | None = None
    compiled: bool | None = None
