"""Times the start of civman: `--help` against a bare Typer app, and `list` at 30,000 assets against `--help`.

    python benchmarks/startup.py [--rounds 15] [--assets 30000]

Whole processes, start to exit, taken in turn; ratios are medians of pairs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = '''import typer
app = typer.Typer()
@app.command()
def one(word: str = "a") -> None:
    """One."""
@app.command()
def two(word: str = "a") -> None:
    """Two."""
app()
'''


def timed(command: list[str], environ: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--assets", type=int, default=30_000)
    options = parser.parse_args()
    civman = str(Path(sys.executable).with_name("civman"))
    with tempfile.TemporaryDirectory() as work:
        bare = Path(work, "bare.py")
        bare.write_text(BARE)
        library = Path(work, "library")
        library.mkdir()
        filler = Path(__file__).with_name("make_index.py")
        subprocess.run([sys.executable, filler, str(options.assets), library / "library.db"], check=True)
        environ = {**os.environ, "CIVMAN_LIBRARY": str(library)}
        commands = {
            "bare typer --help": [sys.executable, str(bare), "--help"],
            "civman --help": [civman, "--help"],
            "civman list": [civman, "list"],
            "civman list, filtered": [civman, "list", "--type", "LORA", "--base-model", "Pony"],
            "civman list WORDS": [civman, "list", "ink", "style"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            for name, command in commands.items():
                seconds = timed(command, environ)
                if number:
                    times[name].append(seconds)
    print(f"{'command':<24} {'min ms':>7} {'median ms':>10} {'max ms':>7}   ratio")
    for name, found in times.items():
        base = "bare typer --help" if name == "civman --help" else "civman --help"
        ratio = statistics.median(own / other for own, other in zip(found, times[base], strict=True))
        words = "" if name.startswith("bare") else f"{ratio:.2f} x {base}"
        figures = (min(found) * 1e3, statistics.median(found) * 1e3, max(found) * 1e3)
        print("{:<24} {:7.0f} {:10.0f} {:7.0f}   {}".format(name, *figures, words))


if __name__ == "__main__":
    main()
