"""Which of the files that the library holds a ref means, and how a file looks. Asks nobody but the index."""

import os
from collections.abc import Sequence
from pathlib import Path

from civman.domain.catalog import Asset, ModelId, VersionId
from civman.domain.digests import Sha256
from civman.domain.refs import Air, HashRef, ModelRef, NameRef, NumberRef, PathRef, Ref, VersionRef
from civman.errors import AmbiguousRef, NotFound
from civman.index import Index, SeenFile


def held(index: Index, ref: Ref) -> list[Asset]:
    """The assets that `ref` means: all files of a version, all versions of a model.

    Raises: NotFound: none. AmbiguousRef: a number that is both, a name that several answer to.
    """
    found = _found(index, ref)
    if not found:
        raise NotFound(
            f"`{ref}` is not in the library",
            hint="`civman list` shows what is; `civman download` fetches it",
        )
    return found


def one_of(assets: Sequence[Asset], text: str, wish: str | None = None) -> Asset:
    """The one file that is meant: by `wish` (file id or name), or because there is no other.

    Raises: NotFound: no such file among them. AmbiguousRef: several files, and none was named.
    """
    if wish is not None:
        assets = [asset for asset in assets if wish in (str(asset.file_id), asset.name)]
        if not assets:
            raise NotFound(f"`{text}` has no file `{wish}` in the library", hint="`civman list --json` shows its files")
    if len({asset.blob.sha256 for asset in assets}) > 1:
        raise ambiguous(text, assets)
    return assets[0]


def ambiguous(text: str, assets: Sequence[Asset]) -> AmbiguousRef:
    """The error for a ref that several assets answer to, naming a ref for each."""
    refs = {_own_ref(asset): asset for asset in assets}
    names = {ref: f"{asset.model_name or asset.name} {asset.version_name}".strip() for ref, asset in refs.items()}
    shown = [f"{ref} ({name})" for ref, name in names.items()]
    more = f"; and {len(shown) - 8} more" if len(shown) > 8 else ""
    return AmbiguousRef(
        f"`{text}` could be {len(refs)} things in the library",
        hint="say which: " + "; ".join(shown[:8]) + more,
        candidates=list(refs),
    )


def seen_now(path: str, sha256: Sha256, *, kept_path: str | None = None) -> SeenFile | None:
    """How the file looks whose bytes were just proven; None where it is gone.

    It is unchanged as long as device, inode, size and time of change are the same.
    """
    try:
        stats = os.stat(path)  # noqa: PTH116  asked of 30,000 files
    except OSError:
        return None
    return SeenFile(kept_path or path, stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns, sha256)


def _found(index: Index, ref: Ref) -> list[Asset]:
    match ref:
        case NumberRef():
            of_model = index.find_by_model(ModelId(ref.number))
            of_version = index.find_by_version(VersionId(ref.number))
            if of_model and of_version and {asset.model_id for asset in of_version} != {ref.number}:
                raise ambiguous(str(ref), [*of_model, *of_version])
            return of_model or of_version
        case ModelRef():
            return index.find_by_model(ref.model_id)
        case VersionRef():
            return _narrowed(index.find_by_version(ref.version_id), ref.file.file_id)
        case Air():
            if ref.version_id is None:
                return index.find_by_model(ref.model_id)
            return _narrowed(index.find_by_version(ref.version_id), ref.file_id)
        case HashRef():
            return index.find_by_digest(ref.digest, ref.kind)
        case NameRef():
            return _one_name(index, ref.name)
        case PathRef():
            path = str(Path(ref.path).expanduser().absolute())
            by_path = [asset for asset in index.assets() if asset.path == path]
            is_bare = Path(ref.path).name == ref.path  # "model.safetensors" may be a file here, or one that is held
            return by_path or (_one_name(index, ref.path) if is_bare else [])
    return []


def _one_name(index: Index, name: str) -> list[Asset]:
    named = index.find_by_name(name)
    if len({asset.blob.sha256 for asset in named}) > 1:
        raise ambiguous(name, named)
    return named


def _narrowed(assets: list[Asset], file_id: int | None) -> list[Asset]:
    return [asset for asset in assets if file_id is None or asset.file_id == file_id]


def _own_ref(asset: Asset) -> str:
    return f"@{asset.version_id}" if asset.version_id is not None else f"sha256:{asset.blob.sha256}"
