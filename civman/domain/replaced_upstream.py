"""Detect files that CivitAI has replaced: it now declares a digest that differs from the stored file's digest."""

from collections.abc import Sequence
from dataclasses import dataclass

from civman.domain.catalog import Asset, FileId, ModelFile, ModelId, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.printed_refs import file_ref


@dataclass(frozen=True, slots=True)
class Replaced:
    """A file in the library for which CivitAI now declares different contents. The library can keep both versions."""

    ref: str
    model_id: ModelId
    model_name: str
    version_id: VersionId
    version_name: str
    file_id: FileId | None
    file_name: str
    held_sha256: Sha256
    declared_sha256: Sha256
    size_bytes: int | None


def replaced(version: ModelVersion, assets: Sequence[Asset]) -> list[Replaced]:
    """Find the files of `version` whose stored contents differ from those that CivitAI now declares."""
    found = []
    for file in version.files:
        of_file = [asset for asset in assets if asset.version_id == version.id and _is_file(asset, file)]
        declared = file.hashes.sha256
        if of_file and declared is not None and all(asset.blob.sha256 != declared for asset in of_file):
            found.append(
                Replaced(
                    ref=file_ref(version, file),
                    model_id=version.model.id,
                    model_name=version.model.name,
                    version_id=version.id,
                    version_name=version.name,
                    file_id=file.id,
                    file_name=file.name,
                    held_sha256=of_file[0].blob.sha256,
                    declared_sha256=declared,
                    size_bytes=file.size_bytes,
                )
            )
    return found


def _is_file(asset: Asset, file: ModelFile) -> bool:
    return asset.file_id == file.id if file.id is not None else asset.name == file.name
