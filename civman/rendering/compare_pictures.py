"""Is it the same picture? The verdict that a replay ends with, and what may be behind it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

CLOSE_DB: Final = 40.0
"""PSNR from which on nobody sees a difference. Source: the usual bound for visually lossless images."""
_TITLES = {"civman": "civman", "threads": "threads", "capability": "instruction set", "attention": "attention backend"}


class Verdict(StrEnum):
    """How a picture made again compares with the one that was."""

    IDENTICAL = "identical"
    CLOSE = "close"
    DIFFERENT = "different"
    MADE = "made"
    """There was nothing to compare it with."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two pictures of one size are apart: PSNR in dB (None: equal), the largest difference of 0 … 255."""

    psnr_db: float | None
    largest: int
    share: float
    """Of the pixels, those that differ."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One part of the environment that is not what it was; None: not recorded."""

    what: str
    then: str | int | None
    now: str | int | None

    def __str__(self) -> str:
        then, now = ("not recorded" if value is None else str(value) for value in (self.then, self.now))
        return f"{_TITLES.get(self.what, self.what)}: {then} then, {now} now"


def distance(one: Any, other: Any) -> Distance | None:
    """How far (H, W, 3) uint8 arrays are apart; None where their sizes differ."""
    import numpy as np

    if one.shape != other.shape:
        return None
    gap = np.abs(one.astype(np.int16) - other.astype(np.int16))
    error = float(np.mean(gap.astype(np.float64) ** 2))
    psnr = None if error == 0 else 10 * math.log10(255**2 / error)
    return Distance(psnr, int(gap.max()), float(np.mean(gap.max(axis=2) > 0)))


def judge(same_digest: bool, apart: Distance | None) -> Verdict:
    """The verdict on pixels; without a distance there is no telling close from different."""
    if same_digest:
        return Verdict.IDENTICAL
    if apart is not None and (apart.psnr_db is None or apart.psnr_db >= CLOSE_DB):
        return Verdict.CLOSE
    return Verdict.DIFFERENT


def differences(then: Mapping[str, str | int], now: Mapping[str, str | int]) -> tuple[Difference, ...]:
    """What is not as it was, by name."""
    return tuple(
        Difference(name, then.get(name), now.get(name))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    )
