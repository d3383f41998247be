"""Finished pictures as files: PNGs that carry their recipe, named by what they show, never written over another."""

import io
import os
import re
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from civman.domain.names import safe_name
from civman.domain.recipe import Recipe
from civman.errors import UsageError
from civman.store.partial import store_error

KEYWORD = "civman"
"""Of the iTXt chunk that holds the recipe's canonical JSON."""
_WORDS = 6


def png_bytes(pixels: Any, recipe: Recipe) -> bytes:
    """(H, W, 3) uint8 as a PNG that carries the recipe. The same pixels and recipe give the same bytes."""
    from PIL import Image  # 0.1 s, when there is a picture
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_itxt(KEYWORD, recipe.to_json())
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", pnginfo=notes)
    return data.getvalue()


class Place:
    """Where the pictures of one command go: a folder, or one file that gets numbers from the second picture on."""

    def __init__(self, output: Path) -> None:
        """Raises: UsageError: no PNG is meant. StoreError: the folder cannot be made."""
        output = output.expanduser()
        suffix = output.suffix.lower()
        if suffix in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff") and not output.is_dir():
            raise UsageError(f"pictures are kept as PNG, not as `{suffix}`", hint="name a folder or a .png file")
        self._file = output if suffix == ".png" and not output.is_dir() else None
        self.folder = output.parent if self._file else output
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def keep(self, data: bytes, recipe: Recipe, seed: int) -> Path:
        """Write a picture whole under a name that was free, and give its path. Raises: StoreError."""
        name = self._file.name if self._file else _name(recipe, seed)
        try:
            path = _reserved(self.folder, name)
            try:
                _write(path, data)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise store_error(error, self.folder / name) from error
        return path


def _name(recipe: Recipe, seed: int) -> str:
    words = re.findall(r"\w+", recipe.prompt)[:_WORDS]
    return safe_name(f"{seed}-{'-'.join(words)[:60]}-{recipe.sha256[:8]}.png".replace("--", "-"))


def _reserved(folder: Path, name: str) -> Path:
    """An empty file that was not there before: `name`, else with the first number that is free."""
    for path in _numbered(folder, name):
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        return path
    raise AssertionError("numbers do not end")


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    stem, _, suffix = name.rpartition(".")
    yield from (folder / f"{stem}-{number}.{suffix}" for number in count(2))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half a picture."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".civman-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).chmod(path.stat().st_mode & 0o777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
