"""Times the steps of `--precision bfloat16` against float32 on this CPU, and compares the two images.

    python benchmarks/precision.py [--family sd1] [--side 256] [--steps 6] [--rounds 3] [--threads 2] [--tiny]

A checkpoint of the published dimensions with seeded random weights is written (see `full_size.py`) and imported. Each
image is rendered in a process of its own, the precisions in alternation, with the same number of threads. The time of a
step is the time between two `Step` events of the library, so that the first step, loading and decoding do not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from full_size import make_files
from render_load import ROOT

PRECISIONS = ("float32", "bfloat16")


def render(precision: str, options: argparse.Namespace, output: Path) -> None:
    """Render one image in this process; print the seconds of each step after the first, and the image's path."""
    from civman.domain.events import Event, Step
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.render_request import RenderRequest
    from civman.library import Library
    from civman.planning.plan import Conditions

    times: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            times.append(time.perf_counter())

    request = RenderRequest(
        "base", "a harbour at dawn, oil painting", negative_prompt="blurry", seed=7, width=options.side,
        height=options.side, steps=options.steps, guidance_scale=5.0, sampler="Euler", precision=precision,
    )  # fmt: skip
    with Library.open(offline=True) as library:
        planned = library.plan(request, Conditions(force=True))
        (made,) = library.render(planned, output=output, machine=Machine("cpu", threads=options.threads), on_event=note)
    steps = [after - before for before, after in pairwise(times)]
    print(json.dumps({"steps": steps, "path": str(made.path)}))


def psnr(one: str, other: str) -> float:
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(path), dtype=np.float64) for path in (one, other))
    error = float(((first - second) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", default="sd1", choices=("sd1", "sdxl"))
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--render", choices=PRECISIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.render:
        render(options.render, options, options.work / options.render)
        return
    with tempfile.TemporaryDirectory() as fresh:
        measure(options, options.work or Path(fresh))


def measure(options: argparse.Namespace, work: Path) -> None:
    make_files(options.family, work, tiny=options.tiny)
    environ = os.environ | {"CIVMAN_LIBRARY": str(work / "library"), "CIVMAN_OFFLINE": "1"}
    civman = [sys.executable, "-m", "civman", "import", "--offline", "--quiet", str(work / "base.safetensors")]
    subprocess.run(civman, env=environ, check=True, cwd=ROOT)
    seconds: dict[str, list[float]] = {each: [] for each in PRECISIONS}
    paths: dict[str, str] = {}
    words = [f"--{name}={getattr(options, name)}" for name in ("side", "steps", "threads")]
    for number in range(options.rounds):
        for each in PRECISIONS if number % 2 == 0 else PRECISIONS[::-1]:
            command = [sys.executable, __file__, "--render", each, "--work", str(work), *words]
            done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            seconds[each] += found["steps"]
            paths[each] = found["path"]
            print(f"round {number + 1} {each:9} " + " ".join(f"{each:.2f}" for each in found["steps"]), flush=True)
    for each in PRECISIONS:
        print(f"{each:9} median {statistics.median(seconds[each]):.3f} s a step, minimum {min(seconds[each]):.3f} s")
    medians = [statistics.median(seconds[each]) for each in PRECISIONS]
    minima = [min(seconds[each]) for each in PRECISIONS]
    print(f"float32 / bfloat16: medians {medians[0] / medians[1]:.2f}, minima {minima[0] / minima[1]:.2f}; "
          f"PSNR of the images {psnr(*paths.values()):.1f} dB")  # fmt: skip


if __name__ == "__main__":
    main()
