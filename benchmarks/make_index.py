"""Fills an index with plausible assets, for measuring: `python benchmarks/make_index.py 30000 library.db`.

No bytes are stored: digests are the hashes of counted words, paths lead to files that are not there.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from civman.domain.catalog import (
    Blob,
    FileFacts,
    FileId,
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
from civman.domain.digests import Hashes, Sha256, autov2
from civman.index import Index, Record

START = datetime(2024, 1, 1, tzinfo=UTC)
FAMILIES = (("SD 1.5", "sd1"), ("SDXL 1.0", "sdxl"), ("Pony", "sdxl"), ("Illustrious", "sdxl"), ("Flux.1 D", "flux1"))
KINDS = ((ModelType.LORA, "adapter"), (ModelType.CHECKPOINT, "checkpoint"), (ModelType.EMBEDDING, "embedding"))
WORDS = (
    "amber", "ash", "bloom", "cedar", "cobalt", "dawn", "drift", "ember", "fern", "frost", "gale", "harbour", "ivory",
    "jade", "kite", "lumen", "moss", "noir",
)  # fmt: skip


def records(count: int, *, seed: int = 7) -> Iterator[Record]:
    """That many files, each of its own version, about two versions to a model; every tenth one an import."""
    draw = random.Random(seed)
    for number in range(1, count + 1):
        sha256 = Sha256(hashlib.sha256(f"asset {number}".encode()).hexdigest())
        kind, part = draw.choices(KINDS, weights=(8, 1, 1))[0]
        base_model, architecture = draw.choice(FAMILIES)
        title = " ".join(draw.choices(WORDS, k=3))
        name = f"{title.replace(' ', '_')}_{number}.safetensors"
        added_at = START + timedelta(minutes=number)
        size = draw.randrange(10_000_000, 7_000_000_000)
        facts = FileFacts(
            kind=part, architecture=architecture, precision="fp16", tensor_count=draw.randrange(200, 2600),
            adapter="lora" if part == "adapter" else "", rank=32 if part == "adapter" else None, key_format="kohya",
            trigger_words=(title,),
        )  # fmt: skip
        blob = Blob(sha256, size, ".safetensors", "civitai", added_at)
        path = f"blobs/sha256/{sha256[:2]}/{sha256}.safetensors"
        if number % 10 == 0:
            loose = Blob(sha256, size, ".safetensors", "civman", added_at)
            yield Record(loose, f"/srv/models/{name}", name, "import", added_at, facts=facts, model_type=kind)
            continue
        version = _version(number, title, kind, base_model, name, sha256, size, draw)
        yield Record(blob, path, name, "civitai", added_at, version, version.files[0], facts)


def _version(
    number: int, title: str, kind: ModelType, base_model: str, name: str, sha256: Sha256, size: int, draw: random.Random
) -> ModelVersion:
    model = Model(
        id=ModelId(number // 2 + 1), name=title.title(), type=kind, type_raw=kind.value,
        creator=f"creator{draw.randrange(500)}", tags=tuple(draw.sample(WORDS, 4)), description=f"<p>{title}</p>" * 10,
        licence=Licence(True, ("Image", "Rent"), True, False), download_count=draw.randrange(100_000),
        raw=json.dumps({"id": number // 2 + 1, "name": title, "description": title * 20}),
    )  # fmt: skip
    file = ModelFile(
        id=FileId(number * 3), name=name, type="Model", size_bytes=size, is_primary=True, format="SafeTensor",
        hashes=Hashes(sha256=sha256, autov2=autov2(sha256), autov3=sha256[20:32], crc32=sha256[40:48]),
        pickle_scan=Scan.SUCCESS, virus_scan=Scan.SUCCESS, raw=json.dumps({"id": number * 3, "name": name}),
    )  # fmt: skip
    return ModelVersion(
        id=VersionId(number * 2), model=model, name=f"v{number % 4}.0", base_model=base_model, files=(file,),
        published_at=START + timedelta(minutes=number), trained_words=(title, WORDS[number % len(WORDS)]),
        previews=tuple(Preview(f"https://image.civitai.com/x/{number}/{at}.jpeg", 1, 832, 1216) for at in range(3)),
        raw=json.dumps({"id": number * 2, "baseModel": base_model, "files": [{"name": name}]}),
    )  # fmt: skip


def fill(path: Path, count: int) -> float:
    """Fills the index at `path`; gives the seconds it took."""
    started = time.perf_counter()
    with Index.open(path) as index:
        index.record_all(records(count))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("path", type=Path, nargs="?", default=Path("library.db"))
    given = parser.parse_args()
    elapsed_s = fill(given.path, given.count)
    print(f"{given.count} assets in {elapsed_s:.1f} s, {given.path.stat().st_size / 1e6:.0f} MB: {given.path}")


if __name__ == "__main__":
    main()
