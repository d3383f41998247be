"""Preview images: either images that models generated, or small gradients that are the same on every run."""

import hashlib
import struct
import zlib
from importlib.resources import files

from civman.demo.demo_catalog import DemoImage

_BASE83 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#$%*+,-.:;=?@[]^_{|}~"


def bytes_of(image: DemoImage) -> bytes:
    """Return the preview as PNG bytes; generated previews contain their recipe."""
    if image.drawn is None:
        return png(image.id, image.width, image.height)
    return files("civman.demo").joinpath("previews", f"{image.drawn}.png").read_bytes()


def blur_of(image: DemoImage) -> str:
    """Return the preview's BlurHash."""
    return image.blur or blur_hash(_colour(image.id))


def png(image_id: int, width: int, height: int) -> bytes:
    """Draw an 8-bit RGB PNG of this size in pixels: one colour that becomes darker towards the bottom."""
    red, green, blue = _colour(image_id)
    rows = bytearray()
    for row in range(height):
        shade = 1.0 - 0.6 * row / max(height - 1, 1)
        rows += b"\0" + bytes((int(red * shade), int(green * shade), int(blue * shade))) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(rows), 6)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def blur_hash(colour: tuple[int, int, int]) -> str:
    """Encode a colour (0 to 255) as a BlurHash with a single component. Source: BlurHash's format description."""
    red, green, blue = colour
    return "00" + _base83((red << 16) | (green << 8) | blue, 4)


def _colour(image_id: int) -> tuple[int, int, int]:
    digest = hashlib.sha256(str(image_id).encode()).digest()
    return 96 + digest[0] % 160, 96 + digest[1] % 160, 96 + digest[2] % 160


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _base83(value: int, digits: int) -> str:
    return "".join(_BASE83[value // 83 ** (digits - 1 - place) % 83] for place in range(digits))
