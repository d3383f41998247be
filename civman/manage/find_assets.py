"""Find the stored files that a ref means, by the rules of `civman.manage.resolve`."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from civman.domain.catalog import Asset, ModelFile, ModelId, VersionId
from civman.domain.file_choice import matching_files
from civman.domain.model_refs import require_model
from civman.domain.printed_refs import ambiguous_ref, picture_ref
from civman.domain.refs import (
    ANY_FILE,
    Air,
    FileSelector,
    HashKind,
    HashRef,
    ModelRef,
    NameRef,
    NumberRef,
    PathRef,
    Ref,
    VersionRef,
)
from civman.errors import AmbiguousRef, Cause, NotFound
from civman.index import Index
from civman.manage.digests_on_demand import find_computed

_MOST_SHOWN = 8
SHORT_HASHES = (8, 10)
"""The lengths of hashes that look like an id if all their digits are decimal: CRC32 and AutoV1 (8), AutoV2 (10)."""
LEAST_PREFIX = 10
"""The minimum number of leading digits of a SHA-256 that may refer to a file of the library."""


def find_assets(index: Index, ref: Ref, file: str | None = None) -> list[Asset]:
    """Find the assets that `ref` means: all files of a version, or all files of all versions of a model.

    `file`: words that select some of these files.

    Raises: NotFound: no asset matches. AmbiguousRef: a number, name or digest has several meanings.
    """
    assets = _matching(index, ref, file)
    if isinstance(ref, NameRef | PathRef | HashRef) and len({asset.blob.sha256 for asset in assets}) > 1:
        raise ambiguous(str(ref), assets)
    return assets


def find_asset(
    index: Index, ref: Ref, file: str | None = None, *, suits: Callable[[Asset], bool] | None = None
) -> Asset:
    """Find the one stored file that `ref` means. If several files match, those that `suits` accepts are preferred.

    Raises: NotFound: no file matches. AmbiguousRef: several files match, and they belong to several versions or none of
        them is the primary file.
    """
    assets = _matching(index, ref, file)
    if suits is not None:
        assets = [asset for asset in assets if suits(asset)] or assets
    if len({asset.blob.sha256 for asset in assets}) > 1:
        primary = _primary(index, assets) if file is None else None
        if primary is None:
            raise ambiguous(str(ref), assets)
        return primary
    return assets[0]


def find_unlisted(index: Index, ref: Ref) -> Asset | None:
    """Find the stored file that `ref` means, if it is not on CivitAI; otherwise, return None. Raises: AmbiguousRef."""
    try:
        asset = find_asset(index, ref)
    except NotFound:
        return None
    return asset if asset.version_id is None else None


def ambiguous(text: str, assets: Iterable[Asset]) -> AmbiguousRef:
    """Build the error for a ref that means several assets. The error lists an unambiguous ref for each asset."""
    names = {asset.ref: f"{asset.model_name or asset.name} {asset.version_name}".strip() for asset in assets}
    by_name = {asset.ref: asset.name for asset in assets}
    is_same = len(set(names.values())) < len(names)
    return ambiguous_ref(f"`{text}` means {len(names)} files of the library", by_name if is_same else names)


def _matching(index: Index, ref: Ref, file: str | None) -> list[Asset]:
    require_model(ref)
    found = stored_assets(index, ref)
    words = file or _selector(ref).words
    selected = found if words is None else _select(index, found, words)
    if not selected:
        raise not_stored(index, ref, found, words)
    return selected


def stored_assets(index: Index, ref: Ref) -> list[Asset]:
    """Find the assets that `ref` means: those of its model or version, or those with its digest, name or path.

    The ref's file selector is ignored.
    """
    match ref:
        case NumberRef():
            return _numbered(index, ref.number)
        case ModelRef():
            return index.find_by_model(ref.model_id)
        case VersionRef():
            return index.find_by_version(ref.version_id)
        case Air():
            if ref.version_id is None:
                return index.find_by_model(ref.model_id)
            return index.find_by_version(ref.version_id)
        case HashRef():
            return index.find_by_digest(ref.digest, ref.kind) or find_computed(index, ref)
        case NameRef():
            return _named(index, ref.name)
        case PathRef():
            path = os.path.abspath(Path(ref.path).expanduser())  # noqa: PTH100  pathlib keeps `..`
            at_path = [asset for asset in index.assets() if asset.path == path]
            # a bare name such as "model.safetensors" may also be the name of a stored file
            is_bare = Path(ref.path).name == ref.path
            return at_path or (_named(index, ref.path) if is_bare else [])
        case _:
            return []


def _numbered(index: Index, number: int) -> list[Asset]:
    of_model, of_version = index.find_by_model(ModelId(number)), index.find_by_version(VersionId(number))
    with_hash = index.find_by_digest(str(number)) if len(str(number)) in SHORT_HASHES else []
    is_both = bool(of_model and of_version) and {asset.model_id for asset in of_version} != {number}
    if is_both or (with_hash and (of_model or of_version)):
        raise ambiguous(str(number), [*of_model, *of_version, *with_hash])
    return of_model or of_version or with_hash


def _named(index: Index, name: str) -> list[Asset]:
    found = index.find_by_name(name)
    if not found and len(name) >= LEAST_PREFIX and set(name.lower()) <= set("0123456789abcdef"):
        return index.find_by_digest(name, HashKind.SHA256)
    return found


def _selector(ref: Ref) -> FileSelector:
    match ref:
        case ModelRef() | VersionRef():
            return ref.file
        case Air():
            return FileSelector(ref.file_id)
        case _:
            return ANY_FILE


def _select(index: Index, assets: Sequence[Asset], words: str) -> list[Asset]:
    """Select assets by comparing `words` with what CivitAI lists about their files."""
    return [asset for asset in assets if matching_files([_listed_file(index, asset)], words)]


def _listed_file(index: Index, asset: Asset) -> ModelFile:
    """Return CivitAI's entry for the asset's file; without one, an entry made from the asset itself."""
    version = index.version(asset.version_id) if asset.version_id is not None else None
    for file in version.files if version is not None else ():
        if file.id == asset.file_id and (file.id is not None or file.name == asset.name):
            return file
    precision = asset.facts.precision or None
    return ModelFile(asset.file_id, asset.name, asset.type_raw or "Model", asset.blob.size_bytes, precision=precision)


def _primary(index: Index, assets: Sequence[Asset]) -> Asset | None:
    """Choose the primary file of a version, preferably with the bytes that CivitAI declares for it now.

    None if `assets` belong to several versions, or the choice is ambiguous.
    """
    version_ids, file_ids = {asset.version_id for asset in assets}, {asset.file_id for asset in assets}
    if len(version_ids) > 1 or None in version_ids:
        return None
    listed = [(asset, _listed_file(index, asset)) for asset in assets]
    primary = [(asset, file) for asset, file in listed if file.is_primary or len(file_ids) == 1]
    declared = [(asset, file) for asset, file in primary if file.hashes.sha256 == asset.blob.sha256]
    chosen = {asset.blob.sha256: asset for asset, _ in declared or primary}
    return next(iter(chosen.values())) if len(chosen) == 1 else None


def not_stored(index: Index, ref: Ref, found: Sequence[Asset], words: str | None) -> NotFound:
    """Build the error for a ref without a stored file.

    `found`: the stored files of the ref's model or version, if `words` selects none of them.
    """
    if found:
        files = "; ".join(f"{asset.ref} {asset.name}" for asset in found[:_MOST_SHOWN])
        message = f"no file of `{ref}` in the library matches `{words}`"
        return NotFound(
            message, hint=f"the library has these files of this model or version: {files}", code=Cause.NO_SUCH_FILE
        )
    if isinstance(ref, NumberRef) and has_picture(index, ref.number):
        return NotFound(
            f"no model or version {ref.number} is in the library",
            hint=f"to refer to the picture with this number, use `{picture_ref(ref.number)}`",
        )
    what = f"there is no file `{ref}`" if is_missing_path(ref) else f"`{ref}` is not in the library"
    return NotFound(what, hint="`civman list` lists the stored files; `civman download` adds more")


def is_missing_path(ref: Ref) -> bool:
    """Whether the ref is a path at which there is no file."""
    return isinstance(ref, PathRef) and not Path(ref.path).expanduser().exists()


def has_picture(index: Index, number: int) -> bool:
    """Whether the library has recorded an image with this number."""
    # imported on first use: the import loads the recipe types (0.02 s), which only this error needs
    from civman.index.read_pictures import PictureFilter

    return bool(index.pictures(PictureFilter(number=number), limit=1))
