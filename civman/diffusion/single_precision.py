"""Computes tables of noise levels rounded to single precision after each operation, as the web UIs do on the CPU.

A Brownian path is queried at noise levels rounded to six digits, so a difference of one unit in a level's last place
changes the noise by about a thousandth. Plain Python is used, so that a table does not depend on the machine; torch's
own exponentials differ by one unit in the last place for about one number in a hundred.
"""

import math
import struct
from collections.abc import Callable, Sequence
from typing import Final

from civman.domain.recipes.recipe import SAMPLING

Rounded = Callable[[float], float]


def single(number: float) -> float:
    """Round to the nearest single-precision number."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def half(number: float) -> float:
    """Round to the nearest half-precision number."""
    return float(struct.unpack("e", struct.pack("e", number))[0])


def half_level(alpha: float) -> float:
    """Return the noise level of `alpha` (ᾱ, in half precision), rounded after each operation."""
    return half(math.sqrt(half(half(1 - alpha) / alpha)))


def line(start: float, end: float, count: int) -> list[float]:
    """Compute the numbers of `torch.linspace`, from each end towards the middle, rounding each number once."""
    start, end = single(start), single(end)
    if count == 1:
        return [start]
    step = single(single(end - start) / (count - 1))
    half = count // 2
    return [
        single(start + step * place) if place < half else single(end - step * (count - 1 - place))
        for place in range(count)
    ]


def level(alpha: float) -> float:
    """Convert ᾱ (`alpha`), the fraction of signal, to the noise level σ."""
    return single(math.sqrt(single(single(1 - alpha) / alpha)))


def zero_snr(alphas: Sequence[float]) -> list[float]:
    """Rescale ᾱ so that its last value is 0 (Lin et al. 2023, algorithm 1)."""
    roots = [single(math.sqrt(alpha)) for alpha in alphas]
    first, last = roots[0], roots[-1]
    factor = single(first / single(first - last))
    scaled = [single(single(root - last) * factor) for root in roots]
    return [single(root * root) for root in scaled]


def through_log(sigma: float) -> float:
    """Convert σ to its logarithm and back, rounding to single precision."""
    return single(math.exp(single(math.log(single(sigma)))))


def middle(here: float, after: float) -> float:
    """Return the midpoint of two noise levels in log σ."""
    begin, end = (-single(math.log(single(sigma))) for sigma in (here, after))
    return single(math.exp(-single(begin + single(single(end - begin) * 0.5))))


def _at(time: float, logs: Sequence[float]) -> float:
    low, high = math.floor(time), math.ceil(time)
    share = single(time - low)
    log = single(single(single(1 - share) * logs[low]) + single(share * logs[high]))
    return single(math.exp(log))


def _uniform(n: int, sigmas: Sequence[float], rounded: Rounded) -> list[float]:
    logs = [rounded(math.log(sigma)) for sigma in sigmas]
    return [_at(time, logs) for time in line(len(sigmas) - 1, 0, n)]


def _sgm(n: int, sigmas: Sequence[float], rounded: Rounded) -> list[float]:
    logs = [rounded(math.log(sigma)) for sigma in sigmas]
    return [_at(time, logs) for time in line(len(sigmas) - 1, 0, n + 1)[:-1]]


def interpolated(n: int, logs: Sequence[float], *, is_sgm: bool) -> list[float]:
    """Compute the levels at `n` evenly spaced timesteps from the logarithms of all levels, without the final 0.

    `is_sgm`: space n + 1 timesteps evenly, and leave out the last timestep.
    """
    times = line(len(logs) - 1, 0, n + 1)[:-1] if is_sgm else line(len(logs) - 1, 0, n)
    return [_at(time, logs) for time in times]


def kl_optimal(n: int, least: float, greatest: float) -> list[float]:
    """Compute ComfyUI's levels at evenly spaced angles, from the highest one to the lowest, without the final 0."""
    low, high = (single(math.atan(sigma)) for sigma in (least, greatest))
    shares = [single(place / max(n - 1, 1)) for place in range(n)]
    angles = [single(single(share * low) + single(single(1 - share) * high)) for share in shares]
    return [single(math.tan(angle)) for angle in angles]


def _karras(n: int, sigmas: Sequence[float], _: Rounded) -> list[float]:
    rho = SAMPLING.rho
    low, high = sigmas[0] ** (1 / rho), sigmas[-1] ** (1 / rho)
    width = single(low - high)
    return [single(single(single(high) + single(place * width)) ** rho) for place in line(0, 1, n)]


def _exponential(n: int, sigmas: Sequence[float], _: Rounded) -> list[float]:
    return [single(math.exp(log)) for log in line(math.log(sigmas[-1]), math.log(sigmas[0]), n)]


def _polyexponential(n: int, sigmas: Sequence[float], _: Rounded) -> list[float]:
    low = math.log(sigmas[0])
    width = single(math.log(sigmas[-1]) - low)
    return [single(math.exp(single(single(place * width) + single(low)))) for place in line(1, 0, n)]


TABLES: Final[dict[str, Callable[[int, Sequence[float], Rounded], list[float]]]] = {
    "Normal": _uniform, "Karras": _karras, "Exponential": _exponential, "Polyexponential": _polyexponential,
    "SGM Uniform": _sgm,
}  # fmt: skip
"""Maps schedules whose intermediate rounding matters to functions that compute their levels, without the final 0.

The levels of other schedules are rounded once, at the end. The last argument of each function is the function that
rounds the logarithms of the levels.
"""
