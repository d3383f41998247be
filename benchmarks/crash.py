"""Kills a download again and again over one file: `python benchmarks/crash.py [ROUNDS] [--size 64] [--seed 1]`.

Four connections to the tests' server on loopback. After each kill every byte that counts for the next try is compared,
and so are all stored files; at the end civman finishes the file and verifies it. "Lost" is what the server had sent in
a round and the next round fetches again, bytes under way between the two processes included.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "download")]

from crashing import kills  # noqa: E402
from rig import model_bytes  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rounds", nargs="?", type=int, default=50)
    parser.add_argument("--size", type=int, default=64, help="MB")
    parser.add_argument("--seconds", type=float, default=40.0, help="of transfer in all rounds together")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    data = model_bytes(wanted.size * 1_000_000)
    lost = []
    print("round  sent kB  held kB  lost kB  lost %")
    with tempfile.TemporaryDirectory() as folder:
        rounds = kills(data, Path(folder, "library"), wanted.rounds, seconds=wanted.seconds, seed=wanted.seed)
        for number, kill in enumerate(rounds, 1):
            lost.append(kill.lost_bytes)
            share = 100 * kill.lost_bytes / len(data)
            kilobytes = f"{kill.sent_bytes / 1e3:8,.0f} {kill.held_bytes / 1e3:8,.0f} {kill.lost_bytes / 1e3:8,.0f}"
            print(f"{number:5} {kilobytes} {share:7.2f}", flush=True)
    print(
        f"{len(lost)} kills of one file of {len(data):,} bytes; it ended verified, nothing wrong was left at any time\n"
        f"fetched again after a kill: median {100 * statistics.median(lost) / len(data):.2f} % of the file, "
        f"worst {100 * max(lost) / len(data):.2f} %; all {len(lost)} together {100 * sum(lost) / len(data):.1f} %"
    )


if __name__ == "__main__":
    main()
