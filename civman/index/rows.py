"""Convert between domain values and database rows: pure functions, used for reading and writing.

Values are read from rows by position, in the order of the `*_COLUMNS` below, so that building 30,000 assets takes a
fraction of a second.
"""

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from civman.domain.catalog import (
    NOTHING_SAID,
    Asset,
    Blob,
    FileFacts,
    Gate,
    Licence,
    Model,
    ModelFile,
    ModelType,
    ModelVersion,
    Own,
    Preview,
    Scan,
)
from civman.domain.digests import Hashes
from civman.domain.printed_refs import print_ref

Values = dict[str, Any]
_TYPES = {member.value: member for member in ModelType}

MODEL_COLUMNS = (
    "id, name, type, type_raw, nsfw, nsfw_level, real_person, mode, creator, tags, description, credit_required, "
    "commercial_use, derivatives_allowed, different_licence_allowed, download_count, thumbs_up_count, is_complete, raw"
)
VERSION_COLUMNS = (
    "id, name, base_model, base_model_type, published_at, trained_words, description, air, is_gated, gate_permanent, "
    "gate_ends_at, usage_control, status, availability, nsfw_level, download_url, download_count, thumbs_up_count, raw"
)
FILE_COLUMNS = (
    "file_id, name, type, size_bytes, sha256, blake3, crc32, autov1, autov2, autov3, is_primary, is_linked, format, "
    "precision, size_class, quant_type, pickle_scan, virus_scan, scan_message, download_url, raw"
)
PREVIEW_COLUMNS = "url, nsfw_level, width, height, media"
ASSET_COLUMNS = (
    "b.sha256, b.size_bytes, b.suffix, b.declared_by, b.verified_at, b.path, "
    "b.kind, b.architecture, b.adapter, b.key_format, b.precision, b.rank, b.tensor_count, b.claimed_base, "
    "b.trigger_words, b.flags, b.conflicts, b.output_name, "
    "a.name, a.origin, a.added_at, a.type, a.type_raw, a.base_model, a.model_id, a.version_id, a.alias, "
    "f.file_id, m.name, m.creator, v.name, v.trained_words, "
    "a.last_used_at, n.asset_id, n.note, n.tags, n.trigger_words, n.rating, n.is_favourite, "
    "(SELECT json_group_array(reason) FROM pin WHERE pin.blob_sha256 = a.blob_sha256), "
    "max((SELECT count(*) FROM file s WHERE s.version_id = a.version_id), "
    "(SELECT count(DISTINCT o.blob_sha256) FROM asset o WHERE o.version_id = a.version_id)), "
    "NOT EXISTS (SELECT 1 FROM asset o WHERE o.version_id = a.version_id AND o.file_key IS a.file_key "
    "AND o.blob_sha256 <> a.blob_sha256)"
)
"""The columns of an asset. The last two decide how the asset's ref is printed."""
ASSET_TABLES = (
    "asset a JOIN blob b ON b.sha256 = a.blob_sha256 LEFT JOIN file f ON f.key = a.file_key "
    "LEFT JOIN version v ON v.id = a.version_id LEFT JOIN model m ON m.id = a.model_id "
    "LEFT JOIN annotation n ON n.asset_id = a.id"
)


def moment(when: datetime) -> str:
    """Convert a time to the text that the database stores. Raises: ValueError: it has no time zone."""
    if when.tzinfo is None:
        raise ValueError(f"a time without a time zone: {when}")
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def maybe_moment(when: datetime | None) -> str | None:
    """Convert a time to the text that the database stores; None stays None."""
    return None if when is None else moment(when)


def when(text: str | None) -> datetime | None:
    """Convert a time from the text that the database stores; None stays None."""
    return None if text is None else datetime.fromisoformat(text)


def key(text: str) -> str:
    """Normalise `text` for comparison: ignore case, Unicode composition differences and surrounding spaces."""
    if text.isascii():
        return text.strip().lower()
    return unicodedata.normalize("NFKC", text).strip().casefold()


def words(given: Sequence[str]) -> str:
    """Convert a list of strings to JSON."""
    return json.dumps(list(given)) if given else "[]"


def from_words(text: str) -> tuple[str, ...]:
    """Convert a JSON array of strings to a tuple."""
    return () if text == "[]" else tuple(json.loads(text))


def model_values(model: Model) -> Values:
    """The column values of a model."""
    licence = model.licence
    return {
        "id": model.id,
        "name": model.name,
        "type": model.type.value,
        "type_raw": model.type_raw,
        "nsfw": model.nsfw,
        "nsfw_level": model.nsfw_level,
        "real_person": model.real_person,
        "mode": model.mode,
        "creator": model.creator,
        "creator_key": None if model.creator is None else key(model.creator),
        "tags": words(model.tags),
        "description": model.description,
        "credit_required": licence.credit_required,
        "commercial_use": None if licence.commercial_use is None else words(licence.commercial_use),
        "derivatives_allowed": licence.derivatives_allowed,
        "different_licence_allowed": licence.different_licence_allowed,
        "download_count": model.download_count,
        "thumbs_up_count": model.thumbs_up_count,
        "is_complete": model.is_complete,
        "raw": model.raw,
    }


def model_from(row: Sequence[Any]) -> Model:
    """Build a model from a row of MODEL_COLUMNS."""
    (number, name, kind, type_raw, nsfw, level, real, mode, creator, tags, description,
     credit, commercial, derivatives, different, downloads, thumbs, complete, raw) = row  # fmt: skip
    uses = None if commercial is None else from_words(commercial)
    return Model(
        number, name, _TYPES.get(kind, ModelType.OTHER), type_raw, bool(nsfw), level, bool(real), mode, creator,
        from_words(tags), description, Licence(_fact(credit), uses, _fact(derivatives), _fact(different)),
        downloads, thumbs, bool(complete), raw,
    )  # fmt: skip


def version_values(version: ModelVersion) -> Values:
    """The column values of a version."""
    gate = version.gate
    return {
        "id": version.id,
        "model_id": version.model.id,
        "name": version.name,
        "base_model": version.base_model,
        "base_model_type": version.base_model_type,
        "published_at": maybe_moment(version.published_at),
        "trained_words": words(version.trained_words),
        "description": version.description,
        "air": version.air,
        "is_gated": gate is not None,
        "gate_permanent": gate is not None and gate.permanent,
        "gate_ends_at": None if gate is None else maybe_moment(gate.ends_at),
        "usage_control": version.usage_control,
        "status": version.status,
        "availability": version.availability,
        "nsfw_level": version.nsfw_level,
        "download_url": version.download_url,
        "download_count": version.download_count,
        "thumbs_up_count": version.thumbs_up_count,
        "raw": version.raw,
    }


def version_from(row: Sequence[Any], model: Model, files: Sequence[Any], previews: Sequence[Any]) -> ModelVersion:
    """Build a version from a row of VERSION_COLUMNS and the rows of its files and previews."""
    (number, name, base, base_type, published, trained, description, air, gated, permanent, ends, usage, status,
     availability, level, url, downloads, thumbs, raw) = row  # fmt: skip
    return ModelVersion(
        number, model, name, base, tuple(file_from(file) for file in files), base_type, when(published),
        from_words(trained), description, air, Gate(bool(permanent), when(ends)) if gated else None, usage, status,
        availability, level, tuple(Preview(*preview) for preview in previews), url, downloads, thumbs, raw,
    )  # fmt: skip


def file_values(file: ModelFile) -> Values:
    """The column values of a file."""
    return {
        "file_id": file.id,
        "name": file.name,
        "type": file.type,
        "size_bytes": file.size_bytes,
        "sha256": file.hashes.sha256,
        "blake3": file.hashes.blake3,
        "crc32": file.hashes.crc32,
        "autov1": file.hashes.autov1,
        "autov2": file.hashes.autov2,
        "autov3": file.hashes.autov3,
        "is_primary": file.is_primary,
        "is_linked": file.is_linked,
        "format": file.format,
        "precision": file.precision,
        "size_class": file.size_class,
        "quant_type": file.quant_type,
        "pickle_scan": file.pickle_scan.value,
        "virus_scan": file.virus_scan.value,
        "scan_message": file.scan_message,
        "download_url": file.download_url,
        "raw": file.raw,
    }


def file_from(row: Sequence[Any]) -> ModelFile:
    """Build a file from a row of FILE_COLUMNS."""
    (number, name, kind, size, sha256, blake3, crc32, autov1, autov2, autov3, primary, linked, form, precision,
     size_class, quant, pickle_scan, virus_scan, message, url, raw) = row  # fmt: skip
    return ModelFile(
        number, name, kind, size, Hashes(sha256, blake3, crc32, autov1, autov2, autov3), bool(primary), bool(linked),
        form, precision, size_class, quant, Scan.of(pickle_scan), Scan.of(virus_scan), message, url, raw,
    )  # fmt: skip


def preview_values(preview: Preview) -> Values:
    """The column values of a preview."""
    return {name: getattr(preview, name) for name in ("url", "nsfw_level", "width", "height", "media")}


def facts_values(facts: FileFacts) -> Values:
    """The column values of what a file's header shows."""
    return {
        "kind": facts.kind,
        "architecture": facts.architecture,
        "adapter": facts.adapter,
        "key_format": facts.key_format,
        "precision": facts.precision,
        "rank": facts.rank,
        "tensor_count": facts.tensor_count,
        "claimed_base": facts.claimed_base,
        "trigger_words": words(facts.trigger_words),
        "flags": words(facts.flags),
        "conflicts": words(facts.conflicts),
        "output_name": facts.output_name or None,
    }


def blob_values(blob: Blob, path: str, facts: FileFacts, hashes: Hashes) -> Values:
    """The column values of a blob. `path` is the result of `kept_path`."""
    return {
        "sha256": blob.sha256,
        "size_bytes": blob.size_bytes,
        "suffix": blob.suffix,
        "declared_by": blob.declared_by,
        "verified_at": moment(blob.verified_at),
        "path": path,
        "blake3": hashes.blake3,
        "crc32": hashes.crc32,
        "autov1": hashes.autov1,
        "autov3": hashes.autov3,
        **facts_values(facts),
    }


def asset_from(row: Sequence[Any], folder: str) -> Asset:
    """Build an asset from a row of ASSET_COLUMNS. `folder` is the database's folder and ends with a separator."""
    (sha256, size, suffix, declared_by, verified_at, path,
     kind, architecture, adapter, key_format, precision, rank, tensors, claimed, triggers, flags, conflicts, own_name,
     name, origin, added_at, model_type, type_raw, base_model, model_id, version_id, alias,
     file_id, model_name, creator, version_name, trained,
     used_at, said, note, own_tags, own_words, rating, favourite, pins, file_count, is_exact) = row  # fmt: skip
    facts = FileFacts(
        kind, architecture, adapter, key_format, precision, rank, tensors, claimed,
        from_words(triggers), from_words(flags), from_words(conflicts), own_name or "",
    )  # fmt: skip
    return Asset(
        Blob(sha256, size, suffix, declared_by, datetime.fromisoformat(verified_at)), name, _full_path(path, folder),
        origin, datetime.fromisoformat(added_at), _TYPES.get(model_type, ModelType.OTHER), type_raw, base_model,
        model_id, version_id, file_id, model_name or "", version_name or "", creator,
        from_words(trained) if trained else (), alias, facts,
        NOTHING_SAID
        if said is None
        else Own(note, from_words(own_tags), from_words(own_words), rating, bool(favourite)),
        from_words(pins), when(used_at),
        print_ref(
            version_id, file_id, file_count, model_id=model_id, sha256=sha256, alias=alias, is_exact=bool(is_exact)
        ),
    )  # fmt: skip


def own_values(own: Own) -> Values:
    """The column values for the user's annotations of an asset."""
    return {
        "note": own.note,
        "tags": words(own.tags),
        "trigger_words": words(own.trigger_words),
        "rating": own.rating,
        "is_favourite": own.is_favourite,
    }


def kept_path(path: str | Path, folder: Path) -> str:
    """A path as it is stored: relative to `folder`, with `/`, if it is inside; otherwise absolute."""
    absolute = Path(os.path.normpath(Path(path).absolute()))
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


def search_text(values: Mapping[str, Any], model: Model | None, version_name: str, trained: Sequence[str]) -> str:
    """The names and words by which an asset can be found, one per line."""
    about = [model.name, model.creator or "", *model.tags] if model else []
    parts = [values["name"], values["alias"] or "", *about, version_name, *trained, values["base_model"] or ""]
    return "\n".join(key(part) for part in parts if part)


def _full_path(path: str, folder: str) -> str:
    if os.path.isabs(path):  # noqa: PTH117  a Path object costs more than the rest of the row
        return path
    return folder + (path if os.sep == "/" else path.replace("/", os.sep))


def _fact(stored: int | None) -> bool | None:
    return None if stored is None else bool(stored)
