"""Enlarges an image with an upscaler model as A1111 does: in overlapping tiles, in up to three passes.

Source: A1111 1.8 to 1.10. The image is cut into tiles of 192 pixels that overlap by 8; each result is rounded to 8
bits, and overlaps are blended linearly. SwinIR's tiles are not rounded, and their overlaps are averaged. The model gets
the channels in the order blue, green, red.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from civman.diffusion.upscaler_models import AnyUpscaler
from civman.domain.recipes.enlargement import OVERLAP, TILE, Enlargement

OnTile = Callable[[int, int], None]
"""A function called after each tile with (the number of finished tiles, the number of tiles in the pass)."""


def _ignore(done: int, count: int) -> None:
    """Do nothing: the progress is not reported."""


_MOST_PASSES: Final = 3
_EVEN: Final = 8
"""A1111 rounds the size of an enlarged image down to a multiple of this number."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an image is cut into tiles.

    `tile`: the side of a tile in pixels; 0: no tiles. `overlap`: how many pixels neighbouring tiles overlap. `on_tile`
    receives the progress, and may raise an exception to stop.
    """

    tile: int = TILE
    overlap: int = OVERLAP
    on_tile: OnTile = _ignore


A1111: Final = Tiling()
"""A1111's default tile size and overlap."""


def enlarge(image: Any, model: AnyUpscaler, width: int, height: int, tiling: Tiling = A1111) -> Any:
    """Run the model up to three times, until the Pillow image has at least this width and height, or stops growing."""
    for _ in range(_MOST_PASSES):
        before = image.size
        image = in_tiles(image, model, tiling)
        if image.size == before or (image.width >= width and image.height >= height):
            break
    return image


def scaled(image: Any, scale: float, method: str, upscale: Callable[[Any, int, int], Any] | None) -> Any:
    """Enlarge a Pillow image by a factor as A1111's upscalers do; the size is rounded down to multiples of 8 pixels.

    `upscale` runs an upscaler model until the image has at least this size. Without it, the image is resized by
    `method`, "lanczos" or "nearest". If the result has another size, it is resized once more with Lanczos.
    """
    size = int(image.width * scale), int(image.height * scale)
    even = size[0] // _EVEN * _EVEN, size[1] // _EVEN * _EVEN
    way = Image.Resampling.NEAREST if method == "nearest" else Image.Resampling.LANCZOS
    image = upscale(image, *even) if upscale is not None else image.resize(size, way)
    return image if image.size == even else image.resize(even, Image.Resampling.LANCZOS)


def upscaled(image: Any, made: Enlargement, model: AnyUpscaler | None, on_tile: OnTile = _ignore) -> Any:
    """Enlarge a Pillow image (RGB or RGBA) as `made` specifies; `model` is the upscaler model that `made` names.

    The result has the size `made.final_size`. The alpha channel is enlarged separately with the same upscaler, as a
    grey image whose three channels are averaged afterwards; the colours of transparent areas are kept.
    """
    if image.mode == "RGBA":
        colours = upscaled(image.convert("RGB"), made, model, on_tile)
        alpha = upscaled(Image.merge("RGB", [image.getchannel("A")] * 3), made, model, on_tile)
        mean = np.asarray(alpha).mean(axis=2).round().astype(np.uint8)
        colours.putalpha(Image.fromarray(mean))
        return colours
    way = Image.Resampling.NEAREST if made.method == "nearest" else Image.Resampling.LANCZOS
    if model is not None:
        image = enlarge(image, model, made.width, made.height, Tiling(made.tile, made.overlap, on_tile))
    if image.size != (made.width, made.height):
        image = image.resize((made.width, made.height), way)
    width, height = made.final_size
    left, top = (made.width - width) // 2, (made.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


def tiles_of(width: int, height: int, tiling: Tiling = A1111) -> int:
    """Return the number of tiles of the first pass over an image of this size."""
    return len(_tiled(width, tiling)) * len(_tiled(height, tiling))


def in_tiles(image: Any, model: AnyUpscaler, tiling: Tiling = A1111) -> Any:
    """Run the model once over a Pillow image, in tiles."""
    if model.kind == "swinir":
        return _averaged(image, model, tiling)
    if not tiling.tile:
        result = _run(image, model)
        tiling.on_tile(1, 1)
        return result
    scale, tile = model.scale, tiling.tile
    overlap, count = tiling.overlap * scale, tiles_of(image.width, image.height, tiling)
    whole = Image.new("RGB", (image.width * scale, image.height * scale))
    done = 0
    for top in _tiled(image.height, tiling):
        row = Image.new("RGB", (whole.width, tile * scale))
        for left in _tiled(image.width, tiling):
            part = _run(image.crop((left, top, left + tile, top + tile)), model)
            lay(row, part, left * scale, overlap, is_across=True)
            done += 1
            tiling.on_tile(done, count)
        lay(whole, row, top * scale, overlap, is_across=False)
    return whole


def _tiled(length: int, tiling: Tiling) -> list[int]:
    return starts(length, tiling.tile, tiling.overlap) if tiling.tile else [0]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """List where tiles of `tile` pixels begin along one side of an image, spread evenly with at least this overlap.

    The last tile ends at the image's edge; if the side is shorter than a tile, it begins before 0.
    """
    count = -(-(length - overlap) // (tile - overlap))
    step = (length - tile) / (count - 1) if count > 1 else 0
    found = [int(number * step) for number in range(max(count, 1))]
    return [length - tile if start + tile >= length else start for start in found]


def _run(tile: Any, model: AnyUpscaler) -> Any:
    return _image(model(_pixels(tile, model))[0])


def _averaged(image: Any, model: AnyUpscaler, tiling: Tiling) -> Any:
    """Run the model once over an image in square tiles, and average the overlaps.

    The tiles are no larger than the image's shorter side.
    """
    pixels, scale = _pixels(image, model), model.scale
    wide, high = image.size
    if tiling.tile:
        wide = high = min(tiling.tile, wide, high)
    result = torch.zeros(3, image.height * scale, image.width * scale, device=pixels.device)
    counts = torch.zeros_like(result[0])
    tops, lefts = _even_starts(image.height, high, tiling), _even_starts(image.width, wide, tiling)
    done = 0
    for top in tops:
        for left in lefts:
            rows, columns = slice(top * scale, (top + high) * scale), slice(left * scale, (left + wide) * scale)
            result[:, rows, columns] += model(pixels[..., top : top + high, left : left + wide])[0]
            counts[rows, columns] += 1
            done += 1
            tiling.on_tile(done, len(tops) * len(lefts))
    return _image(result.div_(counts))


def _even_starts(length: int, tile: int, tiling: Tiling) -> list[int]:
    return [*range(0, length - tile, max(tile - tiling.overlap, 1)), length - tile]


def _pixels(image: Any, model: AnyUpscaler) -> torch.Tensor:
    """Convert a Pillow image to (1, 3, H, W) in 0 … 1 on the model's device, in the order blue, green, red."""
    array = np.ascontiguousarray(np.asarray(image)[:, :, ::-1].transpose(2, 0, 1))
    device = next(iter(model.tensors.values())).device
    return torch.from_numpy(array).float()[None].to(device) / 255


def _image(pixels: torch.Tensor) -> Any:
    """Convert (3, H, W) in 0 … 1, in the order blue, green, red, to a Pillow image."""
    array = (pixels.clamp(0, 1).cpu().numpy() * 255.0).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[::-1].transpose(1, 2, 0)))


def lay(onto: Any, tile: Any, at: int, overlap: int, *, is_across: bool) -> None:
    """Paste a tile onto an image, beginning at pixel `at` from the left if `is_across`, else from the top.

    The first `overlap` pixels of the tile are blended linearly with the image, unless the tile begins at the image's
    edge.
    """
    place = (at, 0) if is_across else (0, at)
    if at == 0 or not overlap:
        onto.paste(tile, place)
        return
    ramp = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    length = tile.height if is_across else tile.width
    mask = np.tile(ramp, (length, 1)) if is_across else np.tile(ramp[:, None], (1, length))
    box = (0, 0, overlap, length) if is_across else (0, 0, length, overlap)
    onto.paste(tile.crop(box), place, mask=Image.fromarray(mask))
    rest = (overlap, 0, *tile.size) if is_across else (0, overlap, *tile.size)
    onto.paste(tile.crop(rest), (at + overlap, 0) if is_across else (0, at + overlap))
