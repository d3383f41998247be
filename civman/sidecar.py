"""What is kept beside a blob, enough to know it again when the index is gone."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from civman.domain.catalog import Asset, Blob, FileFacts, ModelFile, ModelType, ModelVersion
from civman.domain.digests import Sha256
from civman.index import Index
from civman.store.blobs import BlobStore, StoredBlob

_FORMAT = 1


def write_sidecar(store: BlobStore, index: Index, sha256: Sha256) -> None:
    """Keep beside the blob what the index knows of it. Raises: StoreError."""
    assets = index.referrers(sha256)
    if assets:
        blob = assets[0].blob
        store.write_sidecar(
            sha256,
            {
                "format": _FORMAT,
                "size_bytes": blob.size_bytes,
                "declared_by": blob.declared_by,
                "assets": [_entry(asset, index) for asset in reversed(assets)],
            },
        )


def restore(
    facts: dict[str, Any],
    stored: StoredBlob,
    index: Index,
    file_facts: FileFacts,
    *,
    now: datetime,
    on_notice: Callable[[str], None],
) -> int:
    """Put what a sidecar holds back into the index; how many assets that were.

    `stored` has been read and proven; `file_facts` are what it shows today.
    """
    from civman.civitai import wire  # 0.2 s for pydantic

    count = 0
    blob = Blob(stored.sha256, stored.size_bytes, stored.suffix, str(facts.get("declared_by") or "civman"), now)
    for entry in facts.get("assets", []):
        version = None
        if entry.get("model") and entry.get("version"):
            page = wire.page({**entry["model"], "modelVersions": [entry["version"]]}, now=now, on_notice=on_notice)
            version = _completed(page.versions[0], entry) if page.versions else None
        asset = index.record(
            blob=blob,
            path=str(stored.path),
            name=str(entry["name"]),
            origin=str(entry["origin"]),
            version=version,
            file=_file_named(version, entry) if version is not None else None,
            facts=file_facts,
            added_at=datetime.fromisoformat(entry["added_at"]),
            model_type=ModelType.of(entry.get("type")) if version is None else None,
        )
        if entry.get("alias"):
            index.set_alias(asset, str(entry["alias"]))
        count += 1
    return count


def _entry(asset: Asset, index: Index) -> dict[str, Any]:
    version = index.version(asset.version_id) if asset.version_id is not None else None
    return {
        "name": asset.name,
        "origin": asset.origin,
        "added_at": asset.added_at.isoformat(),
        "alias": asset.alias,
        "type": asset.type.value,
        "file_id": asset.file_id,
        "air": version.air if version is not None else None,
        "usage_control": version.usage_control if version is not None else None,
        "model": json.loads(version.model.raw) if version is not None else None,
        "version": json.loads(version.raw) if version is not None else None,
    }


def _completed(version: ModelVersion, entry: dict[str, Any]) -> ModelVersion:
    return replace(version, air=version.air or entry.get("air"), usage_control=entry.get("usage_control"))


def _file_named(version: ModelVersion, entry: dict[str, Any]) -> ModelFile | None:
    by_id = (file for file in version.files if file.id is not None and file.id == entry.get("file_id"))
    by_name = (file for file in version.files if file.name == entry.get("name"))
    return next(by_id, None) or next(by_name, None)
