"""Times the phases of a cold `civman render` of the demo's tiny model, each run in a process of its own.

    python benchmarks/cold_render.py [--rounds 5] [--side 64] [--steps 20]

Per phase: CPU time and wall time, medians over the rounds. One thread. Files are in the page cache; the first round is
left out. torch and the rest of the renderer are imported by this script right before `Library.render` would import
them. The classes of the model are imported while it is loaded, and timed apart from the rest.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "civman" / "demo" / "models" / "tiny-shapes.safetensors"
PHASES = (
    "plan", "torch", "renderer", "model classes", "load", "encode", "first step", "other steps", "decode",
    "save", "exit",
)  # fmt: skip
MEANING = {
    "plan": "interpreter, command line, planning", "torch": "import torch", "renderer": "import civman's renderer",
    "model classes": "import the model's classes", "load": "build the model and read its weights",
    "encode": "encode the prompts", "first step": "first step", "other steps": "other steps",
    "decode": "decode with the VAE", "save": "write the image and its row", "exit": "end of the process",
}  # fmt: skip


class Marks:
    """The CPU and wall time since the start of the process at which each phase ended."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[float, float]] = {}
        self.classes = [0.0, 0.0]

    def end(self, phase: str) -> None:
        self.ends[phase] = (time.process_time(), time.monotonic() - float(os.environ["STARTED"]))

    def after(self, owner: Any, name: str, phase: str) -> None:
        """Note the end of a phase whenever this function has returned."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            found = inner(*args, **kwargs)
            self.end(phase)
            return found

        setattr(owner, name, timed)

    def summed(self, owner: Any, name: str) -> None:
        """Add up the time of this function, which is called several times, as that of the model classes."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = (time.process_time(), time.monotonic())
            try:
                return inner(*args, **kwargs)
            finally:
                self.classes[0] += time.process_time() - before[0]
                self.classes[1] += time.monotonic() - before[1]

        setattr(owner, name, timed)


def run(words: list[str]) -> None:
    """Run `civman render` in this process and print when each phase ended."""
    from civman.__main__ import main
    from civman.domain.events import Event, Step
    from civman.library import Library

    marks, inner = Marks(), Library.render

    def render(library: Library, *args: Any, on_event: Callable[[Event], None], **kwargs: Any) -> Any:
        marks.end("plan")
        import torch  # noqa: F401  # what is measured

        marks.end("torch")
        from civman.diffusion import model_classes, recipe_job
        from civman.rendering import draw, engine, render_and_save  # noqa: F401

        marks.end("renderer")
        marks.summed(model_classes, "class_of")
        marks.after(engine.Engine, "__init__", "load")
        marks.after(draw, "prepare", "encode")
        marks.after(recipe_job.RecipeJob, "_finish", "decode")

        def note(event: Event) -> None:
            if isinstance(event, Step):
                marks.end("first step" if event.step == 1 else "other steps")
            on_event(event)

        found = inner(library, *args, on_event=note, **kwargs)
        marks.end("save")
        return found

    Library.render = render  # type: ignore[method-assign, assignment]
    sys.argv = ["civman", *words]
    code = main()
    marks.end("exit")
    Path(os.environ["MARKS"]).write_text(json.dumps({"ends": marks.ends, "classes": marks.classes}))
    sys.exit(code)


def measure(options: argparse.Namespace, work: Path) -> list[dict[str, tuple[float, float]]]:
    """The CPU and wall time of each phase, for each round."""
    environ = os.environ | {"CIVMAN_LIBRARY": str(work / "library"), "CIVMAN_OFFLINE": "1",
                            "CIVMAN_CONFIG_DIR": str(work / "config")}  # fmt: skip
    imported = [sys.executable, "-m", "civman", "import", "--offline", "--quiet", str(MODEL)]
    subprocess.run(imported, env=environ, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    rounds = []
    for number in range(options.rounds + 1):
        words = [
            "render", "tiny-shapes", "a large red circle", "--size", f"{options.side}x{options.side}", "--seed", "1",
            "--steps", str(options.steps), "--threads", "1", "--device", "cpu", "--output", str(work / "out"),
            "--quiet",
        ]  # fmt: skip
        marks = work / "marks.json"
        marks.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--run", *words]
        started = {"STARTED": str(time.monotonic()), "MARKS": str(marks)}
        subprocess.run(command, env=environ | started, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        if number:
            rounds.append(split(json.loads(marks.read_text())))
    return rounds


def split(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Turn the ends of the phases into their durations."""
    spent, before = {}, (0.0, 0.0)
    for phase in PHASES:
        if phase == "model classes":
            spent[phase] = tuple(found["classes"])
            continue
        now = tuple(found["ends"][phase])
        spent[phase] = (now[0] - before[0], now[1] - before[1])
        before = now
    spent["load"] = tuple(all_of - part for all_of, part in zip(spent["load"], found["classes"], strict=True))
    return spent  # type: ignore[return-value]


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rounds = measure(options, Path(work))
    middle = {phase: [statistics.median(each[phase][kind] for each in rounds) for kind in (0, 1)] for phase in PHASES}
    all_of = [sum(each[kind] for each in middle.values()) for kind in (0, 1)]
    print(f"{'phase':44} {'CPU s':>7} {'share':>6} {'wall s':>7}")
    for phase, (cpu, wall) in middle.items():
        print(f"{MEANING[phase]:44} {cpu:7.3f} {cpu / all_of[0]:6.1%} {wall:7.3f}")
    print(f"{'all':44} {all_of[0]:7.3f} {'':6} {all_of[1]:7.3f}")


if __name__ == "__main__":
    main()
