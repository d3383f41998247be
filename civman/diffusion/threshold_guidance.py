"""Dynamic thresholding: guides strongly, but keeps the value range that a weaker guidance would give.

Source: mcmonkeyprojects/sd-dynamic-thresholding (the rule, not its code).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from civman.domain.recipes.thresholding import Thresholding

_QUARTER_TURN = 1.5707
"""π/2, rounded as in the original extension."""
_TURN = 6.28318


def scale_at(scale: float, mode: str, minimum: float, share: float, power: float) -> float:
    """Return the guidance scale that is in effect after the fraction `share` of the steps.

    `share` is above 1 if there are more evaluations than counted steps.
    """
    if mode.endswith("Repeating") or mode == "Sawtooth":
        place = (share * power) % 1.0
    factors: dict[str, Callable[[], float]] = {
        "Constant": lambda: 1.0,
        "Linear Down": lambda: 1 - share,
        "Linear Up": lambda: share,
        "Cosine Down": lambda: math.cos(share * _QUARTER_TURN),
        "Cosine Up": lambda: 1 - math.cos(share * _QUARTER_TURN),
        "Half Cosine Down": lambda: math.cos(share),
        "Half Cosine Up": lambda: 1 - math.cos(share),
        "Power Up": lambda: share**power,
        "Power Down": lambda: 1 - share**power,
        "Linear Repeating": lambda: abs(0.5 - place) * 2,
        "Cosine Repeating": lambda: math.cos(share * _TURN * power) * 0.5 + 0.5,
        "Sawtooth": lambda: place,
    }
    return (scale - minimum) * factors[mode]() + minimum


def guided(uncond: Tensor, direction: Tensor, scale: float, found: Thresholding, share: float) -> Tensor:
    """Return uncond + scale · direction in the value range that the mimic scale gives; all (B, 4, h, w) float32."""
    mimic = scale_at(found.mimic_scale, found.mimic_mode, found.mimic_minimum, share, found.power)
    strong = scale_at(scale, found.cfg_mode, found.cfg_minimum, share, found.power)
    target, model = uncond + direction * strong, uncond + direction * mimic
    values, wanted = target.flatten(2), model.flatten(2)
    mean = values.mean(dim=2, keepdim=True)
    centred, like = values - mean, wanted - wanted.mean(dim=2, keepdim=True)
    has, may_have = _ranges(centred, like, found)
    if not found.starts_at_mean:
        made = values * (may_have / has)
    elif found.by_deviation:
        made = centred / has * may_have + mean
    else:
        most = torch.maximum(may_have, has)
        made = centred.clamp(-most, most) / most * may_have + mean
    made = made.reshape(target.shape)
    return made if found.phi == 1 else made * found.phi + target * (1 - found.phi)


def _ranges(centred: Tensor, like: Tensor, found: Thresholding) -> tuple[Tensor, Tensor]:
    """Return the value ranges of both tensors, for each channel (B, 4, 1) or for all together (0-dimensional)."""
    share = found.percentile / 100
    if found.by_deviation:
        if found.per_channel:
            return centred.std(dim=2, keepdim=True), like.std(dim=2, keepdim=True)
        return centred.std(), like.std()
    if found.per_channel:
        return torch.quantile(centred.abs(), share, dim=2, keepdim=True), like.abs().amax(dim=2, keepdim=True)
    return torch.quantile(centred.abs(), share), like.abs().max()
