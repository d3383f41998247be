"""Compares a replayed picture with the original, and lists changes of the environment that may explain a difference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

CLOSE_DB: Final = 40.0
"""The PSNR in dB above which differences are invisible: the usual bound for visually lossless images."""
_TITLES = {"civman": "civman", "threads": "threads", "capability": "instruction set", "attention": "attention backend"}
_IMPLIED: Final = {"engine": "eager", "compiler": ""}
"""The values that environment facts had before civman recorded them, to compare with older records."""


class Verdict(StrEnum):
    """How a replayed picture compares with the original."""

    IDENTICAL = "identical"
    CLOSE = "close"
    DIFFERENT = "different"
    MADE = "made"
    """There is no original to compare the picture with."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How much two pictures of the same size differ.

    `psnr_db`: None if they are equal. `largest`: the largest difference between two channel values, from 0 to 255.
    """

    psnr_db: float | None
    largest: int
    share: float
    """The fraction of the pixels that differ, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact about the environment that differs: `then` for the original, `now` for the replay.

    A value of None means that the fact was not recorded.
    """

    what: str
    then: str | int | None
    now: str | int | None

    def __str__(self) -> str:
        then, now = ("not recorded" if value is None else str(value) for value in (self.then, self.now))
        return f"{_TITLES.get(self.what, self.what)}: {then} for the original, {now} for the replay"


def distance(one: Any, other: Any) -> Distance | None:
    """Measure the difference between two (H, W, 3) uint8 arrays; None if their sizes differ."""
    import numpy as np

    if one.shape != other.shape:
        return None
    gap = np.abs(one.astype(np.int16) - other.astype(np.int16))
    error = float(np.mean(gap.astype(np.float64) ** 2))
    psnr = None if error == 0 else 10 * math.log10(255**2 / error)
    return Distance(psnr, int(gap.max()), float(np.mean(gap.max(axis=2) > 0)))


def judge(same_digest: bool, apart: Distance | None) -> Verdict:
    """Return the verdict on a replayed picture: DIFFERENT if the pixels differ and their distance is unknown."""
    if same_digest:
        return Verdict.IDENTICAL
    if apart is not None and (apart.psnr_db is None or apart.psnr_db >= CLOSE_DB):
        return Verdict.CLOSE
    return Verdict.DIFFERENT


def differences(then: Mapping[str, str | int], now: Mapping[str, str | int]) -> tuple[Difference, ...]:
    """List the facts that differ between two environments, sorted by name."""
    then, now = {**_IMPLIED, **then}, {**_IMPLIED, **now}
    return tuple(
        Difference(name, then.get(name), now.get(name))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    )
