"""The journal that lets a download resume after a broken connection, a killed process or a reboot.

It consists of two small files next to the partial file. `<key>.live` lists the ranges that were written; it can be
trusted only until the machine restarts, which a changed boot id reveals. `<key>.synced` lists the ranges that were
synced to disk; it can always be trusted. Both are replaced atomically.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from civman.domain.byte_ranges import Ranges
from civman.system.move_files import remove_file, replace_file
from civman.system.system_facts import boot_id

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Validator:
    """An ETag and the host that sent it.

    An ETag distinguishes different contents behind one URL, but different hosts send different ETags even for the same
    contents.
    """

    host: str
    etag: str


@dataclass(frozen=True, slots=True)
class Memory:
    """One journal entry: the full size of the file, the ranges on disk, and the server's validators."""

    size_bytes: int
    ranges: Ranges
    validator: Validator | None


class Journal:
    """The two journal files of one partial file. Not thread-safe: the owner must hold a lock."""

    def __init__(self, folder: Path, key: str) -> None:
        self._live = folder / f"{key}.live"
        self._synced = folder / f"{key}.synced"

    def note(self, memory: Memory) -> None:
        """Record what was written. This is fast, because nothing is synced. Raises: OSError."""
        self._replace(self._live, memory, is_synced=False)

    def note_synced(self, memory: Memory) -> None:
        """Record what has been synced to disk. Raises: OSError."""
        self._replace(self._synced, memory, is_synced=True)

    def recall(self) -> Memory | None:
        """Read the newest entry that can be trusted; None if there is none.

        An entry of unsynced ranges can be trusted only until the next reboot.
        """
        live = _read(self._live)
        if live is not None and live[1] == boot_id() != "":
            return live[0]
        synced = _read(self._synced)
        return synced[0] if synced is not None else None

    def forget(self) -> None:
        """Remove both journal files, and temporary files that a killed process left."""
        for path in (self._live, self._synced):
            remove_file(path, missing_ok=True)
            remove_file(_newer(path), missing_ok=True)

    @staticmethod
    def _replace(path: Path, memory: Memory, *, is_synced: bool) -> None:
        text = json.dumps(
            {
                "format": _FORMAT,
                "boot": boot_id(),
                "size": memory.size_bytes,
                "validator": [memory.validator.host, memory.validator.etag] if memory.validator else None,
                "ranges": list(memory.ranges),
            }
        )
        temporary = _newer(path)
        try:
            with temporary.open("w", encoding="ascii") as file:
                file.write(text)
                if is_synced:
                    file.flush()
                    os.fsync(file.fileno())
            replace_file(temporary, path)
        except OSError:
            remove_file(temporary, missing_ok=True)  # delete the incomplete new journal, for example on a full disk
            raise


def promised_bytes(folder: Path, *, but_not: str) -> int:
    """The disk space in bytes that the other partial files in `folder` have reserved but not yet used."""
    promised = 0
    for path in folder.glob("*.live"):
        entry = _read(path)
        if path.stem == but_not or entry is None:
            continue
        try:
            promised += max(0, entry[0].size_bytes - allocated_bytes(path.with_suffix(".part").stat()))
        except FileNotFoundError:
            continue
    return promised


def allocated_bytes(stats: os.stat_result) -> int:
    """The bytes of disk space that a file uses; its length if the system does not report it."""
    blocks = getattr(stats, "st_blocks", None)
    return stats.st_size if blocks is None else int(blocks) * 512


def _newer(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _read(path: Path) -> tuple[Memory, str] | None:
    try:
        entry = json.loads(path.read_bytes())
        if entry["format"] != _FORMAT:
            return None
        ranges = Ranges(_pairs(entry["ranges"]))
        size = int(entry["size"])
        if any(end > size for _, end in ranges):
            return None
        validator = Validator(*map(str, entry["validator"])) if entry["validator"] else None
        return Memory(size, ranges, validator), str(entry["boot"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None  # ignore a journal that is missing, damaged or in another format


def _pairs(listed: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(int(start), int(end)) for start, end in listed]
