"""Times `--slots`: images of different prompts that are computed side by side, against one at a time.

    python benchmarks/slots.py [--full] [--side 64] [--steps 8] [--images 16] [--rounds 5] [--threads 1] [--device cpu]

Everything runs in one process with one loaded model, the numbers of slots in alternation; images are not saved. Without
`--full`, the model is the demo's. With it, a checkpoint of SD 1.5's published dimensions with random weights is written
(see `full_size.py`). Before that, encoding a plan's prompts is timed when they are new and when they are kept.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from full_size import make_files
from render_load import ROOT

from civman.domain.recipes.machine import Machine
from civman.domain.recipes.render_request import RenderRequest
from civman.library import Library
from civman.planning.plan import Conditions
from civman.planning.plan_types import Planned

WIDTHS = (1, 2, 4, 8)
DEMO = ROOT / "civman" / "demo" / "models" / "tiny-shapes.safetensors"


def plans(library: Library, path: Path, slots: int, options: argparse.Namespace) -> list[Planned]:
    """Plans of images with prompts and seeds of their own."""
    conditions = Conditions(options.device, force=True)
    return [
        library.plan(
            RenderRequest(
                str(path), f"a red circle, number {number}", seed=number, width=options.side, height=options.side,
                steps=options.steps, guidance_scale=5.0, sampler="Euler a", slots=slots,
            ),
            conditions,
        )
        for number in range(options.images)
    ]  # fmt: skip


def time_texts(planned: Sequence[Planned], machine: Machine) -> None:
    """Print how long it takes to prepare plans whose prompts are new, and to prepare them again."""
    from civman.diffusion.environment import threads
    from civman.rendering.draw import prepare
    from civman.rendering.stage_models import StageModels
    from civman.rendering.warm_engines import WarmEngines

    warm = WarmEngines(2**50)
    with threads(machine.threads):
        prepare(StageModels(planned[0], machine, warm))  # the first call of an encoder takes longer
        seconds: dict[str, list[float]] = {"new": [], "kept": []}
        for what in seconds:
            for each in planned[1:]:
                begun = time.perf_counter()
                prepare(StageModels(each, machine, warm))
                seconds[what].append(time.perf_counter() - begun)
    words = ", ".join(f"{what} {1000 * statistics.median(found):.1f} ms" for what, found in seconds.items())
    print(f"preparing a plan (median): prompts {words}", flush=True)


def measure(library: Library, path: Path, options: argparse.Namespace) -> None:
    from civman.rendering.draw import draw
    from civman.rendering.warm_engines import WarmEngines

    machine = Machine(options.device, threads=options.threads)
    wanted = {width: plans(library, path, width, options) for width in WIDTHS}
    time_texts(wanted[1], machine)
    warm = WarmEngines(2**50)
    list(draw(wanted[1][:1], machine, warm=warm))
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for number in range(options.rounds):
        for width in WIDTHS if number % 2 == 0 else WIDTHS[::-1]:
            begun = time.perf_counter()
            made = sum(1 for _ in draw(wanted[width], machine, warm=warm))
            seconds[width].append((time.perf_counter() - begun) / made)
        print(f"round {number + 1}: " + ", ".join(f"{w} slots {s[-1]:.3f} s" for w, s in seconds.items()), flush=True)
    for width, found in seconds.items():
        ratios = [one / other for one, other in zip(seconds[1], found, strict=True)]
        print(
            f"{width} slots: {statistics.median(found):.3f} s an image (minimum {min(found):.3f}), images per second "
            f"{statistics.median(ratios):.2f} times those of one at a time ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh, Library.open(Path(fresh) / "library", offline=True) as library:
        path = DEMO
        if options.full:
            make_files("sd1", options.work or Path(fresh), tiny=False)
            path = (options.work or Path(fresh)) / "base.safetensors"
        measure(library, path, options)


if __name__ == "__main__":
    main()
