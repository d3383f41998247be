"""The ControlNets in a recipe, each with its control image, its strength, and the steps in which it is applied."""

import math
from dataclasses import dataclass
from typing import Final

from civman.domain.digests import Sha256
from civman.domain.recipes.step_share import acts_at
from civman.errors import Cause, UsageError

CONTROL_MODES: Final = ("balanced", "prompt", "control")
"""A1111's control modes: balanced, "My prompt is more important" and "ControlNet is more important"."""
_Number = tuple[float, float, float]
MAPS: Final[dict[str, tuple[_Number, ...]]] = {
    "none": (), "canny": ((100, 1, 255), (200, 1, 255)), "invert": (), "blur": ((9, 0.01, 64),), "tile": ((1, 1, 8),),
    "gray": ((1, 0.1, 2),), "xdog": ((32, 1, 64),),
}  # fmt: skip
"""Maps each preprocessor to its parameters, each as (default, minimum, maximum): A1111's defaults and limits."""
_A1111_MAPS: Final = {
    "invert (from white bg & black line)": "invert", "blurgaussian": "blur", "tileresample": "tile",
    "recolorluminance": "gray", "scribblexdog": "xdog",
}  # fmt: skip
CONTROL_TYPES: Final = ("openpose", "depth", "softedge", "hardedge", "normal", "segment", "tile", "inpaint")
"""The kinds of control image that a union ControlNet distinguishes, in the order of its trained embeddings.

The first union ControlNets have six of them; "tile" and "inpaint" were added in the version called ProMax.
"""
_ALIASES: Final = {
    "pose": "openpose", "hed": "softedge", "pidi": "softedge", "scribble": "softedge", "teed": "softedge",
    "canny": "hardedge", "lineart": "hardedge", "mlsd": "hardedge", "normalmap": "normal", "seg": "segment",
    "segmentation": "segment", "blur": "tile", "repaint": "inpaint",
}  # fmt: skip
MAP_TYPES: Final = {"canny": "hardedge", "blur": "tile", "tile": "tile", "xdog": "softedge"}
"""Maps each preprocessor that makes one of the `CONTROL_TYPES` to that type."""
SOFT: Final = 0.825
"""In all modes except "balanced", the weight of each layer is this factor times the weight of the next inner layer."""
SOFT_FEATURES: Final = (0.25, 0.62, 0.825, 1.0)
"""The factors for a T2I-Adapter's features, from the outermost level inwards, in all modes except "balanced"."""


CONTROL_RESIZE_MODES: Final = ("just resize", "crop and resize", "resize and fill", "resize and pad")
"""The ways to resize a control image to the size of the rendering.

"resize and fill" extends the image by repeating its edges, as A1111's img2img does; "resize and pad" extends it with
the median colour of its border, as A1111's ControlNet extension does.
"""


@dataclass(frozen=True, slots=True)
class ControlUse:
    """A ControlNet or T2I-Adapter in a recipe.

    `sha256` is the digest of the model's file, `picture` that of the control image's file; any preprocessor was already
    applied to that image. The model is applied from `start` to `end`, given as fractions of the steps (0 to 1).
    """

    sha256: Sha256
    picture: Sha256
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    """Whether the prompt or the ControlNet is more important: one of `CONTROL_MODES`."""
    resize_mode: str = "just resize"
    """How the control image is resized to the size of the rendering; one of `CONTROL_RESIZE_MODES`."""

    type: str = ""
    """For a union ControlNet: the kind of control image, one of `CONTROL_TYPES`; "" for all other models."""

    pools: bool = False
    """Whether each output of the ControlNet is averaged over the image, and only positive prompts are controlled.

    "Shuffle" ControlNets were trained this way.
    """

    crops: bool = False
    """Whether the control image covers the whole input image, so that it is cropped to the masked region.

    If False, and in recipes before schema 20, the whole control image is stretched over the region.
    """

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether the ControlNet or T2I-Adapter is applied in step `step`, counted from 0."""
        return acts_at(self.start, self.end, step, steps)

    def weights(self, layers: int) -> tuple[float, ...]:
        """Compute the factor for the output of each layer, from the outermost layer to the middle block.

        Source: Zhang et al. 2023, guess mode in the published code. The exponents are those of an SD 1 model, counted
        from the outermost layer, so in a model with fewer layers the middle block's factor stays below 1.
        """
        if self.mode == "balanced":
            return (self.weight,) * layers
        return tuple(self.weight * SOFT ** float(12 - layer) for layer in range(layers))

    def feature_weights(self, levels: int) -> tuple[float, ...]:
        """Compute the factor for each feature map of a T2I-Adapter, from the outermost level inwards.

        Source: A1111's ControlNet extension (the rule).
        """
        if self.mode == "balanced":
            return (self.weight,) * levels
        return tuple(self.weight * factor for factor in SOFT_FEATURES[-levels:])


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A requested control image: its path, the ref of a ControlNet, and how the image is processed."""

    picture: str
    ref: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    resize_mode: str = "just resize"
    control_map: str = "none"
    """A preprocessor of `MAPS` with its parameters in the form that `map_of` parses, such as "canny:50:150"."""
    control_type: str = ""
    """The kind of control image, under any name that the function `control_type` knows; "" if not specified."""
    pools: bool | None = None
    """The value of `ControlUse.pools`; None: guess it from the name of the model's file."""
    crops: bool | None = None
    """The value of `ControlUse.crops`; None: crop if only the masked region is rendered, as A1111's extension does."""


def control_type(name: str) -> str | None:
    """Return the kind of control image that a name such as "canny" or "OpenPose" means; None if the name is unknown."""
    plain = name.casefold().replace(" ", "").replace("_", "").replace("-", "")
    found = _ALIASES.get(plain, plain)
    return found if found in CONTROL_TYPES else None


def map_named(name: str) -> str | None:
    """Return the preprocessor of `MAPS` with this name in civman or A1111, such as "tile_resample"; None if unknown."""
    plain = name.strip().casefold()
    plain = plain if plain in _A1111_MAPS else plain.replace("_", "")
    found = _A1111_MAPS.get(plain, plain)
    return found if found in MAPS else None


def map_of(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse a preprocessor with its parameters, such as "canny" or "canny:50:150".

    Raises: UsageError (`bad-value`): the preprocessor is unknown, or a parameter is outside its limits.
    """
    name, *given = text.split(":")
    found = map_named(name)
    if found is None:
        raise UsageError(
            f"`{name}` is not a preprocessor for control images",
            hint=f"choose one of: {', '.join(MAPS)}", code=Cause.BAD_VALUE,
        )  # fmt: skip
    limits = MAPS[found]
    try:
        numbers = [float(each) for each in given]
    except ValueError:
        numbers = [math.nan]
    inside = all(least <= number <= most for number, (_, least, most) in zip(numbers, limits, strict=False))
    if len(numbers) > len(limits) or not inside:
        words = " and ".join(f"{least:g} to {most:g} (default {usual:g})" for usual, least, most in limits)
        expected = f"has the parameters {words}" if limits else "has no parameters"
        raise UsageError(
            f"`{text}` is not valid: the preprocessor `{found}` {expected}",
            hint=f"write {':'.join([found, *(f'{usual:g}' for usual, _, _ in limits)])}, for example",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    return found, (*numbers, *(usual for usual, _, _ in limits[len(numbers) :]))
