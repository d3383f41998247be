"""Give a blob a second name: by shared blocks, a hard link, a symbolic link, or a copy. Never changes the blob."""

import errno
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from civman.domain.digests import Sha256
from civman.errors import IntegrityError, StoreError
from civman.exchange.view_manifest import Entry, Method
from civman.store.blobs import digest_of
from civman.store.partial import store_error

_FICLONE = 0x40049409
"""Linux ioctl that makes a file share another one's blocks. Source: ioctl_ficlone(2)."""


def place(blob: Path, folder: Path, entry: Entry, methods: tuple[Method, ...]) -> tuple[Entry, list[str]]:
    """Create the entry's file from `blob` with the first method that works.

    Returns the entry as created, and why the other methods failed. Raises: StoreError: none works, or a file already
    exists there.
    """
    path = folder / entry.path
    if os.path.lexists(path):
        raise StoreError(f"`{path}` appeared while the view was made; it is left alone", path=str(path))
    _temporary(path).unlink(missing_ok=True)  # a killed process may have left one
    reasons = []
    for method in methods:
        refusal = _MAKERS[method](blob, path, entry.sha256)
        if refusal:
            reasons.append(refusal)
            continue
        return _as_made(path, replace(entry, method=method)), reasons
    raise StoreError(
        f"cannot give `{path}` to the view: {'; '.join(reasons)}",
        hint="choose another --method, or leave it out to take the first that works",
        path=str(path),
    )


def write_companion(folder: Path, entry: Entry, data: bytes) -> Entry:
    """Write a small file of the view, replacing an older one, and return its entry. Raises: StoreError."""
    path = folder / entry.path
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise store_error(error, path) from error
    return _as_made(path, entry)


# Each function returns why its method does not work between these two places; "" means that the file was created.


def _reflink(blob: Path, path: Path, _: Sha256) -> str:
    if sys.platform != "linux":  # pragma: no cover
        return "shared blocks are used on Linux only"
    import fcntl  # does not exist on Windows

    temporary = _temporary(path)
    try:
        with blob.open("rb") as source, temporary.open("xb") as target:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        shutil.copystat(blob, temporary)
        temporary.chmod(0o644)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        return _reason(Method.REFLINK, error)
    return ""


def _hardlink(blob: Path, path: Path, _: Sha256) -> str:
    try:
        os.link(blob, path)
    except OSError as error:
        return _reason(Method.HARDLINK, error)
    return ""


def _symlink(blob: Path, path: Path, _: Sha256) -> str:
    try:
        target = os.path.relpath(blob.resolve(), path.parent.resolve())
    except ValueError:  # Windows: another drive
        target = str(blob.resolve())
    try:
        path.symlink_to(target)
    except OSError as error:
        return _reason(Method.SYMLINK, error)
    return ""


def _copy(blob: Path, path: Path, sha256: Sha256) -> str:
    temporary = _temporary(path)
    try:
        shutil.copyfile(blob, temporary)
        if digest_of(temporary) != sha256:
            raise IntegrityError(f"the copy of `{blob}` is not what it should be", hint="run `civman verify`")
        temporary.rename(path)
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return ""


_MAKERS = {Method.REFLINK: _reflink, Method.HARDLINK: _hardlink, Method.SYMLINK: _symlink, Method.COPY: _copy}


def _as_made(path: Path, entry: Entry) -> Entry:
    found = path.lstat()
    target = str(path.readlink()) if path.is_symlink() else ""
    return replace(entry, inode=found.st_ino, mtime_ns=found.st_mtime_ns, target=target)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:180]}.civman-new")


def _reason(method: Method, error: OSError) -> str:
    what = {Method.REFLINK: "shared blocks", Method.HARDLINK: "hard links", Method.SYMLINK: "symbolic links"}[method]
    if error.errno == errno.EXDEV:
        return f"{what} cannot cross from the library's file system to the view's"
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
        return f"this file system has no {what}"
    return f"{what}: {error.strerror}"
