"""Reference images in a recipe, which are read either by an IP-Adapter or by an edit model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.step_share import acts_at

MOST: Final = 10
"""The largest weight of an IP-Adapter, positive or negative."""
LEAST: Final = 16
"""The minimum width and height in pixels to which an edit model's reference image is resized."""
LARGEST: Final = 4096
"""The maximum width and height in pixels to which an edit model's reference image is resized."""


@dataclass(frozen=True, slots=True)
class ReferenceUse:
    """An IP-Adapter and its reference image in a recipe.

    `sha256`, `encoder` and `picture` are the digests of the files of the adapter, the CLIP vision encoder and the
    image. The adapter is applied from `start` to `end`, given as fractions of the steps (0 to 1).
    """

    sha256: Sha256
    encoder: Sha256
    picture: Sha256
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    crop: tuple[int, ...] = ()
    """The part of the image that is read: left, top, width and height in pixels; empty for the whole image."""

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether the IP-Adapter is applied in step `step`, counted from 0."""
        return acts_at(self.start, self.end, step, steps)


@dataclass(frozen=True, slots=True)
class EditImage:
    """A reference image in a recipe that an edit model, such as Flux.1 Kontext, reads without an IP-Adapter.

    `sha256` is the digest of the image's file. The image is resized to `width` x `height` pixels, and the VAE encodes
    its centre, whose sides are rounded down to multiples of the family's patch size.
    """

    sha256: Sha256
    width: int
    height: int
    crop: tuple[int, ...] = ()
    """The part of the image that is resized: left, top, width and height in pixels; empty for the whole image."""


@dataclass(frozen=True, slots=True)
class ReferenceRequest:
    """A requested reference: an image's path, an IP-Adapter's ref, and how it is applied (see `ReferenceUse`).

    Without a ref, the model itself must be able to read the image (see `EditImage`).
    """

    picture: str
    ref: str = ""
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    crop: tuple[int, ...] = ()
    size: str = ""
    """The size to which the image is resized for an edit model, such as "512x768". "own" means its own size, "" the
    size that the model's family prefers for an image of its shape.
    """


def problems(recipe: Any) -> Iterator[str]:
    """Explain why the references of a recipe cannot be rendered, with one clause for each problem."""
    for use in recipe.references:
        if not math.isfinite(use.weight) or abs(use.weight) > MOST:
            yield f"the weight of an IP-Adapter must be between -{MOST} and {MOST}"
        if not 0 <= use.start <= use.end <= 1:
            yield "the start and end of an IP-Adapter must be fractions of the steps, 0 <= start <= end <= 1"
        if use.crop and (len(use.crop) != 4 or min(use.crop) < 0 or min(use.crop[2:]) < 1):
            yield "the crop of an IP-Adapter's image must be its left and top edge, width and height in pixels"
    if recipe.references and recipe.flow is not None:
        yield "IP-Adapters work with the UNets of SD 1, SD 2 and SDXL only"
    for image in recipe.edit_images:
        if not LEAST <= min(image.width, image.height) <= max(image.width, image.height) <= LARGEST:
            yield f"both sides of a reference image must be between {LEAST} and {LARGEST} pixels"
        if image.crop and (len(image.crop) != 4 or min(image.crop) < 0 or min(image.crop[2:]) < 1):
            yield "the crop of a reference image must be its left and top edge, width and height in pixels"
    if recipe.edit_images and recipe.flow is None:
        yield "only flow-matching models read reference images without an IP-Adapter"
