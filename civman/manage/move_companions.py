"""Moves the small files next to a moved model into the library: metadata files, previews and configs."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.file_suffixes import MODEL_SUFFIXES
from civman.errors import CivmanError
from civman.manage.program_metadata import companions
from civman.manage.take_files import Kept
from civman.store.blobs import BlobStore
from civman.store.trash import blob_lock
from civman.system.move_files import remove_file

_MOST_BYTES = 256 << 20


def move_companions(store: BlobStore, moved: Mapping[Sha256, Iterable[Path]]) -> tuple[int, list[Kept]]:
    """Move the companion files of models that were moved into the store.

    Returns the number of files moved, and the files that were not moved. `moved` maps the SHA-256 of each model to its
    old paths. A companion file stays where it is if its model still exists at the old path, if another model of the
    same name needs it, or if the library already has a different file of this kind.
    """
    count, kept = 0, list[Kept]()
    for sha256, paths in moved.items():
        for model in paths:
            if model.exists() or _has_twin(model):
                continue
            for companion in companions(model):
                problem = _moved(store, sha256, companion, companion.name.removeprefix(model.stem))
                if problem:
                    kept.append(Kept(str(companion), problem, is_fault=False))
                else:
                    count += 1
    return count, kept


def _has_twin(model: Path) -> bool:
    return any(model.with_suffix(suffix).exists() for suffix in MODEL_SUFFIXES)


def _moved(store: BlobStore, sha256: Sha256, companion: Path, ending: str) -> str:
    """Move one file. Returns an empty string, or the reason if the file could not be moved."""
    try:
        if companion.is_symlink() or companion.stat().st_size > _MOST_BYTES:
            return "the file is a link or very large; move it yourself if you need it"
        data = companion.read_bytes()
        with blob_lock(store, sha256):
            stored = store.companion(sha256, ending)
            if stored.exists() and stored.read_bytes() != data:
                return f"the library already has a different file of this kind for the model: {stored}"
            if not stored.exists():
                store.write_companion(sha256, ending, data)
            if stored.read_bytes() != data:
                return "the copy in the library could not be verified"
        with contextlib.suppress(FileNotFoundError):
            remove_file(companion)
    except (OSError, CivmanError) as error:
        return f"the file could not be moved: {error}"
    return ""
