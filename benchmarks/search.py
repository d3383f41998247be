"""Measures search in a library of 30,000 files: `python benchmarks/search.py [COUNT]`. Prints a Markdown table.

Commands run as a person runs them, each in a process of its own: `civman list WORDS` against `civman --help`, in turn,
so that a busy machine weighs on both alike. Inside one process: the full-text query against LIKE over the same words.
"""

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from make_index import fill

from civman.index import AssetFilter, Index

QUERIES = ("harbour lumen", "creator42", "cobalt", "harbuor", '"amber dawn" kite', "mber")
ROUNDS = 7


def median_ms(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def command(*argv: str, root: Path) -> Callable[[], object]:
    environ = os.environ | {"CIVMAN_LIBRARY": str(root), "CIVMAN_CONFIG_DIR": str(root / "config")}
    return lambda: subprocess.run(
        [sys.executable, "-m", "civman", *argv], env=environ, check=True, capture_output=True, text=True
    )


def like(path: Path, words: str) -> Callable[[], object]:
    """What a search without an index does: every word compared with every file's text."""
    connection = sqlite3.connect(path)
    texts = "a.search_text || coalesce(m.description, '') || coalesce(v.description, '')"
    tests = " AND ".join(f"{texts} LIKE ?" for _ in words.split())
    source = (
        f"FROM asset a LEFT JOIN model m ON m.id = a.model_id LEFT JOIN version v ON v.id = a.version_id WHERE {tests}"
    )
    given = [f"%{word}%" for word in words.replace('"', "").split()]

    def ask() -> None:
        connection.execute(f"SELECT a.id {source} ORDER BY a.added_at DESC LIMIT 50", given).fetchall()
        connection.execute(f"SELECT count(*) {source}", given).fetchone()

    return ask


def sizes(path: Path) -> tuple[int, int]:
    with sqlite3.connect(path) as connection:
        whole = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()
        search = connection.execute("SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'search%'").fetchone()
    connection.close()
    return whole[0], search[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=30_000)
    parser.add_argument("root", type=Path, nargs="?", help="a library made before; default: a new one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = given.root or Path(made)
        path = root / "library.db"
        built_s = 0.0 if path.exists() else fill(path, given.count)
        with Index.open(path) as index:
            started = time.perf_counter()
            index.refill_search()
            refill_s = time.perf_counter() - started
            whole, search = sizes(path)
            print(
                f"{index.count():,} files; all rows written in {built_s:.1f} s, the full text again in {refill_s:.1f} s"
            )
            print(f"database {whole / 1e6:.0f} MB, of it full text {search / 1e6:.0f} MB\n")
            print("First 50 of them and their number, in one process; the commands in processes of their own:\n")
            print("| query | found | ranked | LIKE, by date | `civman list` | × `civman --help` |")
            print("|---|---:|---:|---:|---:|---:|")
            for words in QUERIES:
                wanted = AssetFilter(words=(words,))
                found = index.count(wanted)

                def ask(wanted: AssetFilter = wanted) -> object:
                    with Index.open(path) as fresh:
                        return fresh.assets(wanted, limit=50), fresh.count(wanted)

                asked_ms, like_ms = median_ms(ask), median_ms(like(path, words))
                ratios, listed = [], []
                for _ in range(ROUNDS):
                    help_ms = median_ms(command("--help", root=root), 1)
                    listed.append(median_ms(command("list", words, root=root), 1))
                    ratios.append(listed[-1] / help_ms)
                print(
                    f"| {words} | {found:,} | {asked_ms:.0f} ms | {like_ms:.0f} ms | "
                    f"{statistics.median(listed):.0f} ms | {statistics.median(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
