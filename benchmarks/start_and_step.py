"""Times a render from Enter to its first step, and each further step, against another commit and plain diffusers.

    python benchmarks/start_and_step.py [--before DIR] [--shapes tiny sd1] [--rounds 5] [--steps 2] [--threads 2]

`--before`: a work tree of another commit of civman, for example from `git worktree add DIR e56a966`; it runs with this
Python and its packages. Shapes: the tests' tiny model at 64x64, and SD 1.5 in its published dimensions with random
weights at 512x512 (2.1 GB are written). All sides run in turn, each run in a process of its own with the same number of
threads, in float32 on the CPU, with their Python files compiled and the model's file in the page cache. Each process
ends after its last step, before the image is decoded.

The phases are measured alike on all sides: when torch is first imported, when that is done, when the text encoder is
first called, and at each call of the UNet. Ratios are medians over the rounds of the ratio within one round.
"""

import argparse
import importlib.abc
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
from render_load import PIPELINES, ROOT

PROMPT, NEGATIVE, SEED, CFG = "a harbour at dawn, oil painting", "blurry", 7, 5.0
SIDES_PX = {"tiny": 64, "sd1": 512}
PHASES = {
    "plan": "until torch is imported", "torch": "import torch", "load": "classes, model, until text is encoded",
    "encode": "encode the prompts", "first": "the first call of the UNet",
}  # fmt: skip
Marks = list[tuple[str, float, float]]


class Watch(importlib.abc.MetaPathFinder):
    """Notes when torch is imported and when models are called, and ends the process after the last step.

    torch's `__init__` imports `torch._utils` first and `torch._native` last.
    """

    def __init__(self, steps: int) -> None:
        self.marks: Marks = []
        self.left = steps
        sys.meta_path.insert(0, self)

    def mark(self, name: str) -> None:
        self.marks.append((name, time.monotonic() - float(os.environ["STARTED"]), time.process_time()))

    def find_spec(self, fullname: str, *_: object) -> None:  # type: ignore[override]
        if fullname == "torch._utils":
            self.mark("plan")
        elif fullname == "torch._native":
            sys.meta_path.remove(self)
            self.mark("torch")
            hooks = sys.modules["torch"].nn.modules.module
            hooks.register_module_forward_pre_hook(self.before)
            hooks.register_module_forward_hook(self.after)

    def before(self, module: Any, _arguments: object) -> None:
        kind = type(module).__name__
        if kind in ("ClipText", "CLIPTextModel", "CLIPTextTransformer") and self.marks[-1][0] == "torch":
            self.mark("load")
        elif kind == "UNet2DConditionModel":
            self.mark("encode" if self.marks[-1][0] == "load" else "call")

    def after(self, module: Any, _arguments: object, _output: object) -> None:
        if type(module).__name__ != "UNet2DConditionModel":
            return
        self.mark("first" if self.marks[-1][0] == "encode" else "end")
        self.left -= 1
        if not self.left:
            Path(os.environ["MARKS"]).write_text(json.dumps(self.marks))
            os._exit(0)


def run_civman(words: list[str], steps: int) -> None:
    watch = Watch(steps)
    from civman.__main__ import main

    sys.argv = ["civman", *words]
    sys.exit(main() or f"the render ended before step {steps}; {watch.left} are left")


def run_diffusers(folder: Path, side: int, steps: int, threads: int) -> None:
    """The script that everybody writes."""
    Watch(steps)
    import diffusers
    import torch

    torch.set_num_threads(threads)
    pipe = getattr(diffusers, PIPELINES["sd1"]).from_single_file(
        str(folder / "base.safetensors"), config=str(folder / "config"), torch_dtype=torch.float32,
        local_files_only=True,
    )  # fmt: skip
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.safety_checker = None
    generator = torch.Generator().manual_seed(SEED)
    pipe(PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=CFG, width=side, height=side,
         generator=generator)  # fmt: skip


def measured(side: str, shape: str, options: argparse.Namespace, work: Path) -> dict[str, float]:
    """Run one side in a process of its own. Returns the seconds of its phases, of all together, and of a step."""
    folder, px, marks = work / shape, SIDES_PX[shape], work / "marks.json"
    marks.unlink(missing_ok=True)
    root = {"now": ROOT, "before": options.before, "diffusers": ROOT}[side]
    environ = os.environ | {
        "CIVMAN_LIBRARY": str(folder / side), "CIVMAN_OFFLINE": "1", "CIVMAN_CONFIG_DIR": str(work / "config"),
        "PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(work / "bytecode"), "PYTHONDONTWRITEBYTECODE": "",
        "HF_HUB_OFFLINE": "1", "MARKS": str(marks), "OMP_NUM_THREADS": str(options.threads),
    }  # fmt: skip
    command = [sys.executable, __file__, "--run", side, "--work", str(folder), "--side", str(px),
               "--steps", str(options.steps), "--threads", str(options.threads)]  # fmt: skip
    if side != "diffusers" and not (folder / side).is_dir():
        imported = [sys.executable, "-m", "civman", "import", "--offline", "--quiet", str(folder / "base.safetensors")]
        subprocess.run(imported, env=environ, check=True, cwd=root, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        command, env=environ | {"STARTED": str(time.monotonic())}, check=False, cwd=root, capture_output=True, text=True
    )
    if not marks.is_file():
        raise SystemExit(f"{side} {shape} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    found: Marks = json.loads(marks.read_text())
    spent, before = {}, (0.0, 0.0)
    for name, wall, cpu in found:
        if name in PHASES:
            spent[name], spent[f"{name} cpu"] = wall - before[0], cpu - before[1]
            before = (wall, cpu)
    starts = [wall for name, wall, _ in found if name in ("encode", "call")]
    spent["start"], spent["start cpu"] = before
    spent["step"] = statistics.median(later - one for one, later in pairwise(starts))
    return spent


def report(shape: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    print(
        f"\n{shape}, {SIDES_PX[shape]}x{SIDES_PX[shape]}: seconds (CPU seconds), medians of {len(rounds['now'])} rounds"
    )
    sides = list(rounds)
    ratios = "".join(f"{'now / ' + side:>18}" for side in sides if side != "now")
    print(f"{'':44}" + "".join(f"{side:>18}" for side in sides) + ratios)
    words = {**PHASES, "start": "from Enter until the first step is done", "step": "each further step"}
    for name, title in words.items():
        cells = []
        for side in sides:
            wall = statistics.median(each[name] for each in rounds[side])
            cpu = f" ({statistics.median(each[f'{name} cpu'] for each in rounds[side]):.2f})" if name != "step" else ""
            cells.append(f"{wall:.3f}{cpu}")
        for side in (side for side in sides if side != "now"):
            pairs = list(zip(rounds["now"], rounds[side], strict=True))
            cells.append(f"{statistics.median(one[name] / other[name] for one, other in pairs):.2f}")
        print(f"{title:44}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a work tree of another commit")
    parser.add_argument("--shapes", nargs="+", default=list(SIDES_PX), choices=list(SIDES_PX))
    parser.add_argument("--rounds", type=int, default=5, help="for the tiny model; SD 1.5 gets two")
    parser.add_argument("--steps", type=int, default=2, help="two or more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run == "diffusers":
        run_diffusers(options.work, options.side, options.steps, options.threads)
        return
    if options.run:
        words = ["render", "base", PROMPT, "--negative", NEGATIVE, "--sampler", "Euler", "--steps", str(options.steps),
                 "--size", f"{options.side}x{options.side}", "--seed", str(SEED), "--cfg", str(CFG), "--device", "cpu",
                 "--precision", "float32", "--threads", str(options.threads), "--force", "--quiet",
                 "--output", str(options.work / "images")]  # fmt: skip
        run_civman(words, options.steps)
        return
    options.before = options.before and options.before.resolve()
    sides = ["now", *(["before"] if options.before else []), "diffusers"]
    with tempfile.TemporaryDirectory() as fresh:
        work = options.work or Path(fresh)
        for shape in options.shapes:
            make_files("sd1", work / shape, tiny=shape == "tiny")
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            count = options.rounds if shape == "tiny" else min(options.rounds, 2)
            for number in range(-1 if shape == options.shapes[0] else 0, count):  # the first compiles Python's files
                for side in sides if number % 2 == 0 else sides[::-1]:
                    spent = measured(side, shape, options, work)
                    if number >= 0:
                        found[side].append(spent)
            report(shape, found)


if __name__ == "__main__":
    main()
