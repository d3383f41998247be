"""The record of which files civman created in a view: a JSON file in the view's folder.

All files that it does not list belong to the user or to other programs.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from civman.domain.digests import Sha256
from civman.errors import StoreError
from civman.store.blobs import digest_of
from civman.store.partial import store_error
from civman.system.move_files import replace_file

FILE = ".civman-view.json"
_FORMAT = 1


class Method(StrEnum):
    """The ways to make a stored file available to another program, in the order in which they are tried."""

    REFLINK = "reflink"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"
    COPY = "copy"


class State(StrEnum):
    """Whether the file at an entry's path is the one that the view created, is missing, or is another file."""

    OURS = "ours"
    MISSING = "missing"
    FOREIGN = "foreign"
    """Another file is at the path, or the file's contents have changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the view. `inode` is 0 if an error occurred before the file was created."""

    path: str
    """The path relative to the view's folder, with slashes."""
    of: Sha256
    """The SHA-256 of the model file: this file itself or, for a companion file, the model file that it belongs to."""
    kind: str
    """"model" for a model file, otherwise the kind of companion file, such as "preview"."""
    size_bytes: int
    sha256: Sha256
    method: Method = Method.COPY
    inode: int = 0
    mtime_ns: int = 0
    target: str = ""
    """The target if the file is a symbolic link, otherwise an empty string."""

    @property
    def folder(self) -> str:
        """The folder part of `path`."""
        return str(PurePosixPath(self.path).parent)

    @property
    def name(self) -> str:
        """The last part of `path`."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files the user requested in the view. An empty field means no restriction."""

    refs: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of which files, links and folders civman created in a view."""

    layout: str
    library: str
    method: str = "auto"
    has_companions: bool = True
    is_safe: bool = False
    """Whether the view shows the safetensors copies of pickles instead of the pickles."""
    wanted: Wanted = Wanted()
    entries: tuple[Entry, ...] = ()
    folders: tuple[str, ...] = field(default=())
    """Folders that civman created inside the view's folder. They are removed with the view if they are empty."""


def read(folder: Path) -> Manifest | None:
    """Read the manifest; None if there is no view. Raises: StoreError: the manifest is damaged."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != _FORMAT:
            raise StoreError(
                f"`{path}` was written by another version of civman (format {raw['format']})",
                hint="update civman",
                path=str(path),
            )
        return Manifest(
            layout=str(raw["layout"]),
            library=str(raw["library"]),
            method=str(raw["method"]),
            has_companions=bool(raw["has_companions"]),
            is_safe=bool(raw.get("is_safe", False)),
            wanted=Wanted(*(tuple(map(str, raw["wanted"][key])) for key in ("refs", "types", "base_models"))),
            entries=tuple(_entry(item) for item in raw["entries"]),
            folders=tuple(map(str, raw["folders"])),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"`{path}` is damaged, so civman cannot distinguish its own links from other files",
            hint="delete this file and the links you no longer want, then run `civman link` again",
            path=str(path),
        ) from error


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, replacing it atomically. Raises: StoreError."""
    path = folder / FILE
    facts = {"format": _FORMAT, **asdict(manifest)}
    facts["entries"] = sorted(facts["entries"], key=lambda item: item["path"])
    temporary = path.with_name(FILE + ".new")
    try:
        temporary.write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        replace_file(temporary, path)
    except OSError as error:
        raise store_error(error, path) from error


def state_of(folder: Path, entry: Entry, blob: Path | None) -> State:
    """Whether the file at the entry's path is still the one that civman created. `blob` is the path of the model."""
    path = folder / entry.path
    try:
        found = path.lstat()
        if not entry.inode and entry.kind == "model":
            is_ours = _is_unfinished(path, entry, blob)
        elif path.is_symlink():
            is_ours = entry.method is Method.SYMLINK and str(path.readlink()) == entry.target
        elif entry.kind != "model":
            is_ours = found.st_size == entry.size_bytes and digest_of(path) == entry.sha256
        elif entry.method is Method.HARDLINK:
            is_ours = found.st_ino == entry.inode
        else:
            known = (entry.inode, entry.size_bytes, entry.mtime_ns)
            is_ours = entry.method is not Method.SYMLINK and (found.st_ino, found.st_size, found.st_mtime_ns) == known
    except FileNotFoundError:
        return State.MISSING
    except OSError as error:
        raise store_error(error, path) from error
    return State.OURS if is_ours else State.FOREIGN


def entries_by_path(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Index the entries by their paths."""
    return {entry.path: entry for entry in entries}


def _is_unfinished(path: Path, entry: Entry, blob: Path | None) -> bool:
    if blob is not None and blob.exists() and path.exists() and os.path.samefile(path, blob):  # noqa: PTH121  # both forms stat twice
        return True
    return not path.is_symlink() and path.stat().st_size == entry.size_bytes and digest_of(path) == entry.sha256


def _entry(item: dict[str, Any]) -> Entry:
    path = PurePosixPath(item["path"])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(item["path"])
    return Entry(
        path=str(path),
        of=Sha256(item["of"]),
        kind=str(item["kind"]),
        size_bytes=int(item["size_bytes"]),
        sha256=Sha256(item["sha256"]),
        method=Method(item["method"]),
        inode=int(item["inode"]),
        mtime_ns=int(item["mtime_ns"]),
        target=str(item["target"]),
    )
