"""An additional checkpoint in a recipe, for the second pass or as the refiner."""

from dataclasses import dataclass

from civman.domain.digests import Sha256


@dataclass(frozen=True, slots=True)
class CheckpointUse:
    """A second checkpoint in a recipe: its digest, prediction type, and whether it was trained with zero terminal SNR.

    The prediction type is "epsilon" or "v_prediction".
    """

    sha256: Sha256
    prediction: str
    is_zero_snr: bool
