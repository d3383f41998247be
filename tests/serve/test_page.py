"""The page's files as the server answers with them, and the API that only the page uses; without a browser."""

import re
from pathlib import Path
from typing import Any

import pytest
from serve_running import Served

import civman.serve
from civman.errors import NotFound, UsageError
from civman.serve.jobs import JobKind, JobQueue

PAGE = Path(civman.serve.__file__).parent / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
HTML = {"Accept": "text/html,application/xhtml+xml"}


def test_a_browser_gets_the_page_and_a_program_gets_json(served: Served) -> None:
    page, program = served.http.get("/", headers=HTML), served.http.get("/")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "trusted-types 'none'" in page.headers["content-security-policy"]
    assert program.json()["name"] == "civman"


def test_every_file_of_the_page_is_answered_with_its_kind_and_kept_by_its_tag(served: Served) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}

    for file in PAGE.iterdir():
        answer = served.http.get(f"/page/{file.name}")
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == kinds[file.suffix]
        again = served.http.get(f"/page/{file.name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fjobs.py", "%2e%2e/jobs.py", "/etc/passwd", ".js", ""])
def test_nothing_else_is_a_file_of_the_page(served: Served, name: str) -> None:
    assert served.http.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_parses_html_or_text_as_code_or_names_another_host(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
    assert re.findall(r"https?://[^\"'`\s]+", text) in ([], ["http://www.w3.org/2000/svg"])


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_what_a_script_imports_is_there(file: Path) -> None:
    exported = {
        each.name: set(
            re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", each.read_text("utf-8"), re.MULTILINE)
        )
        for each in SCRIPTS
    }
    text = file.read_text(encoding="utf-8")

    for names, other in re.findall(r"^import \{([^}]*)\} from \"\./([\w.]+)\";", text, re.MULTILINE):
        assert {name.strip() for name in names.split(",") if name.strip()} <= exported[other]
    for other in re.findall(r"import\(\"\./([\w.]+)\"\)", text):
        assert "mount" in exported[other]


def test_the_start_has_no_inline_script_or_style_and_names_no_other_host() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")

    assert not re.search(r"<style|\sstyle=|\son\w+=|https?:|<script(?![^>]* src=)", text)


def test_no_file_of_the_page_is_longer_than_500_lines() -> None:
    assert {file.name for file in PAGE.iterdir() if len(file.read_text("utf-8").splitlines()) > 500} == set()


def sha256_of(served: Served) -> str:
    return str(served.get("/api/v1/models", type="Checkpoint")["models"][0]["blob"]["sha256"])


def patch(served: Served, sha256: str, **edit: Any) -> Any:
    return served.http.patch(f"/api/v1/models/{sha256}", json=edit)


def test_an_edit_is_what_the_command_line_and_the_filters_see(served: Served) -> None:
    sha256 = sha256_of(served)

    answer = patch(served, sha256, rating=4, tags=["harbour"], note="for maps", is_favourite=True).json()

    assert answer["models"][0]["own"]["rating"] == 4
    assert "for maps" in served.civman("show", f"sha256:{sha256}", "--offline").stdout
    found = served.get("/api/v1/models", rating=4, tag="harbour", favourite="1")
    assert [each["blob"]["sha256"] for each in found["models"]] == [sha256]
    assert served.get("/api/v1/models/facets")["tag"] == [{"value": "harbour", "count": 1}]
    patch(served, sha256, rating=0, no_tags=["harbour"], note="", is_favourite=False)
    assert served.get("/api/v1/models", rating=1)["total"] == 0


@pytest.mark.parametrize(
    "edit",
    [{}, {"rating": 6}, {"rating": "many"}, {"path": "/etc/passwd"}, {"tags": "one"}, {"is_favourite": "perhaps"}],
)
def test_an_edit_that_says_nothing_or_nonsense_is_refused_in_words(served: Served, edit: dict[str, Any]) -> None:
    answer = patch(served, sha256_of(served), **edit)

    assert answer.status_code == 400
    assert answer.json()["message"]


def test_an_edit_from_another_site_or_of_no_file_is_refused(served: Served) -> None:
    sha256 = sha256_of(served)

    foreign = served.http.patch(
        f"/api/v1/models/{sha256}", json={"rating": 1}, headers={"Origin": "http://evil.example"}
    )
    assert foreign.status_code == 403
    assert patch(served, "0" * 64, rating=1).status_code == 404
    assert patch(served, "A" * 64, rating=1).status_code == 400


def test_facets_count_what_a_list_with_that_filter_has(served: Served) -> None:
    facets = served.get("/api/v1/models/facets")

    for each in facets["type"]:
        assert served.get("/api/v1/models", type=each["value"])["total"] == each["count"]


def test_a_check_says_the_verdict_of_the_command_line(served: Served) -> None:
    body = {"checkpoint": "tiny-sd1", "parts": [{"ref": "tiny-sd1", "role": "vae"}]}

    answer = served.http.post("/api/v1/check", json=body).json()

    said = served.civman("check", "tiny-sd1", "--vae", "tiny-sd1", "--quiet").stdout.strip()
    assert answer["verdict"] == said
    assert answer["licence"]["words"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"checkpoint": "tiny-sd1"}, 400),
        ({"checkpoint": "tiny-sd1", "parts": []}, 400),
        ({"checkpoint": "tiny-sd1", "parts": [{"ref": "tiny-sd1", "role": "cook"}]}, 400),
        ({"checkpoint": "/etc/passwd", "parts": ["tiny-sd1"]}, 403),
        ({"checkpoint": "tiny-sd1", "parts": ["../x.safetensors"]}, 403),
        ({"checkpoint": "no such", "parts": ["tiny-sd1"]}, 404),
    ],
)
def test_a_check_of_nothing_or_of_a_path_is_refused(served: Served, body: dict[str, Any], status: int) -> None:
    answer = served.http.post("/api/v1/check", json=body)

    assert answer.status_code == status
    assert "root:" not in answer.text
    assert status != 403 or answer.json()["code"] == "refused"


def queue_of(*clients: str) -> JobQueue:
    queue = JobQueue()
    for client in clients:
        queue.submit(JobKind.RENDER, client, "a", {})
    return queue


def taken(queue: JobQueue, count: int) -> list[int]:
    return [job.number for _ in range(count) if (job := queue.take(engine=True)) is not None]


@pytest.mark.parametrize(
    ("number", "to", "order"),
    [(3, "first", [3, 1, 2]), (3, "up", [1, 3, 2]), (1, "down", [2, 1, 3]), (1, "last", [2, 3, 1]),
     (1, "up", [1, 2, 3]), (3, "down", [1, 2, 3])],
)  # fmt: skip
def test_a_moved_job_is_taken_at_its_new_place(number: int, to: str, order: list[int]) -> None:
    queue = queue_of("a", "a", "a")

    queue.move(number, to)

    assert queue.places() == {each: place for place, each in enumerate(order, 1)}
    assert taken(queue, 3) == order


def test_moving_a_job_takes_no_turn_from_another_client() -> None:
    queue = queue_of("a", "a", "b")

    queue.move(2, "first")

    assert taken(queue, 3) == [2, 3, 1]


def test_only_a_waiting_job_can_be_moved() -> None:
    queue = queue_of("a", "a")
    taken(queue, 1)

    with pytest.raises(UsageError, match="running"):
        queue.move(1, "last")
    with pytest.raises(UsageError, match="must be first"):
        queue.move(2, "nowhere")
    with pytest.raises(NotFound):
        queue.move(9, "first")


def test_what_the_library_needs_is_asked_for_at_once() -> None:
    listed = re.findall(r'rel="modulepreload" href="/page/([\w.]+)"', (PAGE / "index.html").read_text("utf-8"))
    needed, waiting = set(), ["main.js", "view_library.js"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += re.findall(r' from "\./([\w.]+)";', (PAGE / name).read_text("utf-8"))

    assert sorted(listed) == sorted(needed)


def test_a_file_that_is_missing_has_details_and_the_licence_of_the_command_line(
    served: Served, stocked_library: Any, tmp_path: Path
) -> None:
    sha256 = sha256_of(served)
    before = served.get(f"/api/v1/models/{sha256}")
    path = stocked_library[0].parent / "tiny-sd1.safetensors"
    path.rename(tmp_path / "away")
    try:
        after = served.get(f"/api/v1/models/{sha256}")
    finally:
        (tmp_path / "away").rename(path)

    assert (before["model"]["presence"], after["model"]["presence"]) == ("here", "missing")
    assert after["licence"] == before["licence"]
    checked = served.http.post("/api/v1/check", json={"checkpoint": "tiny-sd1", "parts": ["tiny-sd1"]}).json()
    assert after["licence"]["words"] == checked["licence"]["words"]
