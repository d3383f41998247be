"""Measures the server's page in Chromium with a large library: `python benchmarks/page.py 10000`.

Makes a library of that many files with a preview image each (the models themselves are not there), serves it, and
measures as a browser at 1400 x 900 sees it: the first cards after opening the page, elements, requests, long tasks and
layout time while scrolling to the end, the time of a search, and the server's memory. Needs Playwright and a Chromium.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from make_index import fill
from PIL import Image
from playwright.sync_api import sync_playwright

from civman.index import Index
from civman.store.blobs import BlobStore

FIRST_CARD = """() => new Promise((done) => {
  const look = () => {
    if (document.querySelector('.cell b')) requestAnimationFrame(() => done(performance.now()));
    else setTimeout(look, 5);
  };
  look();
})"""
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) longTasks.push(each.duration);
}).observe({ type: 'longtask', buffered: true });
"""


def images(root: Path, digests: list[str]) -> None:
    """A JPEG of its own for each file: gradients with noise, 256 x 384, about 15 kB."""
    draw = random.Random(3)
    store = BlobStore(root)
    bases = [Image.effect_noise((256, 384), 40).convert("RGB") for _ in range(16)]
    for number, digest in enumerate(digests):
        tint = Image.new("RGB", (256, 384), tuple(draw.randrange(30, 220) for _ in range(3)))
        out = BytesIO()
        Image.blend(bases[number % 16], tint, 0.7).save(out, "JPEG", quality=80)
        store.write_preview(digest, out.getvalue(), ".jpg")


def make_library(root: Path, count: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fill(root / "library.db", count)
    with Index.open(root / "library.db") as index:
        digests = [asset.blob.sha256 for asset in index.assets()]
    images(root, digests)


def memory(process: psutil.Process) -> float:
    every = [process, *process.children(recursive=True)]
    return sum(each.memory_info().rss for each in every) / 1e6


def scroll(page: Any, jumps: int) -> None:
    page.evaluate(
        """async (jumps) => {
          const grid = document.querySelector('.grid');
          for (let step = 1; step <= jumps; step += 1) {
            grid.scrollTop = (grid.scrollHeight - grid.clientHeight) * step / jumps;
            await new Promise((done) => setTimeout(done, 50));
          }
        }""",
        jumps,
    )


def look(address: str, browser: Any, process: psutil.Process) -> dict[str, object]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}/#/library")
    first_ms = page.evaluate(FIRST_CARD)
    page.wait_for_timeout(1500)
    elements = page.evaluate("document.querySelectorAll('*').length")
    first_requests = len(requests)
    session = context.new_cdp_session(page)
    session.send("Performance.enable")

    def layout_s() -> float:
        values = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return float(values["LayoutDuration"]) + float(values["RecalcStyleDuration"])

    before, asked = layout_s(), len(requests)
    page.evaluate("longTasks.length = 0")
    scroll(page, 60)
    end = time.perf_counter()
    page.locator(".cell:not(.pending)").first.wait_for()
    settled_ms = (time.perf_counter() - end) * 1000
    page.wait_for_timeout(500)
    lists = [url for url in requests[asked:] if "/api/v1/models?" in url]
    thumbs = [url for url in requests[asked:] if url.endswith("/preview")]
    most = page.evaluate("document.querySelectorAll('*').length")
    long = page.evaluate("longTasks")
    page.evaluate("document.querySelector('.grid').scrollTop = 0")
    started = time.perf_counter()
    page.get_by_role("searchbox", name="Search the library").fill("amber harbour")
    page.locator(".total", has_not_text="10,000 files").wait_for()
    search_ms = (time.perf_counter() - started) * 1000
    found = {
        "first_cards_ms": round(first_ms), "elements": elements, "first_requests": first_requests,
        "scroll_list_requests": len(lists), "scroll_preview_requests": len(thumbs),
        "scroll_layout_s": round(layout_s() - before, 2), "scroll_longest_task_ms": round(max(long, default=0)),
        "elements_after_scrolling": most, "settled_ms": round(settled_ms),
        "search_ms": round(search_ms), "server_mb": round(memory(process)),
    }  # fmt: skip
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--library", type=Path, help="make it here and keep it, or use it if it is there")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = given.library or Path(folder, "library")
        if not (root / "library.db").is_file():
            make_library(root, given.count)
        environment = {**os.environ, "CIVMAN_LIBRARY": str(root), "CIVMAN_CONFIG_DIR": folder, "CIVMAN_OFFLINE": "1"}
        words = [sys.executable, "-m", "civman", "serve", "--port", "0", "--quiet"]
        server = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
                runs = [look(address, browser, psutil.Process(server.pid)) for _ in range(given.times)]
                browser.close()
        finally:
            server.terminate()
            server.wait(20)
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:<26} median {statistics.median(values):>8}   all {json.dumps(values)}")


if __name__ == "__main__":
    main()
