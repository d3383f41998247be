"""Look for model files in folders. Every entry is reported, either as a model file or with the reason for skipping it.

Links to folders are followed. Each folder is read once, recognised by its device and inode, so that loops end. A file
that is reached by several paths is returned with its real path if that is among them.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from civman.domain.file_suffixes import (
    ARCHIVE_SUFFIXES,
    CONFIG_SUFFIXES,
    CONTROL_SUFFIXES,
    MODEL_SUFFIXES,
    PICTURE_SUFFIXES,
    TEXT_SUFFIXES,
    VIDEO_SUFFIXES,
    is_unfinished,
    suffix_of,
)
from civman.errors import NotFound

_PROGRAM_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "site-packages", "__macosx"})
_TRASH = frozenset({"$recycle.bin", "recycler", "#recycle", ".recycle", "lost+found", "system volume information"})
_LIBRARY_WORK = frozenset({"trash", "partial", "locks"})
_SHARD = re.compile(r"-(\d{3,6})-of-(\d{3,6})\.[a-z]+$", re.IGNORECASE)
_SHARD_INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[\w-]+)?\.json$", re.IGNORECASE)
_PIPELINE = "model_index.json"
_MOST_JSON = 4 << 20
_MOST_EXAMPLES = 50
Identity = tuple[int, int]


class Reason(StrEnum):
    """Why an entry is not imported as a model."""

    COMPANION = "companion"
    UNFINISHED = "unfinished"
    DEAD_LINK = "dead link"
    REACHED_BEFORE = "reached before"
    LIBRARY = "library"
    TRASH = "trash"
    HIDDEN = "hidden"
    PROGRAM = "program folder"
    DIFFUSERS = "diffusers folder"
    SHARDS = "shards"
    UNREADABLE = "unreadable"
    BAD_NAME = "bad name"
    ARCHIVE = "archive"
    CONFIG = "config"
    WILDCARDS = "wildcards"
    POSE = "pose"
    WORKFLOW = "workflow"
    PICTURE = "picture"
    VIDEO = "video"
    TEXT = "text"
    OTHER = "other"


REASON_WORDS = {
    Reason.COMPANION: "belongs to a model next to it (metadata, preview, config)",
    Reason.UNFINISHED: "an unfinished download or a temporary file",
    Reason.DEAD_LINK: "a link whose target does not exist",
    Reason.REACHED_BEFORE: "a link to something that was already found",
    Reason.LIBRARY: "part of a civman library",
    Reason.TRASH: "in a trash folder",
    Reason.HIDDEN: "hidden",
    Reason.PROGRAM: "a folder of program code",
    Reason.DIFFUSERS: "part of a diffusers folder, one model in many files, which civman cannot use",
    Reason.SHARDS: "part of one model in several files (import its .safetensors.index.json to join them)",
    Reason.UNREADABLE: "a folder that cannot be read",
    Reason.BAD_NAME: "its name is not valid Unicode: rename it",
    Reason.ARCHIVE: "an archive (unpack it, or import it by its name)",
    Reason.CONFIG: "a config without a model next to it",
    Reason.WILDCARDS: "a list of wildcards",
    Reason.POSE: "a pose",
    Reason.WORKFLOW: "a workflow",
    Reason.PICTURE: "a picture",
    Reason.VIDEO: "a video",
    Reason.TEXT: "a text",
    Reason.OTHER: "not a model file",
}
TOLD_BY_PATH = (
    Reason.UNFINISHED, Reason.DEAD_LINK, Reason.DIFFUSERS, Reason.SHARDS, Reason.UNREADABLE, Reason.BAD_NAME,
    Reason.ARCHIVE,
)  # fmt: skip
"""The reasons for which the paths of the skipped entries are shown to the user."""
FAULTS = (Reason.UNREADABLE, Reason.BAD_NAME)
"""Reasons that may have made civman skip a model that it should have imported."""


@dataclass(slots=True)
class LeftOut:
    """The entries left out for one reason: their number, and the paths of the first ones."""

    reason: Reason
    count: int = 0
    paths: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        """The reason as it is shown to users."""
        return REASON_WORDS[self.reason]


@dataclass(slots=True)
class Scan:
    """The model files found, each path once and in a stable order, and the entries that were left out."""

    files: list[Path] = field(default_factory=list)
    links: set[Path] = field(default_factory=set)
    """The entries of `files` that are symbolic links to a file elsewhere."""
    by_reason: dict[Reason, LeftOut] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The entries that were left out, grouped by reason."""
        return tuple(self.by_reason[reason] for reason in Reason if reason in self.by_reason)

    @property
    def entries(self) -> int:
        """The total number of entries: the model files that were found, and the entries that were left out."""
        return len(self.files) + sum(group.count for group in self.by_reason.values())

    def leave_out(self, path: str, reason: Reason, *, count: int = 1, shown: str | None = None) -> None:
        """Count an entry that is left out. `shown`: the path to list instead of the entry's own path."""
        group = self.by_reason.setdefault(reason, LeftOut(reason))
        group.count += count
        named = os.fsencode(shown or path).decode("utf-8", "replace")
        if len(group.paths) < _MOST_EXAMPLES and named not in group.paths:
            group.paths.append(named)


def scan_folders(paths: Iterable[Path], library: Path | None = None) -> Scan:
    """Find the model files in `paths`. Listed files are accepted whatever their names; folders are read recursively.

    `library` is the folder of the library itself, whose files are never imported.

    Raises: NotFound: a path does not exist, or is a dead link.
    """
    scanner = _Scanner(library)
    for start in paths:
        start = Path(os.path.abspath(start.expanduser()))  # noqa: PTH100  # resolving would follow links
        if not os.path.exists(start):  # noqa: PTH110  # unlike Path.exists, it reports no errors
            message = f"`{start}` is a link to something that does not exist"
            if not start.is_symlink():
                message = f"`{start}` does not exist"
            raise NotFound(message, hint="pass a model file, or a folder with model files")
        scanner.start(start)
    return scanner.finish()


class _Scanner:
    def __init__(self, library: Path | None) -> None:
        self._scan = Scan()
        self._library = library.resolve() if library is not None else None
        self._folders: set[Identity] = set()
        self._files: set[str] = set()
        self._inodes: set[Identity] = set()
        self._links: list[str] = []
        """The links found so far. They are followed after everything else, so that a file is found by its real path
        first.
        """

    def start(self, path: Path) -> None:
        text = str(path)
        if path.is_dir():
            if self._is_ours(text):
                self._leave_all(text, Reason.LIBRARY)
            else:
                self._enter(text)
        elif text not in self._files and not self._is_refused(path):
            self._take(text, is_link=path.is_symlink())

    def finish(self) -> Scan:
        while self._links:
            self._follow(self._links.pop(0))
        self._scan.files.sort()
        return self._scan

    def _is_refused(self, path: Path) -> bool:
        """Whether a file that the user named must be left out; if so, the file is counted.

        Files of the library, unfinished files, and parts of a model that is split into several files are left out.
        """
        if self._is_ours(str(path)):
            self._scan.leave_out(str(path), Reason.LIBRARY)
        elif is_unfinished(path.name) or any(os.path.exists(f"{path}{end}") for end in CONTROL_SUFFIXES):  # noqa: PTH110
            self._scan.leave_out(str(path), Reason.UNFINISHED)
        elif _is_shard(path.name):
            self._scan.leave_out(str(path), Reason.SHARDS)
        else:
            return False
        return True

    def _follow(self, link: str) -> None:
        try:
            found = os.stat(link)  # noqa: PTH116
        except OSError:
            self._scan.leave_out(link, Reason.DEAD_LINK)
            return
        identity = found.st_dev, found.st_ino
        if self._is_ours(link):
            self._scan.leave_out(link, Reason.LIBRARY)
        elif stat.S_ISDIR(found.st_mode):
            if identity in self._folders:
                self._scan.leave_out(link, Reason.REACHED_BEFORE)
            else:
                self._enter(link)
        elif identity in self._inodes:
            self._scan.leave_out(link, Reason.REACHED_BEFORE)
        elif link not in self._files:
            self._take(link, is_link=True)

    def _enter(self, start: str) -> None:
        """Read a folder recursively. Links that are found are followed later."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            try:
                found = os.stat(folder)  # noqa: PTH116
                if (found.st_dev, found.st_ino) in self._folders:
                    continue
                self._folders.add((found.st_dev, found.st_ino))
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                self._scan.leave_out(folder, Reason.UNREADABLE)
                continue
            names = {entry.name for entry in entries}
            if _PIPELINE in names:
                self._leave_all(folder, Reason.DIFFUSERS)
                continue
            inside = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            is_library = "library.db" in names and any(entry.name == "blobs" for entry in inside)
            below = [entry for entry in inside if self._is_to_read(entry, is_library=is_library)]
            waiting += [entry.path for entry in reversed(below)]
            self._sort([entry for entry in entries if entry not in inside], names)

    def _is_to_read(self, entry: os.DirEntry[str], *, is_library: bool) -> bool:
        name, path = entry.name.lower(), entry.path
        if name in _TRASH or name.startswith(".trash"):
            self._leave_all(path, Reason.TRASH)
        elif name.startswith("."):
            self._leave_all(path, Reason.HIDDEN)
        elif name in _PROGRAM_FOLDERS:
            self._leave_all(path, Reason.PROGRAM)
        elif self._is_ours(path) or (is_library and name in _LIBRARY_WORK):
            self._leave_all(path, Reason.LIBRARY)
        else:
            return True
        return False

    def _sort(self, entries: list[os.DirEntry[str]], names: set[str]) -> None:
        """Divide the files and links of one folder into models and entries that are left out."""
        models = {entry.name for entry in entries if _is_model_name(entry.name, names)}
        stems = models | {name.rpartition(".")[0] for name in models}
        for entry in entries:
            reason = _reason(entry, names, models, stems)
            if reason is not None:
                shown = os.path.dirname(entry.path) if reason is Reason.SHARDS else None  # noqa: PTH120
                self._scan.leave_out(entry.path, reason, shown=shown)
            elif entry.is_symlink():
                self._links.append(entry.path)
            elif entry.path not in self._files:
                self._take(entry.path, is_link=False)

    def _take(self, path: str, *, is_link: bool) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:  # leave out a name that is not Unicode, which the database cannot store
            self._scan.leave_out(path, Reason.BAD_NAME)
            return
        try:
            found = os.stat(path)  # noqa: PTH116
        except OSError:  # treat the entry as a file: the error is reported when it is read
            pass
        else:
            if not stat.S_ISREG(found.st_mode):  # leave out special files: reading a pipe would wait for ever
                self._scan.leave_out(path, Reason.OTHER)
                return
            self._inodes.add((found.st_dev, found.st_ino))
        self._files.add(path)
        self._scan.files.append(Path(path))
        if is_link:
            self._scan.links.add(Path(path))

    def _leave_all(self, folder: str, reason: Reason) -> None:
        """Leave a folder out and count the files and links in it. An empty folder is not counted."""
        count = 0
        for place, folders, names in os.walk(folder):
            count += len(names) + sum(os.path.islink(f"{place}{os.sep}{name}") for name in folders)  # noqa: PTH114
        if count:
            self._scan.leave_out(folder, reason, count=count)

    def _is_ours(self, path: str) -> bool:
        return self._library is not None and Path(path).resolve().is_relative_to(self._library)


def _is_model_name(name: str, names: set[str]) -> bool:
    return (
        suffix_of(name) in MODEL_SUFFIXES
        and not name.startswith(".")
        and not any(name + control in names for control in CONTROL_SUFFIXES)
        and not _is_shard(name)
    )


def _is_shard(name: str) -> bool:
    match = _SHARD.search(name)
    return match is not None and int(match[2]) > 1


def _reason(entry: os.DirEntry[str], names: set[str], models: set[str], stems: set[str]) -> Reason | None:
    """Why an entry of a folder is left out; None if it is a model file, or a link that must be followed."""
    name = entry.name
    if entry.is_symlink() and (name in models or (not name.startswith(".") and _is_folder(entry))):
        return None
    if entry.is_symlink() and not os.path.exists(entry.path) and suffix_of(name) in MODEL_SUFFIXES:  # noqa: PTH110
        return Reason.DEAD_LINK
    if is_unfinished(name) or any(name + control in names for control in CONTROL_SUFFIXES):
        return Reason.UNFINISHED
    if name.startswith("."):
        return Reason.HIDDEN
    if name in models:
        return None if entry.is_file() else Reason.OTHER
    if _is_shard(name) or _SHARD_INDEX.search(name):
        return Reason.SHARDS
    if any(head in stems for head in _heads(name)):
        return Reason.COMPANION
    return _kind(entry)


def _heads(name: str) -> Iterator[str]:
    """Yield the prefixes of a file name, each ending before one of its dots."""
    position = name.find(".")
    while position > 0:
        yield name[:position]
        position = name.find(".", position + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # the link points at itself
        return False


_BY_SUFFIX = (
    (ARCHIVE_SUFFIXES, Reason.ARCHIVE),
    (CONFIG_SUFFIXES, Reason.CONFIG),
    (PICTURE_SUFFIXES, Reason.PICTURE),
    (VIDEO_SUFFIXES, Reason.VIDEO),
    (TEXT_SUFFIXES, Reason.TEXT),
)


def _kind(entry: os.DirEntry[str]) -> Reason:
    suffix = suffix_of(entry.name)
    folders = {part.lower() for part in Path(entry.path).parts[:-1]}
    if suffix in (".txt", ".yaml", ".yml", ".json") and "wildcards" in folders:
        return Reason.WILDCARDS
    if "poses" in folders and suffix in PICTURE_SUFFIXES | {".json"}:
        return Reason.POSE
    if suffix == ".json":
        return _kind_of_json(entry)
    return next((reason for suffixes, reason in _BY_SUFFIX if suffix in suffixes), Reason.OTHER)


def _kind_of_json(entry: os.DirEntry[str]) -> Reason:
    try:
        if entry.stat().st_size > _MOST_JSON:
            return Reason.OTHER
        value = json.loads(Path(entry.path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return Reason.OTHER
    if not isinstance(value, dict):
        return Reason.OTHER
    nodes = [node for node in value.values() if isinstance(node, dict)]
    if isinstance(value.get("nodes"), list) or any("class_type" in node for node in nodes):
        return Reason.WORKFLOW
    return Reason.POSE if "people" in value or "pose_keypoints_2d" in value else Reason.OTHER
