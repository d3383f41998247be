"""How the faces in a finished image are restored, as requested and in a recipe."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.errors import Cause, UsageError

METHODS: Final = ("codeformer", "gfpgan")
WEIGHT: Final = 0.5
"""A1111's default for how much of a face's own details CodeFormer keeps."""
_WEIGHT: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class FaceRestoration:
    """The restoration of faces in a recipe: a method of `METHODS`, and the three models that it needs, by SHA-256.

    `weight`: how much of a face's own details CodeFormer keeps, 0 to 1; GFPGAN has no weight.
    """

    method: str
    model: Sha256
    detector: Sha256
    parser: Sha256
    weight: float = WEIGHT


def faces_from(text: str) -> tuple[str, float | None]:
    """Parse "codeformer", "codeformer:0.7", "gfpgan" or a ref of a model with or without a weight.

    Returns the method or ref, and the weight (None if not given). Raises: UsageError (`bad-value`).
    """
    name, colon, rest = text.strip().rpartition(":")
    if not colon or not name or not _WEIGHT.fullmatch(rest):
        name, rest = text.strip(), ""
    weight = float(rest) if rest else None
    if not name or (weight is not None and not 0 <= weight <= 1):
        raise UsageError(
            f"`{text}` is not a way to restore faces: expected codeformer, codeformer:WEIGHT with a weight from 0 "
            "to 1, or gfpgan",
            code=Cause.BAD_VALUE,
        )
    if weight is not None and name.casefold() == "gfpgan":
        raise UsageError(
            "face restoration with GFPGAN has no weight",
            hint="leave out the weight, or use CodeFormer, such as codeformer:0.7",
            code=Cause.BAD_VALUE,
        )
    return name, weight


def face_problems(faces: Any) -> Iterator[str]:
    """Explain why a restoration cannot be computed, with one clause for each problem."""
    if faces.method not in METHODS:
        yield f"faces are restored by {' or '.join(METHODS)}, not by `{faces.method}`"
    if not 0 <= faces.weight <= 1:
        yield "the weight of face restoration must be between 0 and 1"
