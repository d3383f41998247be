"""FreeU: factors for the features in a UNet's decoder half and for its skip connections."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from civman.errors import Cause, UsageError

_USUAL: Final = {"v1": (1.1, 1.2, 0.9, 0.2), "v2": (1.3, 1.4, 0.9, 0.2)}


@dataclass(frozen=True, slots=True)
class FreeU:
    """The settings of FreeU.

    `b1` and `b2` multiply half of the features at the two widest levels of the decoder half, `s1` and `s2` the lowest
    frequencies of the skip connections there. `version` "v2" scales the features by their own mean.

    Sources: Si et al. 2023, "FreeU"; ComfyUI's nodes FreeU and FreeU_V2.
    """

    version: str
    b1: float
    b2: float
    s1: float
    s2: float

    def __str__(self) -> str:
        return ",".join([self.version, *(f"{number:g}" for number in (self.b1, self.b2, self.s1, self.s2))])


def freeu_of(text: str) -> FreeU | None:
    """Parse "v1" or "v2", optionally with the factors b1, b2, s1 and s2: "v2,1.3,1.4,0.9,0.2"; "off" gives None.

    Raises: UsageError (`bad-value`).
    """
    version, *others = (word.strip().casefold() for word in text.split(","))
    if version in ("", "off") and not others:
        return None
    try:
        numbers = tuple(float(word) for word in others) or _USUAL[version]
        if version in _USUAL and len(numbers) == 4:
            return FreeU(version, *numbers)
    except (ValueError, KeyError):
        pass
    raise UsageError(
        f"`{text}` is not a setting of FreeU", hint="write v1 or v2, or v2,1.3,1.4,0.9,0.2 with b1, b2, s1 and s2",
        code=Cause.BAD_VALUE,
    )  # fmt: skip


def problems(found: FreeU) -> Iterator[str]:
    """Explain which of FreeU's settings are out of range."""
    if found.version not in _USUAL:
        yield f"FreeU's version `{found.version}` is not one of {', '.join(_USUAL)}"
    if not all(math.isfinite(number) and 0 <= number <= 10 for number in (found.b1, found.b2, found.s1, found.s2)):
        yield "the factors of FreeU must be 0 to 10"
