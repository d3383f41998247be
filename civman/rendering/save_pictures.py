"""Saves pictures as files with embedded metadata, named after their prompt. Never overwrites another file."""

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any

from civman.domain.file_names import MOST_BYTES, safe_name
from civman.domain.recipes.record import Record, stripped
from civman.errors import Cause, UsageError
from civman.pictures import image_text, record_text
from civman.store.partial import store_error
from civman.system.file_links import hard_link
from civman.system.move_files import remove_file, replace_file
from civman.system.path_rules import name_room, require_file_name, require_room

FORMATS = ("png", "jpeg", "webp")
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_WORDS, _WORDS_LENGTH = 6, 60
_NO_WORDS = 40
"""The length in bytes of a generated file name without words of the prompt: seed, eight hash digits, suffix."""


class EmbeddedMetadata(StrEnum):
    """How much metadata to embed in a picture."""

    ALL = "all"
    NO_PROMPTS = "no-prompts"
    """Embed settings and the recipe's SHA-256, but no prompts. Only the library that made the picture can replay it."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How pictures are saved.

    `format`: the image format; None derives it from the output file's suffix, or else uses PNG. `quality`: for JPEG and
    WebP only.
    """

    format: str | None = None
    quality: int | None = None
    metadata: EmbeddedMetadata = EmbeddedMetadata.ALL


class Place:
    """Where a command saves its pictures: in a folder, or as a file (with a number from the second picture on)."""

    def __init__(self, output: Path, options: OutputOptions = OutputOptions()) -> None:
        """Check the output folder or file name, and create the folder.

        Raises: UsageError: the file name's suffix and `format` disagree. StoreError: the folder cannot be created or
        written.
        """
        output = output.expanduser()
        said = image_text.SUFFIXES.get(output.suffix.lower())
        is_file = bool(said) and not output.is_dir()
        if output.suffix.lower() in (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl") and not output.is_dir():
            raise UsageError(
                f"pictures are saved as PNG, JPEG or WebP, not as `{output.suffix}`", code=Cause.BAD_FORMAT
            )
        if options.format not in (None, *FORMATS):
            raise UsageError(
                f"`{options.format}` is not a supported format",
                hint="choose one of: png, jpeg, webp",
                code=Cause.BAD_FORMAT,
            )
        if is_file and options.format not in (None, said):
            raise UsageError(
                f"`{output.name}` has the suffix of a {said} file, but --format is {options.format}",
                code=Cause.BAD_FORMAT,
            )
        if options.quality is not None and not 1 <= options.quality <= 100:
            raise UsageError(f"the quality must be between 1 and 100, not {options.quality}", code=Cause.BAD_FORMAT)
        self.format: image_text.Format = (said if is_file and said else None) or _known(options.format)
        if options.quality is not None and self.format == "png":
            raise UsageError("PNG is lossless and has no quality setting", code=Cause.BAD_FORMAT)
        self.options = options
        self._file = output if is_file else None
        self.folder = output.parent if self._file else output
        if is_file:
            require_file_name(output)
        self._room = name_room(output.parent, MOST_BYTES) if is_file else require_room(output, _NO_WORDS, MOST_BYTES)
        _require_writable(self.folder)

    def keep(self, pixels: Any, record: Record) -> Path:
        """Save a picture under a free file name and return its path.

        Raises: StoreError. UsageError: the format cannot store the picture or its metadata.
        """
        data = picture_bytes(pixels, record, self.format, self.options)
        room = self._room if self.options.metadata is EmbeddedMetadata.ALL else _NO_WORDS
        name = self._file.name if self._file else _name(record, _SUFFIXES[self.format], room)
        return keep_new(self.folder, name, data)

    def keep_bytes(self, data: bytes, stem: str) -> Path:
        """Save the bytes of an image file in `format`, and return its path.

        In a folder, the file is named `stem` plus the suffix; if that name is taken, the first free number is appended.
        Raises: StoreError.
        """
        name = safe_name(f"{stem}{_SUFFIXES[self.format]}", most_bytes=max(self._room, _NO_WORDS))
        return keep_new(self.folder, self._file.name if self._file else name, data)


def _require_writable(folder: Path) -> None:
    """Create the output folder, and a temporary file in it, to detect an unusable path before minutes of sampling.

    Raises: StoreError: the folder or file cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".civman-")
        os.close(descriptor)
        remove_file(Path(name))
    except OSError as error:
        wrong = store_error(error, folder)
        wrong.hint = "choose another file or folder with --output"
        raise wrong from error


def picture_bytes(
    pixels: Any,
    record: Record,
    format: image_text.Format,  # noqa: A002
    options: OutputOptions = OutputOptions(),
) -> bytes:
    """Encode (H, W, 3) uint8 pixels as an image file with metadata. The same pixels and record give the same bytes."""
    if options.metadata is EmbeddedMetadata.NOTHING:
        return image_text.write(pixels, record=None, parameters=None, format=format, quality=options.quality)
    has_words = options.metadata is EmbeddedMetadata.ALL
    own = record.to_json() if has_words else stripped(record)
    parameters = record_text.parameters(record, with_words=has_words)
    return image_text.write(pixels, record=own, parameters=parameters, format=format, quality=options.quality)


def keep_new(folder: Path, name: str, data: bytes) -> Path:
    """Write a complete new file as `name`, with the first free number appended if that name is taken. Returns its path.

    The file gets its name when it is complete, so a process that is killed leaves no incomplete or empty file under it.
    Raises: StoreError.
    """
    unnamed = folder / f".civman-{secrets.token_hex(8)}"
    try:
        try:
            with unnamed.open("xb") as file:
                file.write(data)
            return _named(unnamed, folder, name)
        finally:
            remove_file(unnamed, missing_ok=True)
    except OSError as error:
        raise store_error(error, folder / name) from error


def _known(name: str | None) -> image_text.Format:
    formats: dict[str, image_text.Format] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}
    return formats[name or "png"]


def _name(record: Record, suffix: str, most_bytes: int) -> str:
    words = "-".join(re.findall(r"\w+", record.recipe.prompt)[:_WORDS])[:_WORDS_LENGTH]
    words = words.encode()[: max(0, most_bytes - _NO_WORDS)].decode("utf-8", "ignore")
    return safe_name(f"{record.seed}-{words}-{record.recipe.sha256[:8]}{suffix}".replace("--", "-"))


def _named(unnamed: Path, folder: Path, name: str) -> Path:
    """Give a file the first free name among `name` and its numbered forms, and return the path."""
    for path in _numbered(folder, name):
        try:
            hard_link(unnamed, path)
        except FileExistsError:
            continue
        except OSError:  # the file system has no hard links
            return _renamed(unnamed, folder, name)
        return path
    raise AssertionError("unreachable: there is always a free number")


def _renamed(unnamed: Path, folder: Path, name: str) -> Path:
    """Like `_named`, for file systems without hard links: an empty file reserves the name, and is then replaced."""
    for path in _numbered(folder, name):
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        try:
            replace_file(unnamed, path)
        except BaseException:
            remove_file(path, missing_ok=True)
            raise
        return path
    raise AssertionError("unreachable: there is always a free number")


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    stem, _, suffix = name.rpartition(".")
    yield from (folder / f"{stem}-{number}.{suffix}" for number in count(2))
