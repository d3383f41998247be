"""The places of a file outside the store: one SHA-256 may have several paths, and files are moved and renamed.

The index stores one main path for each file, and every other path at which the same bytes were read. If a file is no
longer at its main path, the same bytes are looked for at the paths that were just read and at the other recorded paths.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.errors import Cause, CivmanError, NotFound
from civman.index import HeldFile, Index, SeenFile
from civman.manage.file_state import is_unchanged, seen_now
from civman.store.blobs import BlobStore, digest_of


class Presence(StrEnum):
    """Whether the file that was recorded at a path is still available."""

    HERE = "here"
    AWAY = "away"
    """The drive or network share that the file was on is not connected."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Rehomed:
    """The old and the new path of a file that was found again after it was moved."""

    sha256: Sha256
    old: str
    new: str


def presence(path: str, seen: SeenFile | None) -> Presence:
    """Whether the file at `path` exists; `seen` is its state when it was last read.

    If a file is missing because its drive is not connected, the result is AWAY. A drive counts as not connected if the
    file's folder is empty or missing, and the nearest existing folder is on a different device than the file was. That
    folder is then the drive's empty mount point, or a parent folder of it.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError:
        # the path cannot be examined: report the file as present, so that reading it shows the actual error
        return Presence.HERE
    except OSError:  # the path cannot be examined, for example because a network share does not respond
        return Presence.AWAY
    else:
        return Presence.HERE
    if seen is None or not os.path.isabs(seen.path):  # noqa: PTH117  # the library itself is here
        return Presence.MISSING
    folder = Path(path).parent
    try:
        if next(folder.iterdir(), None) is not None:
            return Presence.MISSING
    except OSError:
        pass
    while not folder.is_dir():
        if folder == folder.parent:
            return Presence.AWAY  # on Windows, this means that the drive letter does not exist
        folder = folder.parent
    return Presence.MISSING if folder.stat().st_dev == seen.device else Presence.AWAY


def rehome(index: Index, store: BlobStore, found: Mapping[str, SeenFile]) -> list[Rehomed]:
    """Replace the recorded paths of moved files with the paths at which the same bytes were just found.

    `found` has the current states of files that were read or recognised. Old paths at which a file no longer exists are
    removed.
    """
    by_digest: dict[Sha256, list[SeenFile]] = {}
    for seen in found.values():
        by_digest.setdefault(seen.sha256, []).append(seen)
    moved = []
    for held in index.held_files(by_digest):
        stored = store.find(held.sha256)
        if stored is not None:
            if Path(held.path) != stored.path.absolute():
                moved.append(Rehomed(held.sha256, held.path, str(stored.path)))
        elif not _is_unchanged(held):
            new = min(by_digest[held.sha256], key=lambda seen: (Path(seen.path).name != held.name, seen.path))
            if new.path != held.path:
                moved.append(Rehomed(held.sha256, held.path, new.path))
    if moved:
        index.rehome((each.sha256, each.old, each.new) for each in moved)
    old = index.places(by_digest)
    gone = [
        seen.path
        for seen in old
        if seen.path not in found and presence(_absolute(store, seen.path), seen) is Presence.MISSING
    ]
    if gone:
        index.forget_seen(gone)
    return moved


def other_place(index: Index, store: BlobStore, sha256: Sha256, *, except_path: str = "") -> Path | None:
    """Find a path outside the store that leads to a file with this SHA-256; None if there is none.

    A file that is unchanged since it was last read is preferred. Otherwise, the files at all known paths are read until
    one has this SHA-256.
    """
    places = [(seen, _absolute(store, seen.path)) for seen in index.places([sha256])]
    places = [(seen, path) for seen, path in places if path != except_path]
    for seen, path in places:
        if seen_now(path, sha256, kept_path=seen.path) == seen:
            return Path(path)
    for _, path in places:
        try:
            if os.path.isfile(path) and digest_of(Path(path)) == sha256:  # noqa: PTH113
                now = seen_now(path, sha256)
                if now is not None:
                    index.save_seen([now])
                return Path(path)
        except CivmanError:
            continue
    return None


def absences(index: Index, assets: Iterable[Asset]) -> dict[Sha256, Presence]:
    """Map each file that is missing or away (on a drive that is not connected) to this state, by its SHA-256.

    A file that is no longer at its path, but is unchanged at another recorded path, does not count as missing.
    """
    absent = {asset.blob.sha256: asset for asset in assets if not os.path.exists(asset.path)}  # noqa: PTH110
    if not absent:
        return {}
    elsewhere = {
        seen.sha256
        for seen in index.places(absent)
        if os.path.isabs(seen.path) and is_unchanged(seen)  # noqa: PTH117
    }
    states = {held.sha256: held.seen for held in index.held_files(absent)}
    found = {
        digest: presence(asset.path, states.get(digest)) for digest, asset in absent.items() if digest not in elsewhere
    }
    return {digest: where for digest, where in found.items() if where is not Presence.HERE}


def at_its_place(index: Index, asset: Asset) -> Asset:
    """Return the asset with a path that exists: its main path, or another one where an unchanged copy is.

    Raises: NotFound: no such path exists (`missing`), or the drive of the file is not connected (`away`).
    """
    if os.path.exists(asset.path):  # noqa: PTH110  # unlike Path.exists, it reports no errors
        return asset
    for seen in index.places([asset.blob.sha256]):
        if os.path.isabs(seen.path) and is_unchanged(seen):  # noqa: PTH117
            return replace(asset, path=seen.path)
    if absences(index, [asset]).get(asset.blob.sha256) is Presence.AWAY:
        raise NotFound(
            f"the drive of `{asset.name}` is not connected: {asset.path}",
            code=Cause.AWAY,
            hint="connect the drive; if the file was moved, run `civman import` with its new folder",
            path=asset.path,
        )
    raise NotFound(
        f"the file of `{asset.name}` is missing: {asset.path}",
        code=Cause.MISSING,
        hint="if the file was moved, run `civman import` with its new folder; otherwise, `civman verify "
        "--repair` downloads the file again",
        path=asset.path,
    )


def _is_unchanged(held: HeldFile) -> bool:
    return held.seen is not None and seen_now(held.path, held.sha256, kept_path=held.kept_path) == held.seen


def _absolute(store: BlobStore, path: str) -> str:
    return os.path.join(store.root.absolute(), path)  # noqa: PTH118  # an absolute path stays as it is
