"""A further checkpoint in a recipe, for the second pass or as the refiner."""

from dataclasses import dataclass

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class CheckpointUse:
    """A further checkpoint in a recipe: its digest, what it predicts, and whether it was trained to zero terminal SNR.

    The prediction is "epsilon" or "v_prediction".
    """

    sha256: Sha256
    prediction: str
    is_zero_snr: bool
