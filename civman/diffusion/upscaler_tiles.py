"""Enlarge an image with an upscaler model as A1111 does: in overlapping tiles, in up to three passes.

Source: A1111 1.8 to 1.10. The image is cut into tiles of 192 pixels that overlap by 8; each is rounded to 8 bits, and
the overlaps are blended linearly. Tiles of SwinIR keep their precision, and the overlaps are their mean. The model sees
blue, green and red in this order.
"""

from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from civman.diffusion.upscaler_models import AnyUpscaler

TILE: Final = 192
OVERLAP: Final = 8
_MOST_PASSES: Final = 3


def enlarge(image: Any, model: AnyUpscaler, width: int, height: int) -> Any:
    """Run the model up to three times, until the Pillow image is at least as large as wanted."""
    for _ in range(_MOST_PASSES):
        before = image.size
        image = in_tiles(image, model)
        if image.size == before or (image.width >= width and image.height >= height):
            break
    return image


def tiles_of(width: int, height: int) -> int:
    """Return the number of tiles of the first pass over an image of this size."""
    return len(_starts(width)) * len(_starts(height))


def in_tiles(image: Any, model: AnyUpscaler) -> Any:
    """Run the model once over an image."""
    if model.kind == "swinir":
        return _averaged(image, model)
    scale = model.scale
    whole = Image.new("RGB", (image.width * scale, image.height * scale))
    for top in _starts(image.height):
        row = Image.new("RGB", (whole.width, TILE * scale))
        for left in _starts(image.width):
            tile = _run(image.crop((left, top, left + TILE, top + TILE)), model)
            _lay(row, tile, left * scale, 0, OVERLAP * scale, is_across=True)
        _lay(whole, row, top * scale, 1, OVERLAP * scale, is_across=False)
    return whole


def _starts(length: int) -> list[int]:
    """List where tiles begin along one side.

    The last one ends at the edge, or begins before it if the side is short.
    """
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    step = (length - TILE) / (count - 1) if count > 1 else 0
    found = [int(number * step) for number in range(max(count, 1))]
    return [length - TILE if start + TILE >= length else start for start in found]


def _run(tile: Any, model: AnyUpscaler) -> Any:
    return _image(model(_pixels(tile, model))[0])


def _averaged(image: Any, model: AnyUpscaler) -> Any:
    """Run the model once over an image, in square tiles of at most its shorter side, whose overlaps are averaged."""
    pixels, scale = _pixels(image, model), model.scale
    tile = min(TILE, image.width, image.height)
    result = torch.zeros(3, image.height * scale, image.width * scale, device=pixels.device)
    counts = torch.zeros_like(result[0])
    for top in _even_starts(image.height, tile):
        for left in _even_starts(image.width, tile):
            rows, columns = (slice(at * scale, (at + tile) * scale) for at in (top, left))
            result[:, rows, columns] += model(pixels[..., top : top + tile, left : left + tile])[0]
            counts[rows, columns] += 1
    return _image(result / counts)


def _even_starts(length: int, tile: int) -> list[int]:
    return [*range(0, length - tile, tile - OVERLAP), length - tile]


def _pixels(image: Any, model: AnyUpscaler) -> torch.Tensor:
    """Convert an image to (1, 3, H, W) in 0 … 1 on the model's device, in the order blue, green, red."""
    array = np.ascontiguousarray(np.asarray(image)[:, :, ::-1].transpose(2, 0, 1))
    device = next(iter(model.tensors.values())).device
    return torch.from_numpy(array).float()[None].to(device) / 255


def _image(pixels: torch.Tensor) -> Any:
    """Convert (3, H, W) in the order blue, green, red to an image."""
    array = (pixels.clamp(0, 1).cpu().numpy() * 255.0).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[::-1].transpose(1, 2, 0)))


def _lay(onto: Any, tile: Any, at: int, axis: int, overlap: int, *, is_across: bool) -> None:
    """Paste a tile onto the image; its first `overlap` pixels are blended unless it begins at the edge."""
    place = (at, 0) if is_across else (0, at)
    if at == 0:
        onto.paste(tile, place)
        return
    ramp = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    length = tile.size[1 - axis]
    mask = np.tile(ramp, (length, 1)) if is_across else np.tile(ramp[:, None], (1, length))
    box = (0, 0, overlap, length) if is_across else (0, 0, length, overlap)
    onto.paste(tile.crop(box), place, mask=Image.fromarray(mask))
    rest = (overlap, 0, *tile.size) if is_across else (0, overlap, *tile.size)
    onto.paste(tile.crop(rest), (at + overlap, 0) if is_across else (0, at + overlap))
