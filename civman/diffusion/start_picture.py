"""Prepares an img2img start image and its mask, and composites the preserved part over the result.

8-bit pixels are processed with Pillow in the same order as in A1111's web UI, so that the pixels are the same: Lanczos
resizing, Gaussian mask blur, the preserved part composited over the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from civman.diffusion.pixels import Pixels, composite, latent_mask, resized, to_tensor
from civman.domain.recipes.recipe import StartImage
from civman.errors import Cause, UsageError

_BLUR_REACH = 2.5
"""The reach of the mask's Gaussian blur on each side, in standard deviations."""
_FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""The layers of the masked content "fill": (radius of a Gaussian blur, number of times the blurred image is
composited).
"""


@dataclass(frozen=True, slots=True)
class StartPicture:
    """A start image ready to be encoded by the VAE.

    `image`: (1, 3, H, W) in -1 … 1 at the render size, or at its own size for a latent upscale. `mask`: (1, 1, h, w), 1
    where latents are inpainted. `hidden`: (1, 1, H, W), 1 where the image is hidden from an inpainting checkpoint.
    `put_back`: composites the preserved part over the rendered pixels (8-bit pixels, or values in 0 … 1 in version 1 of
    the recipe rules).
    """

    image: Tensor
    mask: Tensor | None = None
    hidden: Tensor | None = None
    put_back: Callable[[Any], Any] | None = None


def prepare(start: StartImage, size: tuple[int, int], picture: Pixels, mask: Pixels | None) -> StartPicture:
    """Prepare a start image by the current recipe rules (version 2 and later).

    Raises: UsageError (`empty-mask`): only the masked area is to be rendered, but the mask is empty.
    """
    from PIL import Image  # imported here, because importing Pillow takes 0.1 s and txt2img does not need it

    image, modes = Image.fromarray(picture), (start.resize_mode, "resize and fill")
    if mask is None:
        if start.resize_mode == "just resize (latent upscale)":
            return StartPicture(to_tensor(picture))
        return StartPicture(to_tensor(np.asarray(fitted(image, size, start.resize_mode))))
    whole = Image.fromarray(blurred(mask, start.mask_blur))
    box = None
    if start.only_masked:
        whole, box = _region(start, whole, image.size, size)
        shown = fitted(whole.crop(box), size, modes[1]).convert("L")
        laid = whole
        image_here = fitted(image.crop(box), size, modes[1])
    else:
        shown = fitted(whole, size, modes[0]).convert("L")
        laid = Image.fromarray(np.clip(np.asarray(shown).astype(np.float32) * 2, 0, 255).astype(np.uint8))
        image = image_here = fitted(image, size, modes[0])
    kept = _kept_part(image, laid)
    if start.masked_content != "original":
        image_here = _filled(image_here, shown)
    small = shown.convert("RGB").resize((size[0] // 8, size[1] // 8))
    latents = torch.from_numpy(np.around(np.asarray(small).astype(np.float32)[:, :, 0] / 255))[None, None]
    hidden = torch.round(torch.from_numpy(np.asarray(shown).astype(np.float32) / 255))[None, None]
    return StartPicture(
        to_tensor(np.asarray(image_here)), latents, hidden, lambda drawn: _laid_over(drawn, kept, box)
    )  # fmt: skip


def cropped_to_region(
    control: Pixels, mode: str, start: StartImage, mask: Pixels, image_size: tuple[int, int], size: tuple[int, int]
) -> Pixels:
    """Crop a control image to the region of the input image that is redrawn; return it at the render size `size`.

    The control image is first resized to the input image's size, by the resize mode `mode` of A1111's img2img.

    Source: A1111's ControlNet extension, "crop input image based on A1111 mask" (the rule).
    """
    from PIL import Image

    _, box = _region(start, Image.fromarray(blurred(mask, start.mask_blur)), image_size, size)
    whole = fitted(Image.fromarray(control), image_size, mode)
    return np.asarray(fitted(whole.crop(box), size, "resize and fill"))


def _region(
    start: StartImage, mask: Any, image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[Any, tuple[int, int, int, int]]:
    """Resize a blurred Pillow mask to the input image's size, and find the region that is redrawn."""
    from PIL import Image

    whole = mask if mask.size == image_size else mask.resize(image_size, Image.Resampling.LANCZOS)
    return whole, region(whole, start.padding, size)


def prepare_1(start: StartImage, size: tuple[int, int], picture: Pixels, mask: Pixels | None) -> StartPicture:
    """Prepare a start image by version 1 of the recipe rules: the mask is blurred only for the final compositing."""
    width, height = size
    image = to_tensor(resized(picture, width, height))
    if mask is None:
        return StartPicture(image)
    painted = resized(mask, width, height)
    hidden = (torch.from_numpy(painted.copy()).float() / 255).round()[None, None]

    def put_back(pixels: Tensor) -> Tensor:
        return composite(pixels, image[0].to(pixels.device) / 2 + 0.5, painted, start.mask_blur)

    return StartPicture(image, latent_mask(painted, width // 8, height // 8), hidden, put_back)


def blurred(mask: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Blur a mask with a Gaussian along each row, then along each column, rounding to 8 bits after each."""
    if radius <= 0:
        return mask
    reach = int(_BLUR_REACH * radius + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * radius**2))
    weights /= weights.sum()
    for axis in (1, 0):
        wide = [(0, 0), (0, 0)]
        wide[axis] = (reach, reach)
        # the mode "reflect" does not repeat the edge pixel; if the blur reaches beyond the opposite edge, it reflects
        # again
        padded = np.pad(mask.astype(np.float64), wide, mode="reflect")
        size = mask.shape[axis]
        total = np.zeros(mask.shape)
        for place, weight in enumerate(weights):
            total += weight * (padded[:, place : place + size] if axis else padded[place : place + size])
        mask = np.rint(total).clip(0, 255).astype(np.uint8)
    return mask


def region(mask: Any, padding: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Find the padded bounding box of a Pillow mask's white area, widened to the aspect ratio of `size` if it fits.

    Raises: UsageError (`empty-mask`): the mask has no white area.
    """
    box = mask.getbbox()
    if box is None:
        raise UsageError(
            "the mask selects nothing", hint="paint the area to inpaint white in the mask", code=Cause.EMPTY_MASK
        )
    width, height = mask.size
    left, top, right, bottom = (
        max(box[0] - padding, 0), max(box[1] - padding, 0), min(box[2] + padding, width), min(box[3] + padding, height)
    )  # fmt: skip
    shape = size[0] / size[1]
    if (right - left) / (bottom - top) > shape:
        top, bottom = _widened(top, bottom, int((right - left) / shape - (bottom - top)), height)
    else:
        left, right = _widened(left, right, int((bottom - top) * shape - (right - left)), width)
    return left, top, right, bottom


def _widened(begin: int, end: int, more: int, limit: int) -> tuple[int, int]:
    """Widen an interval by `more` in total, shift it into 0 … `limit`, and clip it."""
    begin, end = begin - more // 2, end + more - more // 2
    if end >= limit:
        begin, end = begin - (end - limit), limit
    if begin < 0:
        begin, end = 0, end - begin
    return begin, min(end, limit)


def fitted(image: Any, size: tuple[int, int], mode: str) -> Any:
    """Resize a Pillow image or mask; `mode`: stretch it, crop it to the aspect ratio, or extend its edges."""
    from PIL import Image

    width, height = size
    if mode == "just resize":
        return image.resize(size, Image.Resampling.LANCZOS)
    crops = mode == "crop and resize"
    wider = width * image.height > image.width * height
    narrower = width * image.height < image.width * height
    across = width if (wider if crops else narrower) else image.width * height // image.height
    down = height if not (wider if crops else narrower) else image.height * width // image.width
    inner = image.resize((across, down), Image.Resampling.LANCZOS)
    left, top = width // 2 - across // 2, height // 2 - down // 2
    whole = Image.new("RGB", size)
    whole.paste(inner, (left, top))
    if not crops and narrower and top > 0:
        whole.paste(inner.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        whole.paste(inner.resize((width, top), box=(0, inner.height, width, inner.height)), (0, top + down))
    elif not crops and wider and left > 0:
        whole.paste(inner.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        whole.paste(inner.resize((left, height), box=(inner.width, 0, inner.width, height)), (left + across, 0))
    return whole


def _filled(image: Any, mask: Any) -> Any:
    """Fill the masked part of an image with blurred surrounding colours, as for A1111's masked content "fill"."""
    from PIL import Image, ImageFilter, ImageOps

    result, around = Image.new("RGBA", image.size), Image.new("RGBa", image.size)
    around.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    for radius, times in _FILLS:
        layer = around.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(layer)
    return result.convert("RGB")


def _kept_part(image: Any, mask: Any) -> Any:
    """Copy the image and make the copy transparent where the mask is white: only the part to preserve remains."""
    from PIL import Image, ImageOps

    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return kept.convert("RGBA")


def _laid_over(drawn: Pixels, kept: Any, box: tuple[int, int, int, int] | None) -> Pixels:
    """Composite the preserved part over the rendered image.

    If only the region `box` was rendered, the rendered image is first pasted into this region.
    """
    from PIL import Image

    result = Image.fromarray(drawn)
    if box is not None:
        base = Image.new("RGBA", kept.size)
        base.paste(fitted(result, (box[2] - box[0], box[3] - box[1]), "crop and resize"), box[:2])
        result = base
    result = result.convert("RGBA")
    result.alpha_composite(kept)
    return np.asarray(result.convert("RGB"))
