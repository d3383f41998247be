"""Four civmans in one library, with random `kill -9`: `python benchmarks/together.py SECONDS`.

Each of four workers runs one command after the other in processes of their own (download, list, verify, edit, remove,
restore, gc); every now and then one is killed where it stands. A fifth process only reads, all the time. Afterwards
`verify --full` has to be clean: every row has its bytes, and every file is known or put away by `gc`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from civman.demo.demo_models import Shelf, demo_catalogue
from civman.demo.server import CivitaiServer

REFS = ("51207", "60344", "civitai:139562", "81977")
REPOSITORY = Path(__file__).parents[1]
ALLOWED = {0, 1, 3}
"""Done; failed because another was quicker (busy, removed meanwhile); not found (removed, or the trash is empty)."""


@dataclass
class Outcome:
    """What the minute showed."""

    runs: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    reads: int = 0
    problems: list[str] = field(default_factory=list)


def command(draw: random.Random) -> list[str]:
    ref = draw.choice(REFS)
    return draw.choices(
        [
            ["download", ref, draw.choice(REFS)],
            ["remove", ref, "--yes"],
            ["restore"],
            ["gc", "--yes", "--trash", draw.choice(["0", "30"]), "--partials", "0"],
            ["edit", ref, "--note", f"note {draw.randrange(99)}", "--rating", "3"],
            ["list", "harbour"],
            ["verify"],
        ],
        weights=(6, 4, 2, 2, 2, 1, 1),
    )[0]


def work(number: int, environ: dict[str, str], until: float, kill_share: float, outcome: Outcome) -> None:
    draw = random.Random(number)
    while time.monotonic() < until:
        argv = command(draw)
        process = subprocess.Popen(
            [sys.executable, "-m", "civman", *argv, "--json"], env=environ, cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if draw.random() < kill_share:
            try:
                process.wait(draw.uniform(0.3, 3.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                outcome.kills += 1
        out, err = process.communicate(timeout=180)
        outcome.runs[argv[0]] += 1
        if process.returncode not in {*ALLOWED, -signal.SIGKILL}:
            outcome.problems.append(f"{' '.join(argv)} ended with {process.returncode}: {out[-800:]} {err[-3000:]}")


def read(root: Path, stop: threading.Event, outcome: Outcome) -> None:
    """Lists the library again and again in this process."""
    from civman.errors import CivmanError
    from civman.index import Index

    while not stop.wait(0.02):
        if not (root / "library.db").exists():
            continue
        try:
            with Index.open(root / "library.db") as index:
                index.assets()
            outcome.reads += 1
        except CivmanError as error:
            outcome.problems.append(f"a reader failed: {error.message}")


def run(root: Path, seconds: float, *, kill_share: float = 0.5, workers: int = 4) -> Outcome:
    """The whole of it in the new library `root`; `problems` is empty where all went well."""
    outcome, stop = Outcome(), threading.Event()
    with CivitaiServer(demo_catalogue(Shelf())) as server:
        environ = os.environ | {
            "CIVMAN_CIVITAI_URL": server.url, "CIVITAI_API_TOKEN": server.token, "CIVMAN_LIBRARY": str(root),
            "CIVMAN_CONFIG_DIR": str(root / "config"), "PYTHONWARNINGS": "error",
        }  # fmt: skip
        until = time.monotonic() + seconds
        reader = threading.Thread(target=read, args=(root, stop, outcome))
        threads = [
            threading.Thread(target=work, args=(number, environ, until, kill_share, outcome))
            for number in range(workers)
        ]
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        reader.join()
        judge(root, environ, outcome)
    return outcome


def judge(root: Path, environ: dict[str, str], outcome: Outcome) -> None:
    """What has to hold when all are done: nothing corrupt, nothing missing, strangers collected, no reference lost."""

    def civman(*argv: str) -> dict[str, object]:
        done = subprocess.run([sys.executable, "-m", "civman", *argv, "--json"], env=environ, cwd=REPOSITORY,
                              capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
        if done.returncode:
            outcome.problems.append(f"afterwards {' '.join(argv)} ended with {done.returncode}: {done.stdout[-3000:]}")
            return {}
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    verdicts = civman("verify", "--full").get("verify", [])
    states = Counter(verdict["state"] for verdict in verdicts)  # type: ignore[attr-defined]
    outcome.problems += [
        f"verify: {state} {count}" for state, count in states.items() if state not in ("ok", "unknown")
    ]
    print(f"verify --full: {dict(states)}")
    if states["ok"] or not states:
        civman("gc", "--yes", "--trash", "30")
    after = civman("verify", "--full").get("verify", [])
    left = Counter(verdict["state"] for verdict in after)  # type: ignore[attr-defined]
    if set(left) - {"ok"} and states["ok"]:
        outcome.problems.append(f"after gc: {dict(left)}")
    before = json.dumps(civman("list", "--limit", "0"), sort_keys=True)
    for path in root.glob("library.db*"):
        path.unlink()
    civman("verify", "--rebuild")
    known = {asset["name"] for asset in json.loads(before)["list"]["assets"]}
    again = {asset["name"] for asset in civman("list", "--limit", "0")["list"]["assets"]}  # type: ignore[index]
    if known - again:
        outcome.problems.append(f"lost by a rebuild: {known - again}")
    locks = [path.name for path in (root / "locks").glob("*")]
    print(f"{len(known)} assets held at the end, {len(again)} after a rebuild; locks left: {len(locks)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder) / "library", parser.parse_args().seconds)
    runs = ", ".join(f"{count} × {name}" for name, count in outcome.runs.most_common())
    print(f"{sum(outcome.runs.values())} commands ({runs}), {outcome.kills} killed, {outcome.reads} reads beside them")
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
