"""A real Chromium that looks at the page of a running server, beside the demo's CivitAI.

`make browser-tests` installs what is needed: Playwright's client from PyPI (its own browsers are not used), Chromium
where the system's package manager offers it, and axe-core from npm into `build/axe`. Without a browser the tests are
skipped, unless CIVMAN_NEEDS_BROWSER is set. Screenshots are in `build/screenshots`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serve_running import Served, start, stop

from civman.demo.demo_models import demo_catalogue
from civman.demo.server import CivitaiServer

BUILD = Path(__file__).parents[2] / "build"
SHOTS = BUILD / "screenshots"
AXE = BUILD / "axe" / "package" / "axe.min.js"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, NARROW = (1400, 900), (400, 800)
STOCK = ("91001", "civitai:91003", "civitai:139562", "51207", "urn:air:sdxl:checkpoint:civitai:60344@139700", "91005")


def unavailable(why: str) -> None:
    """Skip for want of a browser; where one was promised, fail."""
    if os.environ.get("CIVMAN_NEEDS_BROWSER"):
        pytest.fail(f"CIVMAN_NEEDS_BROWSER is set, but {why}")
    pytest.skip(why)


@dataclass
class Seen:
    """A page in a browser and everything that must not happen there."""

    page: Any
    url: str
    wrong: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note errors, failed requests, and requests that leave this computer."""
        self.page.on(
            "console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        self.requests.append(request.url)
        if urlsplit(request.url).scheme in ("http", "https") and not request.url.startswith(self.url + "/"):
            self.foreign.append(request.url)

    def open(self, route: str) -> None:
        self.page.goto(f"{self.url}/{route}")

    def shot(self, name: str) -> None:
        """Keep a screenshot to look at."""
        width = self.page.viewport_size["width"]
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}-{width}.png"))

    def faults(self, axe: str) -> list[tuple[str, str, list[str]]]:
        """The serious and critical faults that axe-core finds in what the page shows now; the page needs bypass_csp."""
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            (each["id"], each["impact"], [node["html"][:160] for node in each["nodes"]])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def check(self) -> None:
        """Nothing went wrong, and nothing left this computer."""
        assert self.wrong == []
        assert self.foreign == []


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("Playwright is not installed; `make browser-tests` installs it")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        unavailable(f"no Chromium is installed ({', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_HTML = (
    "<p onclick='alert(2)'>Says &lt;hello&gt;</p><script>alert(3)</script><a href='javascript:alert(4)'>here</a>"
    "<svg onload=alert(5)><iframe src='https://evil.example'></iframe>"
)


@pytest.fixture(scope="session")
def site() -> Iterator[CivitaiServer]:
    """The demo's CivitAI for these tests; model 87300 has a hostile name, creator, tag and description."""
    catalogue = demo_catalogue()
    (model,) = [each for each in catalogue if each.id == 87300]
    catalogue.add(replace(model, name=HOSTILE, creator=HOSTILE, tags=(HOSTILE, "style"), description=HOSTILE_HTML))
    with CivitaiServer(catalogue) as running:
        yield running


@pytest.fixture(scope="session")
def page_environment(site: CivitaiServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a library with a few models of the demo's CivitAI."""
    folder = tmp_path_factory.mktemp("page")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CIVMAN_", "CIVITAI_"))}
    environment = {
        **kept, "CIVMAN_LIBRARY": str(folder / "library"), "CIVMAN_CONFIG_DIR": str(folder / "config"),
        "CIVMAN_CIVITAI_URL": site.url, "CIVITAI_API_TOKEN": site.token, "OMP_NUM_THREADS": "1", "NO_COLOR": "1",
    }  # fmt: skip
    words = [sys.executable, "-m", "civman", "download", *STOCK]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture(scope="session")
def page_server(page_environment: dict[str, str]) -> Iterator[Served]:
    """A server of that library."""
    served = start(Path(page_environment["CIVMAN_LIBRARY"]), page_environment)
    yield served
    stop(served)


Look = Callable[..., Seen]


@pytest.fixture
def look(chromium: Any, page_server: Served) -> Iterator[Look]:
    """Open a route of the page in a fresh browser profile; afterwards nothing may have gone wrong."""
    opened: list[tuple[Any, Seen]] = []

    def open_page(
        route: str = "", size: tuple[int, int] = WIDE, *, server: Served = page_server, **options: Any
    ) -> Seen:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(10_000)
        seen = Seen(context.new_page(), server.url)
        seen.watch()
        opened.append((context, seen))
        seen.open(route)
        return seen

    yield open_page
    for context, _ in opened:
        context.close()
    for _, seen in opened:
        seen.check()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core (MPL-2.0), which is not in this repository; `make browser-tests` fetches it from npm."""
    if not AXE.is_file():
        unavailable(f"axe-core is not in {AXE.parent}; `make browser-tests` fetches it")
    return AXE.read_text(encoding="utf-8")
