"""Contact sheets: images in labelled rows and columns, saved as one PNG that lists the recipes of its cells.

A sheet has no recipe of its own and is never treated as a rendered image.
"""

import io
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from civman.domain.recipes.recipe_json import canonical, read_json
from civman.errors import Cause, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

KEYWORD: Final = "civman-grid"
"""The keyword of the PNG text in which a sheet lists its axes and the recipes of its cells."""
SCHEMA: Final = 1
_LEAST_SIDE: Final = 128
"""The minimum length in pixels of a cell's longer side. Smaller images are enlarged by an integer factor (nearest
neighbour).
"""
_MOST_PIXELS: Final = 24_000_000
"""The maximum number of pixels of a sheet.

The cells of a larger sheet are scaled down; the images saved for the cells keep their size.
"""
_MOST_ACROSS: Final = 8
"""The maximum number of cells in a row if the sheet has only one axis."""
_GAP: Final = 6
_HEADER_LINES: Final = 3
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (95, 95, 95)
_SPELT: Final = {"×": "x", "→": "->", "–": "-", "—": "-", "−": "-", "’": "'", "ß": "ss", "ø": "o", "ł": "l"}
"""ASCII replacements for characters that Pillow's built-in font lacks."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of an axis: what varies, and the values in order."""

    title: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """The axes of a sheet as (name, values), and the SHA-256 of the recipe of each cell, row by row."""

    axes: tuple[tuple[str, tuple[str, ...]], ...]
    recipes: tuple[tuple[str, ...], ...]

    @property
    def cells(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield for each cell its labels ("name=value", …) and its recipe's SHA-256."""
        for row, digests in enumerate(self.recipes):
            for column, digest in enumerate(digests):
                places = zip(self.axes, (column, row), strict=False)
                yield tuple(f"{name}={values[place]}" for (name, values), place in places), digest

    def to_json(self) -> str:
        """Convert to canonical JSON text, which `contents` parses."""
        axes = [{"name": name, "values": values} for name, values in self.axes]
        text = canonical({"civman_grid": SCHEMA, "axes": axes, "recipes": self.recipes})
        return text.encode(errors="replace").decode()  # replace lone surrogates, which come from file names


def contents(entries: Mapping[str, str]) -> Contents | None:
    """Parse the contents of a sheet from an image's text entries; None if the image is not a sheet.

    Raises: UsageError (`bad-grid`): the entry is damaged, or a newer civman wrote it.
    """
    if KEYWORD not in entries:
        return None
    try:
        value: Any = read_json(entries[KEYWORD])
        if value["civman_grid"] == SCHEMA:
            axes = tuple((str(axis["name"]), tuple(map(str, axis["values"]))) for axis in value["axes"])
            told = Contents(axes, tuple(tuple(map(str, row)) for row in value["recipes"]))
            _ = list(told.cells)  # iterating raises IndexError if there are fewer labels than cells
            return told
    except (UsageError, KeyError, IndexError, TypeError) as error:
        raise UsageError("the list of cells in this contact sheet is damaged", code=Cause.BAD_GRID) from error
    raise UsageError(
        "this contact sheet was written by a newer version of civman", hint="update civman", code=Cause.BAD_GRID
    )


def as_png(pixels: Any, told: Contents | None) -> bytes:
    """Encode a sheet, (H, W, 3) uint8, as a PNG with its contents `told`. The same input gives the same bytes."""
    from PIL import Image  # importing Pillow takes 0.1 s, so it is imported only to write an image
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    if told is not None:
        notes.add_itxt(KEYWORD, told.to_json())
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", pnginfo=notes)
    return data.getvalue()


def drawn(rows: Sequence[Sequence[Any]], across: Labels, down: Labels | None = None) -> Any:
    """Arrange (H, W, 3) uint8 images of any size into one contact sheet: `across` labels the columns, `down` the rows.

    Without `down` there is a single row, wrapped if it is long. Small cells are upscaled (nearest neighbour) to at
    least 128 px; large ones are shrunk if the sheet would exceed 24 megapixels. Cells of different sizes keep their
    proportions.
    """
    import numpy as np
    from PIL import Image  # importing Pillow takes 0.1 s, so it is imported only to draw an image

    images = [[Image.fromarray(pixels) for pixels in row] for row in rows]
    layout = _Layout(images, across, down)
    return np.asarray(layout.draw())


class _Layout:
    """Computes the position of every part of a sheet, in pixels, and draws the sheet."""

    def __init__(self, images: "list[list[Image]]", across: Labels, down: Labels | None) -> None:
        from PIL import ImageFont

        self._across, self._down, self._images = across, down, images
        width, height = (max(getattr(each, side) for row in images for each in row) for side in ("width", "height"))
        self._factor = _factor(width, height, sum(map(len, images)))
        self._cell = (max(1, round(width * self._factor)), max(1, round(height * self._factor)))
        size = max(16, min(64, max(self._cell) // 22))
        self._font = _font(ImageFont, size)
        self._line = sum(self._font.getmetrics())
        values = _readable(across.values, self._font)
        self._columns = [_wrapped(each, self._font, self._cell[0], _HEADER_LINES) for each in values]
        self._rows: list[list[str]] = []
        self._gutter, self._corner = 0, [""]
        if down is not None:
            self._place_rows(down)
        count = len(across.values)
        lines = 1 if down else math.ceil(count / _MOST_ACROSS)
        self._each = math.ceil(count / lines)
        wide = max(self._each * (self._cell[0] + _GAP) - _GAP, 12 * self._line)
        self._title = _wrapped(_readable([across.title], self._font)[0], self._font, wide, _HEADER_LINES)

    def _place_rows(self, down: Labels) -> None:
        most = max(self._cell[0], 8 * self._line)
        values, (title,) = _readable(down.values, self._font), _readable([down.title], self._font)
        lines = max(1, self._cell[1] // self._line)
        self._corner = _wrapped(title, self._font, most, _HEADER_LINES)
        self._rows = [_wrapped(each, self._font, most, lines) for each in values]
        widest = max(self._font.getlength(line) for label in (*self._rows, self._corner) for line in label)
        self._gutter = math.ceil(widest) + 2 * _GAP

    def draw(self) -> "Image":
        """Draw the sheet from its images and labels."""
        from PIL import Image, ImageDraw

        header = max(len(label) for label in (*self._columns, self._corner)) * self._line + _GAP
        starts = range(0, len(self._across.values), self._each)
        blocks = len(starts)
        across, down = self._cell[0] + _GAP, self._cell[1] + _GAP
        titled = len(self._title) * self._line + _GAP
        wide = max(self._each * across, math.ceil(max(map(self._font.getlength, self._title))))
        height = titled + blocks * (header + len(self._images) * down) + 2 * _GAP
        sheet = Image.new("RGB", (self._gutter + wide + 2 * _GAP, height), _PAPER)
        pen = ImageDraw.Draw(sheet)
        left = self._gutter + _GAP
        self._write(pen, self._title, (left, _GAP), self._each * across - _GAP, _FAINT)
        y = titled
        for start in starts:
            self._write(pen, self._corner, (_GAP, y + header - _GAP - len(self._corner) * self._line), None, _FAINT)
            for column, label in enumerate(self._columns[start : start + self._each]):
                top = y + header - _GAP - len(label) * self._line
                self._write(pen, label, (left + column * across, top), self._cell[0], _INK)
            for row, images in enumerate(self._images):
                top = y + header + row * down
                if self._rows:
                    middle = top + max(0, (self._cell[1] - len(self._rows[row]) * self._line) // 2)
                    self._write(pen, self._rows[row], (_GAP, middle), None, _INK)
                for column, image in enumerate(images[start : start + self._each]):
                    self._paste(sheet, image, (left + column * across, top))
            y += header + len(self._images) * down
        return sheet

    def _paste(self, sheet: "Image", image: "Image", corner: tuple[int, int]) -> None:
        from PIL import Image

        size = (max(1, round(image.width * self._factor)), max(1, round(image.height * self._factor)))
        if size != image.size:
            how = Image.Resampling.NEAREST if self._factor > 1 else Image.Resampling.LANCZOS
            image = image.resize(size, how)
        x, y = ((box - side) // 2 for box, side in zip(self._cell, size, strict=True))
        sheet.paste(image, (corner[0] + x, corner[1] + y))

    def _write(
        self, pen: "ImageDraw", lines: Sequence[str], corner: tuple[int, int], width: int | None,
        colour: tuple[int, int, int],
    ) -> None:  # fmt: skip
        """Draw lines of text below each other, centred in `width` unless it is None."""
        x, y = corner
        for line in lines:
            free = max(0, width - self._font.getlength(line)) / 2 if width else 0
            pen.text((x + free, y), line, font=self._font, fill=colour)
            y += self._line


def _factor(width: int, height: int, cells: int) -> float:
    if max(width, height) < _LEAST_SIDE:
        return math.ceil(_LEAST_SIDE / max(width, height))
    return min(1.0, math.sqrt(_MOST_PIXELS / (width * height * cells)))


def _font(module: Any, size: int) -> "FreeTypeFont":
    font: FreeTypeFont = module.load_default(size=size)
    return font


def _readable(values: Sequence[str], font: "FreeTypeFont") -> list[str]:
    """Replace characters that the font lacks with boxes; if there are any, number the values to keep them distinct."""
    missing = _picture(font, "\U0010fffe")
    found, is_whole = [], True
    for value in values:
        plain = " ".join(value.encode(errors="replace").decode().split()) or "(none)"
        folded = unicodedata.normalize("NFKD", "".join(_SPELT.get(char, char) for char in plain))
        letters = ""
        for char in folded:
            if unicodedata.combining(char) or unicodedata.category(char) == "Cf":
                continue
            is_known = char == " " or (char.isprintable() and _picture(font, char) != missing)
            is_whole &= is_known
            letters += char if is_known else "\U0010fffe"
        found.append(letters)
    if is_whole or len(values) == 1:
        return found
    return [f"({number}) {text}" for number, text in enumerate(found, 1)]


def _picture(font: "FreeTypeFont", char: str) -> tuple[tuple[int, int], bytes]:
    mask: Any = font.getmask(char)
    return mask.size, bytes(mask)


def _wrapped(text: str, font: "FreeTypeFont", width: int, most: int) -> list[str]:
    """Wrap the text into at most `most` lines of at most `width`, at spaces if possible. Cut text ends in "…"."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < most:
        if font.getlength(rest) <= width:
            return [*lines, rest]
        fits = max(1, _fitting(rest, font, width))
        cut = rest.rfind(" ", 1, fits + 1)
        cut = cut if cut > fits // 3 else fits
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    if rest and lines:
        last = lines[-1]
        lines[-1] = last[: _fitting(last, font, width - font.getlength("…"))].rstrip() + "…"
    return lines or [""]


def _fitting(text: str, font: "FreeTypeFont", width: float) -> int:
    """Count how many characters at the start of the text fit into `width`."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low
