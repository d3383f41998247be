"""Domain values to put into an index; each helper fills every field with something that is no default."""

import hashlib
from datetime import UTC, datetime, timedelta

from civman.domain.catalog import (
    Blob,
    FileFacts,
    FileId,
    Gate,
    Licence,
    Model,
    ModelFile,
    ModelId,
    ModelType,
    ModelVersion,
    Preview,
    Scan,
    VersionId,
)
from civman.domain.digests import Hashes, Sha256

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FACTS = FileFacts(
    "adapter", "sdxl", "lora", "kohya", "fp16", 32, 722, "sdxl_base_v1-0", ("a", "b, c"), ("conv",), ("x",)
)


def sha(text: str) -> Sha256:
    return Sha256(hashlib.sha256(text.encode()).hexdigest())


def blob(text: str = "x", **more: object) -> Blob:
    given = {"size_bytes": 123, "suffix": ".safetensors", "declared_by": "civitai", "verified_at": NOON} | more
    return Blob(sha(text), **given)  # type: ignore[arg-type]


def model(number: int = 1, **more: object) -> Model:
    given: dict[str, object] = {
        "name": f"Model {number} ", "type": ModelType.LORA, "type_raw": "LORA", "nsfw": True, "nsfw_level": 31,
        "real_person": True, "mode": "Archived", "creator": "Ünï", "tags": ("style", "a,b"), "description": "<p>é</p>",
        "licence": Licence(True, ("Image", "Rent"), False, None), "download_count": 5, "thumbs_up_count": 0,
        "raw": '{"id": 1, "x": null}',
    }  # fmt: skip
    return Model(ModelId(number), **(given | more))  # type: ignore[arg-type]


def file(number: int | None = 33, text: str = "x", **more: object) -> ModelFile:
    given: dict[str, object] = {
        "name": f"file {number}.safetensors", "type": "Model", "size_bytes": 123, "is_primary": True,
        "hashes": Hashes(sha(text), "b" * 64, "c" * 8, "d" * 8, sha(text)[:10], "e" * 12), "format": "SafeTensor",
        "precision": "fp16", "size_class": "pruned", "quant_type": "Q8_0", "pickle_scan": Scan.SUCCESS,
        "virus_scan": Scan.DANGER, "scan_message": "m", "download_url": "https://civitai.com/d", "raw": '{"f": 1}',
    }  # fmt: skip
    return ModelFile(None if number is None else FileId(number), **(given | more))  # type: ignore[arg-type]


def version(number: int = 2, of: Model | None = None, **more: object) -> ModelVersion:
    given: dict[str, object] = {
        "name": f"v{number}", "base_model": "SDXL 1.0", "files": (file(number * 10, f"x{number}"),),
        "base_model_type": "Standard", "published_at": NOON, "trained_words": ("red fox", "den"), "description": "d",
        "air": f"urn:air:sdxl:lora:civitai:1@{number}", "gate": Gate(False, NOON + timedelta(days=1, microseconds=7)),
        "usage_control": "Download", "status": "Published", "availability": "Public", "nsfw_level": 3,
        "previews": (Preview("https://a/1", 1, 2, 3, "video"), Preview("https://a/2")),
        "download_url": "https://civitai.com/d", "download_count": 7, "thumbs_up_count": 8, "raw": '{"v": "ünï"}',
    }  # fmt: skip
    return ModelVersion(VersionId(number), of or model(), **(given | more))  # type: ignore[arg-type]
