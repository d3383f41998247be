"""What tests of rendering share: the quickest settings, and pictures to start from."""

from pathlib import Path

QUICK = ("--size", "64x64", "--steps", "2", "--cfg", "3", "--seed", "7", "--device", "cpu", "--sampler", "Euler")


def picture(path: Path, size: tuple[int, int], *, half: bool = False) -> Path:
    """A PNG of smooth colours, or a mask whose right half is white."""
    from PIL import Image

    if half:
        image = Image.new("L", size, 0)
        image.paste(255, (size[0] // 2, 0, *size))
    else:
        across = Image.linear_gradient("L").resize(size)
        image = Image.merge("RGB", (across, across.rotate(180), across))
    image.save(path)
    return path
