"""How refs are printed: always in a form that identifies one thing, so that every command accepts a printed ref.

A file is printed as `model@version+file` if its version lists several files, as `model@version` if it is the only one.
How many files a version lists does not depend on what was downloaded, so a printed ref keeps its meaning. A file
without an id on CivitAI is printed as its alias, else as the first digits of its SHA-256. No other module formats refs.
"""

from collections.abc import Mapping

from civman.domain.catalog import FileId, ModelFile, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.digests import Sha256
from civman.domain.refs import Air, FileSelector, HashKind, HashRef, NameRef, PictureRef, VersionRef, parse_ref
from civman.errors import AmbiguousRef

_SHOWN_DIGITS = 12
_MOST_SHOWN = 8
_AIR_TYPES = {
    ModelType.LOCON: "lycoris",
    ModelType.EMBEDDING: "embedding",
    ModelType.HYPERNETWORK: "hypernet",
    ModelType.AESTHETIC_GRADIENT: "ag",
    ModelType.MOTION_MODULE: "motion",
    ModelType.TEXT_ENCODER: "text_encoders",
    ModelType.OTHER: "unknown",
}


def file_ref(version: ModelVersion, file: ModelFile) -> str:
    """Format the ref of one file of a version on CivitAI."""
    return print_ref(version.id, file.id, len(version.files), model_id=version.model.id, sha256=file.hashes.sha256)


def bare_version_ref(version_id: int, model_id: int | None = None) -> str:
    """Format the ref of a version without specifying a file, even if the version has several."""
    return str(VersionRef(VersionId(version_id), None if model_id is None else ModelId(model_id)))


def print_ref(
    version_id: VersionId | None,
    file_id: FileId | None,
    file_count: int,
    *,
    model_id: ModelId | None = None,
    sha256: Sha256 | None = None,
    alias: str | None = None,
    is_exact: bool = True,
) -> str:
    """Format the ref of one file: its version if known, else its alias, else its SHA-256.

    `file_count` is the number of files that the version has, on CivitAI or in the library. `is_exact` is False if the
    library has several files with this version and file id, for example because CivitAI replaced the file.
    """
    if version_id is not None and is_exact:
        if file_id is not None and file_count > 1:
            return str(VersionRef(version_id, model_id, FileSelector(file_id)))
        if file_count <= 1 or (sha256 is None and alias is None):
            return str(VersionRef(version_id, model_id))
    if alias is not None:
        return str(NameRef(alias))
    if sha256 is not None:
        return sha256_ref(sha256)
    return str(VersionRef(version_id, model_id)) if version_id is not None else ""


def sha256_ref(sha256: Sha256) -> str:
    """Format a ref with the first digits of a file's SHA-256."""
    return str(HashRef(sha256[:_SHOWN_DIGITS], HashKind.SHA256))


def picture_ref(number: int) -> str:
    """Format the ref of an image that was made with this library."""
    return str(PictureRef(number))


def ambiguous_ref(message: str, candidates: Mapping[str, str]) -> AmbiguousRef:
    """Build the error for an ambiguous ref. `candidates` maps the ref of each possible meaning to its name."""
    shown = [f"{ref} ({name})" if name else ref for ref, name in candidates.items()]
    more = f"; and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    hint = f"choose one: {'; '.join(shown[:_MOST_SHOWN])}{more}"
    return AmbiguousRef(message, hint=hint, candidates=list(candidates))


def air_of(version: ModelVersion, *, ecosystem: str | None = None, file_id: FileId | None = None) -> Air:
    """Return the AIR of `version`: the one that CivitAI gave, or else one built from what is known.

    Without an ecosystem the type is left out too, as the AIR grammar requires.
    """
    given = parse_ref(version.air) if version.air else None
    if isinstance(given, Air):
        ecosystem, kind = given.ecosystem, given.type
    else:
        kind = _AIR_TYPES.get(version.model.type, version.model.type.value.lower()) if ecosystem else None
    return Air(version.model.id, version.id, ecosystem, kind, file_id)
