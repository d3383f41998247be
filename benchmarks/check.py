"""Times the check of an SDXL checkpoint and a LoRA from their headers.

    python benchmarks/check.py [CHECKPOINT LORA]

Without arguments the demo's files are used: the names of a full-size SDXL file and of a LoRA on all its attention, at
thin widths. The cost depends on how many names there are, not on widths. Imports are not counted.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from civman.demo.demo_weights import sdxl_checkpoint, sdxl_lora
from civman.domain.compatibility import check
from civman.manage.inspection import inspect_path

ROUNDS = 15


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        if len(sys.argv) == 3:
            checkpoint, lora = Path(sys.argv[1]), Path(sys.argv[2])
        else:
            checkpoint, lora = Path(work, "checkpoint.safetensors"), Path(work, "lora.safetensors")
            checkpoint.write_bytes(sdxl_checkpoint("benchmark"))
            lora.write_bytes(sdxl_lora("benchmark", tags={"style": 10}))
        whole, only = [], []
        for _ in range(ROUNDS + 1):
            start = time.process_time()
            parts = inspect_path(checkpoint).part, inspect_path(lora).part
            middle = time.process_time()
            found = check(parts[0], [parts[1]])
            end = time.process_time()
            whole.append((end - start) * 1e3)
            only.append((end - middle) * 1e3)
        fit = found.parts[0].modules
        tensors = [len(part.header.tensors) for part in parts if part.header]
    print(f"{tensors[0]} and {tensors[1]} tensors; {found.verdict}: {fit.words if fit else ''}")
    for name, times in (("read, identify and check", whole[1:]), ("check alone", only[1:])):
        median = statistics.median(times)
        print(f"{name:<26} min {min(times):5.1f}  median {median:5.1f}  max {max(times):5.1f} ms of CPU")


if __name__ == "__main__":
    main()
