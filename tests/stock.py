"""A library filled with tiny generated models, without any server."""

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from civman.domain.catalog import (
    Blob,
    FileFacts,
    FileId,
    Model,
    ModelFile,
    ModelId,
    ModelType,
    ModelVersion,
    VersionId,
)
from civman.domain.digests import Hashes, Sha256
from civman.index import Index
from civman.index.index_types import Record
from civman.store.blobs import BlobStore

START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = (
    ModelType.LORA, ModelType.CHECKPOINT, ModelType.EMBEDDING, ModelType.VAE, ModelType.CONTROLNET,
    ModelType.UPSCALER, ModelType.TEXT_ENCODER, ModelType.UNET,
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def put(
    root: Path,
    number: int,
    *,
    name: str | None = None,
    type_: ModelType = ModelType.LORA,
    data: bytes | None = None,
    precision: str = "fp16",
    version_name: str = "v1",
    base_model: str = "SDXL 1.0",
    preview: bytes | None = None,
) -> Record:
    """A stored blob and the record that describes it."""
    data = data if data is not None else f"model {number}".encode() * 600
    sha256 = Sha256(hashlib.sha256(data).hexdigest())
    store = BlobStore(root)
    path = store.place_of(sha256, ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    if preview is not None:
        store.write_preview(sha256, preview, ".png")
    name = name or f"model_{number:03}.safetensors"
    file = ModelFile(FileId(number + 20_000), name, "Model", len(data), Hashes(sha256=sha256), is_primary=True)
    model = Model(ModelId(number + 2), f"Model {number}", type_, type_.value, creator="saltpan", tags=("style",))
    raw = f'{{"id": {number + 10_000}, "name": "{version_name}", "baseModel": "{base_model}", "files": []}}'
    version = ModelVersion(
        VersionId(number + 10_000), model, version_name, base_model, (file,), trained_words=("red fox",),
        description="<p>Warm &amp; soft.</p>", published_at=START, raw=raw,
    )  # fmt: skip
    added_at = START + timedelta(minutes=number)
    blob = Blob(sha256, len(data), ".safetensors", "civitai", added_at)
    facts = FileFacts(precision=precision, architecture="sdxl")
    return Record(blob, str(path), name, "civitai", added_at, version, file, facts)


def fill(root: Path, records: list[Record]) -> None:
    """Write the records into the library's index."""
    root.mkdir(parents=True, exist_ok=True)
    with Index.open(root / "library.db") as index:
        index.record_all(records)


def stock(root: Path, count: int) -> list[Record]:
    """`count` models of all types; every tenth has a preview. In the index already."""
    records = [
        put(root, number, type_=TYPES[number % len(TYPES)], preview=PNG if number % 10 == 0 else None)
        for number in range(count)
    ]
    fill(root, records)
    return records
