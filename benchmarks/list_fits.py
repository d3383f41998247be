"""Measures `civman list --fits` in a large library: `python benchmarks/list_fits.py [COUNT]`.

Makes a checkpoint of SDXL's 2,515 tensors and COUNT small LoRAs, half of them for SDXL and half for SD 1.5, and imports
them into an index where they lie. The first run reads and checks every header and saves the verdicts; the others only
read these. Times are of whole processes.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from civman.demo.demo_weights import safetensors_bytes, sdxl_checkpoint
from civman.domain.catalog import Blob, ModelType
from civman.domain.digests import Sha256
from civman.index import Index, Record
from civman.manage.inspection import facts_of_file

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODULES = {  # a module of each family, and the shape of its weight in the demo's files
    "sdxl": ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", (8, 2048)),
    "sd1": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (8, 768)),
}


def lora(family: str, number: int) -> bytes:
    """A LoRA of one module; `number` makes its bytes different from all others."""
    module, (rows, columns) = MODULES[family]
    return safetensors_bytes(
        {f"{module}.lora_down.weight": (1, columns), f"{module}.lora_up.weight": (rows, 1)}, seed=f"{family} {number}"
    )


def record(path: Path, data: bytes, kind: ModelType) -> Record:
    """Write a file and describe it as an import does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    sha256 = Sha256(hashlib.sha256(data).hexdigest())
    blob = Blob(sha256, len(data), ".safetensors", "civman", NOW)
    return Record(blob, str(path), path.name, "import", NOW, facts=facts_of_file(path, None), model_type=kind)


def make(root: Path, count: int) -> None:
    folder = root.parent / "models"
    records = [record(folder / "base.safetensors", sdxl_checkpoint("benchmark"), ModelType.CHECKPOINT)]
    for number in range(count):
        family = ("sdxl", "sd1")[number % 2]
        path = folder / f"{number // 1000}" / f"{family}-{number}.safetensors"
        records.append(record(path, lora(family, number), ModelType.LORA))
    with Index.open(root / "library.db") as index:
        index.record_all(records)


def list_fits(root: Path) -> tuple[float, float, int]:
    """Return seconds, seconds of CPU, and the number of files that fit."""
    environ = os.environ | {"CIVMAN_LIBRARY": str(root), "CIVMAN_CONFIG_DIR": str(root / "config")}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "civman", "list", "--fits", "base", "--json"],
        env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    elapsed_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return elapsed_s, cpu_s, json.loads(done.stdout)["list"]["total"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=30_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "library"
        root.mkdir()
        make(root, given.count)
        print("| run | seconds | seconds of CPU | files that fit |")
        print("|---|---:|---:|---:|")
        for name in ("first", "again", "again", "again"):
            elapsed_s, cpu_s, total = list_fits(root)
            print(f"| {name} | {elapsed_s:.2f} | {cpu_s:.2f} | {total:,} |", flush=True)


if __name__ == "__main__":
    main()
