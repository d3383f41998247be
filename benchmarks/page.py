"""Measures the server's page in Chromium with a large library: `python benchmarks/page.py 10000`.

Makes a library of that many files with a preview image each (the models themselves are not there), serves it, and
measures as a browser at 1400 x 900 sees it: the first cards after opening the page, elements, requests, long tasks and
layout time while scrolling to the end, the time of a search, and the server's memory. Needs Playwright and a Chromium.

With `--pictures`, the same for the page's Pictures: that many recorded images, each with a recipe of its own, whose
files are links to 64 PNGs. No thumbnail is there before, so the first run makes those that it shows.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from make_index import WORDS, fill
from PIL import Image
from playwright.sync_api import sync_playwright

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import LoraUse, Recipe
from civman.domain.recipes.record import FileName, Record
from civman.index import Index
from civman.store.blobs import BlobStore


@dataclass(frozen=True)
class View:
    """A view of the page with a large list: its route, its route in the API, and what to look for in it."""

    name: str
    list: str
    image: str
    search: str
    noun: str


LIBRARY = View("library", "models", "/preview", "Search the library", "files")
PICTURES = View("pictures", "pictures", "/thumb", "Search images", "images")
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


def record_pictures(root: Path, count: int) -> None:
    """Record images with prompts of three words, made with the library's checkpoint and one of its LoRAs each."""
    draw = random.Random(5)
    folder = root / "pictures"
    folder.mkdir()
    for number in range(64):
        tint = Image.new("RGB", (512, 512), tuple(draw.randrange(30, 220) for _ in range(3)))
        Image.blend(Image.effect_noise((512, 512), 40).convert("RGB"), tint, 0.7).save(folder / f"{number}.png")

    def made(digests: list[Sha256]) -> Iterator[tuple[Path, Record]]:
        names = {
            digest: FileName(digest, f"model_{digest[:6]}.safetensors", f"Model {digest[:6]}") for digest in digests
        }
        for number in range(count):
            path = folder / f"{number % 64}-{number}.png"
            path.hardlink_to(folder / f"{number % 64}.png")
            lora = draw.choice(digests[1:])
            recipe = Recipe(
                checkpoint=digests[0], prompt=" ".join(draw.choices(WORDS, k=3)), negative_prompt="blurry",
                sampler="DPM++ 2M", schedule="Karras", steps=20, guidance_scale=7.0, width=512, height=512, seed=number,
                clip_skip=1, prediction="epsilon", is_zero_snr=False, precision="float32",
                loras=(LoraUse(lora, 0.8, 0.8),),
            )  # fmt: skip
            pixels = Sha256(hashlib.sha256(f"picture {number}".encode()).hexdigest())
            yield path, Record(recipe, number, pixels, {"civman": "0.1.0"}, (names[digests[0]], names[lora]))

    with Index.open(root / "library.db") as index:
        digests = [asset.blob.sha256 for asset in index.assets()]
        index.record_pictures(made(digests), datetime.now(UTC))


def make_library(root: Path, count: int, *, with_pictures: bool) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fill(root / "library.db", 100 if with_pictures else count)
    if with_pictures:
        record_pictures(root, count)
        return
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


def look(address: str, browser: Any, process: psutil.Process, view: View, count: int) -> dict[str, object]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{address}/#/{view.name}")
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
    lists = [url for url in requests[asked:] if f"/api/v1/{view.list}?" in url]
    thumbs = [url for url in requests[asked:] if url.endswith(view.image)]
    most = page.evaluate("document.querySelectorAll('*').length")
    long = page.evaluate("longTasks")
    page.evaluate("document.querySelector('.grid').scrollTop = 0")
    started = time.perf_counter()
    page.get_by_role("searchbox", name=view.search).fill("amber harbour")
    page.locator(".total", has_not_text=f"{count:,} {view.noun}").wait_for()
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
    parser.add_argument("--pictures", action="store_true", help="measure Pictures instead of Library")
    parser.add_argument("--library", type=Path, help="make it here and keep it, or use it if it is there")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = given.library or Path(folder, "library")
        if not (root / "library.db").is_file():
            make_library(root, given.count, with_pictures=given.pictures)
        environment = {**os.environ, "CIVMAN_LIBRARY": str(root), "CIVMAN_CONFIG_DIR": folder, "CIVMAN_OFFLINE": "1"}
        words = [sys.executable, "-m", "civman", "serve", "--port", "0", "--quiet"]
        server = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
                view = PICTURES if given.pictures else LIBRARY
                process = psutil.Process(server.pid)
                runs = [look(address, browser, process, view, given.count) for _ in range(given.times)]
                browser.close()
        finally:
            server.terminate()
            server.wait(20)
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:<26} median {statistics.median(values):>8}   all {json.dumps(values)}")


if __name__ == "__main__":
    main()
