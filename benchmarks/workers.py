"""Times one job on two workers against what two cores allow: `python benchmarks/workers.py [--ray] [--images 120]`.

What the cores allow is measured, not assumed: two separate commands without workers, each of which renders half of the
images at the same time. Two processes on two cores share caches and memory, so even they need more than half of the
time that one command needs for all images. Every command renders with one thread and is timed from the start of Python
to its end, and all kinds take turns. The images of all kinds are compared.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "civman" / "demo" / "models" / "tiny-shapes.safetensors"


def start(folder: Path, numbers: range, options: argparse.Namespace, *more: str) -> "subprocess.Popen[bytes]":
    """Start a command that renders the images with these numbers into `folder`."""
    folder.mkdir(parents=True)
    prompts = folder.with_suffix(".txt")
    prompts.write_text("\n".join(f'--prompt "a red circle, number {number}" --seed {number}' for number in numbers))
    return subprocess.Popen(
        [sys.executable, "-m", "civman", "render", str(DEMO), "--prompts", str(prompts), "--steps", str(options.steps),
         "--threads", "1", "--force", "--seed", "1", "--output", str(folder), "--quiet", *more],
        cwd=ROOT, stdout=subprocess.DEVNULL,
        env=os.environ | {"CIVMAN_LIBRARY": str(options.library), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def seconds(begin: "Callable[[], list[subprocess.Popen[bytes]]]") -> float:
    """The time from the start of some commands to the end of the last one."""
    begun = time.perf_counter()
    codes = [each.wait() for each in begin()]
    if any(codes):
        raise SystemExit(f"a command failed: {codes}")
    return time.perf_counter() - begun


def contents(folders: list[Path]) -> str:
    """A digest of all images in some folders, whatever their names and their order."""
    found = sorted(hashlib.sha256(path.read_bytes()).digest() for each in folders for path in each.glob("*.png"))
    return f"{len(found)} images {hashlib.sha256(b''.join(found)).hexdigest()[:12]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster of two nodes with one core each")
    options = parser.parse_args()
    whole, half = range(options.images), options.images // 2
    with ExitStack() as closing:
        work = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        options.library = work / "library"
        kinds = {
            "one command": lambda at: [start(at / "all", whole, options)],
            "two commands": lambda at: [start(at / "a", whole[:half], options), start(at / "b", whole[half:], options)],
            "--on 2": lambda at: [start(at / "all", whole, options, "--on", "2")],
        }
        if options.ray:
            sys.path.append(str(ROOT / "tests" / "rendering"))
            from ray_cluster import ray_cluster

            address = closing.enter_context(ray_cluster(work / "cache"))
            kinds["--on ray"] = lambda at: [start(at / "all", whole, options, "--on", f"ray://{address}")]
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(options.rounds + 1):  # the first round fills the caches of files
            for kind, begin in kinds.items():
                at = work / f"{number} {kind.replace('/', '')}"
                found = seconds(lambda begin=begin, at=at: begin(at))
                print(
                    f"{kind}: {found:.2f} s, {contents([each for each in at.iterdir() if each.is_dir()])}", flush=True
                )
                if number:
                    taken[kind].append(found)
    allowed = statistics.median(taken["two commands"])
    for kind, times in taken.items():
        middle = statistics.median(times)
        print(f"{kind}: median {middle:.2f} s, {allowed / middle:.2f} of what two cores allow")


if __name__ == "__main__":
    main()
