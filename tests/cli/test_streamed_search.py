"""A search shows each page as it arrives, and keeps what it has when a later page fails."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from running import Civman


@contextmanager
def site(answer: Callable[[str], object]) -> Iterator[str]:
    """A server that answers each path with the JSON of `answer`, or with status 403 if that is None."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            found = answer(self.path)
            data = json.dumps(found if found is not None else {"error": "no"}).encode()
            self.send_response(403 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def model(number: int) -> dict[str, object]:
    version = {"id": number + 1000, "name": "v1", "baseModel": "SD 1.5", "files": [], "images": []}
    return {"id": number, "name": "N" * (number % 30 + 1), "type": "LORA", "modelVersions": [version]}


def pages(path: str, *, last: int = 3) -> dict[str, object] | None:
    """Pages of three models; the page after `last` is refused."""
    number = int(found[1]) if (found := re.search(r"cursor=(\d+)", path)) else 1
    if number > last:
        return None
    models = [model(3 * number + place) for place in range(3)]
    return {"items": models, "metadata": {"nextCursor": str(number + 1)}}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with site(pages) as address:
        monkeypatch.setenv("CIVMAN_CIVITAI_URL", address)
        yield


REFS = [f"{number}@{number + 1000}" for number in range(3, 12)]


@pytest.mark.usefixtures("failing")
def test_an_error_on_a_later_page_keeps_the_earlier_ones_in_every_form_of_output(civman: Civman) -> None:
    table, quiet, as_json = (civman("search", "-n", "50", *form) for form in ([], ["--quiet"], ["--json"]))

    assert [line.split()[0] for line in table.out.splitlines()[1:]] == REFS
    assert quiet.out.split() == REFS
    assert [row["ref"] for row in as_json.json["search"]] == REFS
    assert as_json.json["error"]["exit_code"] == as_json.code == 4
    assert {table.code, quiet.code} == {4}
    assert "Error" in table.err


@pytest.mark.usefixtures("failing")
def test_a_search_that_needs_no_further_page_is_complete(civman: Civman) -> None:
    result = civman("search", "-n", "9", "--json")

    assert (result.code, [row["ref"] for row in result.json["search"]]) == (0, REFS)
    assert "error" not in result.json


def test_no_match_is_an_empty_list(civman: Civman, monkeypatch: pytest.MonkeyPatch) -> None:
    with site(lambda path: {"items": [], "metadata": {}}) as address:
        monkeypatch.setenv("CIVMAN_CIVITAI_URL", address)

        assert civman("search", "x", "--json").json == {"civman": 1, "kind": "search", "search": []}
        assert "no models match" in civman("search", "x").out


def test_the_first_page_is_shown_while_the_second_is_on_its_way(tmp_path: Path) -> None:
    release = threading.Event()

    def slow(path: str) -> object:
        if "cursor" in path:
            release.wait(20)
        return pages(path)

    with site(slow) as address:
        environment = os.environ | {"CIVMAN_CIVITAI_URL": address, "CIVMAN_LIBRARY": str(tmp_path / "library")}
        command = [sys.executable, "-m", "civman", "search", "-n", "6"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(4)]
            came_first = not release.is_set()
            release.set()
            assert process.wait(20) == 0
        assert [line.split()[0] for line in lines[1:]] == REFS[:3]
        assert came_first
