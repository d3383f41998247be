"""Finished pictures as files that tell of their making, named by what they show, never written over another."""

import os
import re
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
from civman.system.move_files import remove_file, replace_file
from civman.system.path_rules import name_room, require_file_name, require_room

FORMATS = ("png", "jpeg", "webp")
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_WORDS, _WORDS_LENGTH = 6, 60
_NO_WORDS = 40
"""Bytes of a name without words of the prompt: the seed, eight digits of the digest, the suffix."""


class EmbeddedMetadata(StrEnum):
    """How much of the metadata is written into a picture."""

    ALL = "all"
    NO_PROMPTS = "no-prompts"
    """Settings and the recipe's digest, no prompts: only the library that made the picture can replay it."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How pictures are written. `format` None: as the file's name says, else PNG; `quality`: of JPEG and WebP."""

    format: str | None = None
    quality: int | None = None
    metadata: EmbeddedMetadata = EmbeddedMetadata.ALL


class Place:
    """Where the pictures of one command go: a folder, or one file that gets numbers from the second picture on."""

    def __init__(self, output: Path, options: OutputOptions = OutputOptions()) -> None:
        """Raises: UsageError: the name and the format say different things. StoreError: the folder cannot be made."""
        output = output.expanduser()
        said = image_text.SUFFIXES.get(output.suffix.lower())
        is_file = bool(said) and not output.is_dir()
        if output.suffix.lower() in (".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl") and not output.is_dir():
            raise UsageError(f"pictures are kept as PNG, JPEG or WebP, not as `{output.suffix}`", code=Cause.BAD_FORMAT)
        if options.format not in (None, *FORMATS):
            raise UsageError(f"`{options.format}` is no format", hint="one of png, jpeg, webp", code=Cause.BAD_FORMAT)
        if is_file and options.format not in (None, said):
            raise UsageError(
                f"`{output.name}` is the name of a {said}, not of a {options.format}", code=Cause.BAD_FORMAT
            )
        if options.quality is not None and not 1 <= options.quality <= 100:
            raise UsageError(f"quality is 1 to 100, not {options.quality}", code=Cause.BAD_FORMAT)
        self._format: image_text.Format = (said if is_file and said else None) or _known(options.format)
        if options.quality is not None and self._format == "png":
            raise UsageError("a PNG has no quality: it loses nothing", code=Cause.BAD_FORMAT)
        self._options = options
        self._file = output if is_file else None
        self.folder = output.parent if self._file else output
        if is_file:
            require_file_name(output)
        self._room = name_room(output.parent, MOST_BYTES) if is_file else require_room(output, _NO_WORDS, MOST_BYTES)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error, self.folder) from error

    def keep(self, pixels: Any, record: Record) -> Path:
        """Write a picture whole under a name that was free, and give its path.

        Raises: StoreError. UsageError: the format cannot hold the picture or what it is to tell.
        """
        data = picture_bytes(pixels, record, self._format, self._options)
        room = self._room if self._options.metadata is EmbeddedMetadata.ALL else _NO_WORDS
        name = self._file.name if self._file else _name(record, _SUFFIXES[self._format], room)
        return keep_new(self.folder, name, data)


def picture_bytes(
    pixels: Any,
    record: Record,
    format: image_text.Format,  # noqa: A002
    options: OutputOptions = OutputOptions(),
) -> bytes:
    """(H, W, 3) uint8 as a file with its metadata. The same pixels and record give the same bytes."""
    if options.metadata is EmbeddedMetadata.NOTHING:
        return image_text.write(pixels, record=None, parameters=None, format=format, quality=options.quality)
    has_words = options.metadata is EmbeddedMetadata.ALL
    own = record.to_json() if has_words else stripped(record)
    parameters = record_text.parameters(record, with_words=has_words)
    return image_text.write(pixels, record=own, parameters=parameters, format=format, quality=options.quality)


def keep_new(folder: Path, name: str, data: bytes) -> Path:
    """Write a file whole under `name`, or with the first number that is free, and give its path. Raises: StoreError."""
    try:
        path = _reserved(folder, name)
        try:
            _write(path, data)
        except BaseException:
            remove_file(path, missing_ok=True)
            raise
    except OSError as error:
        raise store_error(error, folder / name) from error
    return path


def _known(name: str | None) -> image_text.Format:
    formats: dict[str, image_text.Format] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}
    return formats[name or "png"]


def _name(record: Record, suffix: str, most_bytes: int) -> str:
    words = "-".join(re.findall(r"\w+", record.recipe.prompt)[:_WORDS])[:_WORDS_LENGTH]
    words = words.encode()[: max(0, most_bytes - _NO_WORDS)].decode("utf-8", "ignore")
    return safe_name(f"{record.seed}-{words}-{record.recipe.sha256[:8]}{suffix}".replace("--", "-"))


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
        replace_file(Path(name), path)
    except BaseException:
        remove_file(Path(name), missing_ok=True)
        raise
