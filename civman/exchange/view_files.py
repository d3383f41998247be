"""Make a blob available at a second path by shared blocks, hard link, symbolic link or copy. Blobs never change."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from civman.domain.digests import Sha256
from civman.errors import IntegrityError, StoreError
from civman.exchange.view_manifest import Entry, Method
from civman.store.blobs import BlobStore, digest_of
from civman.store.partial import store_error
from civman.store.safe_copies import copy_place
from civman.store.trash import Trash
from civman.system.file_links import hard_link, link_refusal, share_blocks, symbolic_link
from civman.system.move_files import remove_file, rename_file, replace_file


def place(blob: Path, folder: Path, entry: Entry, methods: tuple[Method, ...]) -> tuple[Entry, list[str]]:
    """Create the entry's file from `blob` with the first method that works.

    Returns the entry as created, and why earlier methods failed. Raises: StoreError: no method works, or the path
    already exists.
    """
    path = folder / entry.path
    if os.path.lexists(path):
        raise StoreError(
            f"`{path}` was created by another program in the meantime; it is left unchanged", path=str(path)
        )
    remove_file(_temporary(path), missing_ok=True)  # remove a temporary file that a killed process may have left behind
    reasons = []
    for method in methods:
        refusal = _MAKERS[method](blob, path, entry.sha256)
        if refusal:
            reasons.append(refusal)
            continue
        return _as_made(path, replace(entry, method=method)), reasons
    raise StoreError(
        f"cannot create `{path}` in the view: {'; '.join(reasons)}",
        hint="choose another --method, or leave it out to use the first one that works",
        path=str(path),
    )


def write_companion(folder: Path, entry: Entry, data: bytes) -> Entry:
    """Write a companion file of the view, replacing an older version, and return its entry. Raises: StoreError."""
    path = folder / entry.path
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        replace_file(temporary, path)
    except OSError as error:
        raise store_error(error, path) from error
    return _as_made(path, entry)


def remove_entry_file(folder: Path, entry: Entry, store: BlobStore) -> None:
    """Remove the entry's file. If it is a hard link to a blob, the blob stays read-only. Raises: OSError."""
    is_linked = entry.method is Method.HARDLINK and entry.kind == "model"
    remove_file(folder / entry.path, missing_ok=True, twin=_twin(entry, store) if is_linked else None)


def _twin(entry: Entry, store: BlobStore) -> Path | None:
    """The file in the store that the entry is a hard link to: the blob or its safetensors copy."""
    if entry.sha256 == entry.of:
        return _blob_path(entry.of, store)
    copy = copy_place(store, entry.of)
    return copy if copy.exists() else None


def _blob_path(sha256: Sha256, store: BlobStore) -> Path | None:
    stored, trash = store.find(sha256), Trash(store)
    removal = trash.find(sha256) if stored is None else None
    found = trash.lying(removal, sha256) if removal is not None else None
    return stored.path if stored is not None else found[1] if found is not None else None


# Each of the following functions tries one method to create `path`. It returns why this failed, or "" if it worked.


def _reflink(blob: Path, path: Path, _: Sha256) -> str:
    temporary = _temporary(path)
    try:
        share_blocks(blob, temporary)
        shutil.copystat(blob, temporary)
        temporary.chmod(0o644)
        rename_file(temporary, path)
    except OSError as error:
        remove_file(temporary, missing_ok=True)
        return link_refusal("shared blocks", error)
    return ""


def _hardlink(blob: Path, path: Path, _: Sha256) -> str:
    return _linked(hard_link, "hard links", blob, path)


def _symlink(blob: Path, path: Path, _: Sha256) -> str:
    return _linked(symbolic_link, "symbolic links", blob, path)


def _linked(link: Callable[[Path, Path], None], what: str, blob: Path, path: Path) -> str:
    try:
        link(blob, path)
    except OSError as error:
        return link_refusal(what, error)
    return ""


def _copy(blob: Path, path: Path, sha256: Sha256) -> str:
    temporary = _temporary(path)
    try:
        shutil.copyfile(blob, temporary)
        if digest_of(temporary) != sha256:
            raise IntegrityError(
                f"the copy of `{blob}` is corrupt", hint="check the library's files with `civman verify`"
            )
        rename_file(temporary, path)
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        remove_file(temporary, missing_ok=True)
    return ""


_MAKERS = {Method.REFLINK: _reflink, Method.HARDLINK: _hardlink, Method.SYMLINK: _symlink, Method.COPY: _copy}


def _as_made(path: Path, entry: Entry) -> Entry:
    found = path.lstat()
    target = str(path.readlink()) if path.is_symlink() else ""
    return replace(entry, inode=found.st_ino, mtime_ns=found.st_mtime_ns, target=target)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:180]}.civman-new")
