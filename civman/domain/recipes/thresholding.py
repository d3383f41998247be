"""Dynamic thresholding of the guided prediction ("CFG fix"): its settings, and their form on the command line.

Source: mcmonkeyprojects/sd-dynamic-thresholding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from civman.errors import Cause, UsageError

MODES: Final = (
    "Constant", "Linear Down", "Cosine Down", "Half Cosine Down", "Linear Up", "Cosine Up", "Half Cosine Up",
    "Power Up", "Power Down", "Linear Repeating", "Cosine Repeating", "Sawtooth",
)  # fmt: skip
"""The ways in which a scale can change during the steps, under the extension's names."""


@dataclass(frozen=True, slots=True)
class Thresholding:
    """Guide with the recipe's scale, then fit the result to the value range of the lower scale `mimic_scale`.

    `percentile` (0 to 100) of the values decides which outliers are cut off. Both scales may start from a minimum and
    change during the steps as a mode of `MODES` describes; `power` is the exponent of the Power modes and the frequency
    of the repeating modes. `counts_calls`: the modes count model evaluations; otherwise they count steps, as in A1111
    before 1.6.
    """

    mimic_scale: float = 7.0
    percentile: float = 100.0
    mimic_mode: str = "Constant"
    mimic_minimum: float = 0.0
    cfg_mode: str = "Constant"
    cfg_minimum: float = 0.0
    power: float = 4.0
    per_channel: bool = True
    starts_at_mean: bool = True
    """Whether the values are scaled around their mean instead of around zero."""
    by_deviation: bool = False
    """Whether the value ranges are compared by standard deviation instead of by largest value."""
    phi: float = 1.0
    """The weight of the thresholded result in the final prediction, 0 to 1; the rest is the plain guided prediction."""
    counts_calls: bool = True


def uses_power(found: Thresholding) -> bool:
    """Whether one of the modes depends on `power`."""
    return any(
        "Power" in mode or "Repeating" in mode or mode == "Sawtooth" for mode in (found.mimic_mode, found.cfg_mode)
    )


def problems(found: Thresholding) -> Iterator[str]:
    """Explain which settings of dynamic thresholding are out of range."""
    numbers = (found.mimic_scale, found.mimic_minimum, found.cfg_minimum, found.power, found.percentile, found.phi)
    if not all(math.isfinite(number) for number in numbers):
        yield "the numbers of dynamic thresholding must be finite"
    if not 0 <= found.percentile <= 100 or not 0 <= found.phi <= 1:
        yield "the percentile of dynamic thresholding must be 0 to 100, and its phi 0 to 1"
    for mode in (found.mimic_mode, found.cfg_mode):
        if mode not in MODES:
            yield f"`{mode}` is not a mode of dynamic thresholding; the modes are {', '.join(MODES)}"


def thresholding_of(text: str) -> Thresholding | None:
    """Parse settings of dynamic thresholding, such as "7,percentile=99.5,cfg_mode=Half Cosine Up".

    The first one is the mimic scale. Returns None for "off". Raises: UsageError (`bad-value`).
    """
    if text.strip().casefold() in ("", "off"):
        return None
    first, *others = text.split(",")
    values = {"mimic_scale": first}
    for other in others:
        name, _, value = other.partition("=")
        values[name.strip().replace("-", "_").replace(" ", "_")] = value
    known = {field.name: field.default for field in fields(Thresholding)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"dynamic thresholding has no setting `{name}`", hint=f"choose from these settings: {', '.join(known)}",
                code=Cause.BAD_VALUE,
            )  # fmt: skip
        made[name] = _value(name, value.strip(), known[name])
    return replace(Thresholding(), **made)


def text_of(found: Thresholding) -> str:
    """Write settings in the form that `thresholding_of` parses."""
    usual = Thresholding()
    others = [field.name for field in fields(found) if getattr(found, field.name) != getattr(usual, field.name)]
    words = [f"{name}={getattr(found, name)}" for name in others if name != "mimic_scale"]
    return ",".join([f"{found.mimic_scale:g}", *words])


def _value(name: str, text: str, usual: object) -> object:
    if isinstance(usual, str):
        return next((mode for mode in MODES if mode.casefold() == text.casefold()), text)
    if isinstance(usual, bool):
        if text.casefold() not in ("true", "false", "yes", "no"):
            raise UsageError(f"`{name}={text}` is not valid: expected yes or no", code=Cause.BAD_VALUE)
        return text.casefold() in ("true", "yes")
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"`{name}={text}` is not valid: expected a number", code=Cause.BAD_VALUE) from error
