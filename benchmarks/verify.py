"""Measures `civman verify` of a library that has not changed: `python benchmarks/verify.py [COUNT]`.

Makes COUNT small safetensors files, half in the store, half elsewhere and taken in where they lie; proves all of them
once (`--full`), then again. What a process read from files is what the system counted (`/proc/<pid>/io`, Linux).
"""

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from civman.domain.catalog import Blob
from civman.domain.digests import Sha256
from civman.index import Index, Record

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def tiny(number: int) -> bytes:
    """A sound safetensors file of one number."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", number)


def make(root: Path, count: int) -> None:
    elsewhere = root.parent / "elsewhere"
    records = []
    for number in range(count):
        data = tiny(number)
        sha256 = Sha256(hashlib.sha256(data).hexdigest())
        folder = root / "blobs" / "sha256" / sha256[:2] if number % 2 else elsewhere / f"{number // 1000}"
        path = folder / f"{sha256}.safetensors" if number % 2 else folder / f"model {number}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        blob = Blob(sha256, len(data), ".safetensors", "civman", NOW)
        records.append(Record(blob, str(path), f"model {number}.safetensors", "import", NOW))
    with Index.open(root / "library.db") as index:
        index.record_all(records)


def verify(root: Path, *options: str) -> tuple[float, str, int | None]:
    """Seconds, what it said last, and bytes read from files (None where the system does not count)."""
    code = (
        "import sys; from civman.cli.app import main; code = main(sys.argv[1:]); "
        "from pathlib import Path; io = Path('/proc/self/io'); "
        "print(io.read_text() if io.exists() else '', file=sys.stderr); sys.exit(code)"
    )
    environ = os.environ | {"CIVMAN_LIBRARY": str(root), "CIVMAN_CONFIG_DIR": str(root / "config")}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", *options], env=environ, capture_output=True, text=True, check=True
    )
    elapsed_s = time.perf_counter() - started
    read = next((int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("rchar:")), None)
    return elapsed_s, done.stdout.splitlines()[-1], read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=30_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "library"
        make(root, given.count)
        print("| run | seconds | read by the process | said |")
        print("|---|---:|---:|---|")
        for name, options in (("first, --full", ("--full",)), ("again", ()), ("again", ()), ("again", ())):
            elapsed_s, said, read = verify(root, *options)
            print(f"| {name} | {elapsed_s:.2f} | {read / 1e6 if read else 0:.1f} MB | {said} |", flush=True)
        weights = sum(len(tiny(number)) for number in range(given.count))
        print(f"\nall files together: {weights / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
