"""The page in a real Chromium: what a person does there, by mouse and by keyboard, at 1400 and 400 pixels."""

import re
from typing import Any

import pytest
from browser_running import HOSTILE, NARROW, WIDE, Look, Seen

pytestmark = pytest.mark.browser
SIZES = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
VIEWS = ("library", "civitai", "jobs", "server")


def cards(seen: Seen) -> list[str]:
    seen.page.wait_for_selector(".cell:not(.pending)")
    return [str(text) for text in seen.page.locator(".cell b").all_inner_texts()]


def total(seen: Seen, words: str) -> None:
    seen.page.locator(".total", has_text=re.compile(f"^{words}$")).wait_for()


def choose_checkpoint(seen: Seen, name: str) -> None:
    seen.page.get_by_role("button", name=re.compile("checkpoint", re.IGNORECASE)).first.click()
    seen.page.get_by_role("dialog", name="Checkpoint").get_by_role("button", name=name).click()


@SIZES
def test_the_library_is_searched_filtered_and_described(look: Look, size: tuple[int, int]) -> None:
    seen = look("#/library", size)
    page = seen.page

    assert len(cards(seen)) == 6
    seen.shot("library")
    page.get_by_role("searchbox", name="Search the library").fill("stripes")
    total(seen, "1 file")
    assert cards(seen) == ["Tiny Stripes"]
    page.get_by_role("gridcell", name=re.compile("Tiny Stripes")).click()
    panel = page.get_by_role("complementary", name="Details")
    panel.get_by_role("heading", name="Tiny Stripes").wait_for()
    assert panel.get_by_role("button", name="tiny-stripes").is_visible()
    assert "images may be sold" in panel.inner_text()
    seen.shot("library-details")
    panel.get_by_role("button", name="Close").click()
    panel.wait_for(state="hidden")
    page.get_by_role("searchbox", name="Search the library").fill("no such thing")
    page.get_by_text("No files match").wait_for()
    seen.shot("library-nothing")


def test_filters_are_chips_that_can_be_removed_and_survive_a_reload(look: Look) -> None:
    seen = look("#/library")
    page = seen.page
    page.get_by_role("button", name="Type").click()
    page.get_by_role("checkbox", name=re.compile("LORA")).check()
    page.keyboard.press("Escape")
    total(seen, "2 files")
    page.reload()

    assert sorted(cards(seen)) == ["Ink Wash Sketch", "Tiny Stripes"]
    page.get_by_role("button", name="Remove filter LORA").click()
    total(seen, "6 files")


def test_what_fits_the_chosen_checkpoint_is_shown_with_its_verdict(look: Look) -> None:
    seen = look("#/library")
    page = seen.page
    choose_checkpoint(seen, "Meridian XL")
    page.get_by_role("button", name="Fits").click()
    page.get_by_text("No files match").or_(page.locator(".cell:not(.pending)").first).wait_for()
    assert "Tiny Stripes" not in cards(seen) if page.locator(".cell").count() else True
    page.get_by_role("button", name="Remove filter fits Meridian XL").click()
    page.get_by_role("gridcell", name=re.compile("Tiny Stripes")).click()

    page.locator(".verdict", has_text="cannot work").wait_for()
    choose_checkpoint(seen, "Tiny Shapes")
    page.locator(".verdict", has_text=re.compile("^fits$")).wait_for()


def test_rating_tags_and_notes_are_saved(look: Look, page_server: Any) -> None:
    seen = look("#/library?q=inkwash")
    page = seen.page
    page.get_by_role("gridcell").first.click()
    page.get_by_role("button", name="4 stars").click()
    page.wait_for_selector(".cell span:has-text('★★★★')")
    page.get_by_role("textbox", name="Add a tag").fill("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Remove tag <img src=x onerror=alert(1)>").wait_for()
    page.get_by_role("textbox", name="Note").fill("for maps")
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(300)

    (kept,) = page_server.get("/api/v1/models", q="inkwash")["models"]
    assert (kept["own"]["rating"], kept["own"]["note"]) == (4, "for maps")
    assert kept["own"]["tags"] == ["<img src=x onerror=alert(1)>"]
    page.get_by_role("button", name="Remove tag <img src=x onerror=alert(1)>").click()
    page.get_by_role("button", name="4 stars").click()
    page.get_by_role("textbox", name="Note").fill("")
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(300)
    assert page_server.get("/api/v1/models", q="inkwash")["models"][0]["own"]["rating"] is None


def test_jobs_are_live_and_say_why_they_failed(look: Look, page_server: Any) -> None:
    seen = look("#/jobs")
    page = seen.page
    number = page_server.submit({"kind": "download", "ref": "9999999"})

    page.get_by_text("Error [not-found]").first.wait_for()
    assert page_server.get(f"/api/v1/jobs/{number}")["state"] == "failed"
    assert "Hint: the model may be deleted or private" in page.locator("main").inner_text()
    seen.shot("jobs")


def test_an_answer_that_is_later_than_the_events_does_not_hide_them(look: Look, page_server: Any) -> None:
    page = look("#/jobs").page
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    delivered: list[int] = []

    def late(route: Any) -> None:
        """Make a job that fails after the server has made the list without it, and only then deliver the list."""
        answer = route.fetch()
        number = page_server.submit({"kind": "download", "ref": "8888888"})
        while page_server.get(f"/api/v1/jobs/{number}")["state"] != "failed":
            pass
        page.wait_for_timeout(500)  # the events arrive
        route.fulfill(response=answer)
        delivered.append(number)

    page.route("**/api/v1/jobs", late, times=1)
    page_server.submit({"kind": "download", "ref": "7777777"})  # the page reads the list again for a queued job
    while not delivered:
        page.wait_for_timeout(50)

    page.wait_for_timeout(300)  # the list is drawn
    assert "id 8888888" in page.locator("main").inner_text()


def test_a_download_that_fails_before_it_is_answered_is_seen_to_fail(look: Look) -> None:
    page = look("#/civitai?open=84410").page
    page.locator(".download .wrong, .download .reasons").first.wait_for()

    def late(route: Any) -> None:
        answer = route.fetch()
        page.wait_for_timeout(1000)  # the job ends, and its events arrive
        route.fulfill(response=answer)

    page.route("**/api/v1/jobs", lambda route: late(route) if route.request.method == "POST" else route.continue_())
    page.get_by_role("button", name=re.compile("^Download")).first.click()

    page.locator(".download .wrong", has_text="in early access until").wait_for()


def test_the_doctor_speaks(look: Look) -> None:
    seen = look("#/server")

    seen.page.locator(".finding").first.wait_for(timeout=30_000)
    assert seen.page.locator(".finding.is-bad").count() == 0
    seen.shot("server")


def test_the_keyboard_alone_suffices_in_the_library(look: Look) -> None:
    seen = look("#/jobs")
    page = seen.page
    page.keyboard.press("g")
    page.keyboard.press("l")
    cards(seen)
    page.keyboard.press("/")
    page.keyboard.type("tiny")
    total(seen, "3 files")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('cell')"):
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(".panel-title:focus").wait_for()
    title = page.locator(".panel-title").inner_text()
    assert title == cards(seen)[1]
    page.keyboard.press("Escape")
    page.locator(".panel").wait_for(state="hidden")
    assert title in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard shortcuts").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    assert page.locator("img.veiled").count() == page.locator("img[data-level]").count() > 0


@SIZES
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_serious_fault(look: Look, axe: str, view: str, scheme: str, size: tuple[int, int]) -> None:
    seen = look(f"#/{view}", size, color_scheme=scheme, bypass_csp=True)
    seen.page.wait_for_selector(".cell:not(.pending), .page")
    if view in ("library", "civitai"):
        seen.page.get_by_role("gridcell").first.click()
        seen.page.wait_for_selector(".panel .part")
    assert seen.faults(axe) == []


def test_nothing_moves_or_overflows_at_400_pixels(look: Look) -> None:
    for view in (*VIEWS, "pictures", "draw"):
        seen = look(f"#/{view}", NARROW, reduced_motion="reduce")
        seen.page.wait_for_selector(".cell:not(.pending), .page, .empty, .draw")
        if seen.page.locator(".grid").count():
            assert seen.page.evaluate("document.querySelector('.grid').clientHeight") > 400, view
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 400, view
        assert seen.page.evaluate("document.getAnimations().length") == 0


def test_the_policy_forbids_inline_scripts_foreign_hosts_and_parsing_html(look: Look) -> None:
    seen = look("#/library")
    page = seen.page
    cards(seen)
    page.evaluate("""() => {
      window.refused = [];
      addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
      const script = document.createElement('script');
      try { script.textContent = 'window.ran = true'; document.body.append(script); } catch { refused.push('text'); }
      try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); } catch { refused.push('html'); }
      document.body.append(Object.assign(document.createElement('img'), { src: 'http://127.0.0.2:9/x.png' }));
    }""")
    page.wait_for_timeout(300)

    refused = page.evaluate("refused")
    assert page.evaluate("window.ran") is None
    assert {"text", "html", "img-src", "require-trusted-types-for"} <= set(refused)
    seen.wrong.clear()
    seen.foreign.clear()  # asked for above, and refused by the browser


def test_seven_tabs_share_one_stream_of_events(look: Look, page_server: Any) -> None:
    seen = look("#/jobs")
    others = [seen.page.context.new_page() for _ in range(6)]
    for each in others:
        each.goto(f"{seen.url}/#/jobs")
        each.wait_for_selector("h1")
    number = page_server.submit({"kind": "download", "ref": "9999998"})

    for each in (seen.page, *others):
        each.get_by_text(f"job {number}", exact=False).wait_for()


@SIZES
def test_a_lora_that_fits_is_found_looked_at_and_downloaded(
    look: Look, page_server: Any, size: tuple[int, int]
) -> None:
    lora, file = {WIDE: ("Tiny Outline", "outline"), NARROW: ("Tiny Night", "night")}[size]
    seen = look("#/civitai", size)
    page = seen.page
    cards(seen)
    choose_checkpoint(seen, "Tiny Shapes")
    page.get_by_role("button", name="Fits").click()
    page.get_by_role("button", name="Remove filter fits Tiny Shapes").wait_for()
    page.wait_for_selector(".card[data-support='full']")
    assert "Brass Diorama XL" not in cards(seen)
    seen.shot("civitai")
    page.get_by_role("searchbox", name="Search CivitAI").fill(lora.split()[1])
    page.get_by_role("gridcell", name=re.compile(lora)).click()
    panel = page.get_by_role("complementary", name="Details")
    panel.locator(".verdict", has_text="fits").wait_for()
    seen.shot("civitai-details")
    panel.get_by_role("button", name="Show them").click()
    panel.get_by_role("button", name=re.compile("^Image 1, rated")).or_(
        panel.get_by_text("CivitAI shows none")
    ).first.wait_for()
    panel.get_by_role("button", name=re.compile("Example image 1")).click()
    dialog = page.get_by_role("dialog", name="Example image")
    dialog.get_by_role("heading", name="Prompt").or_(dialog.get_by_text("shows no settings")).first.wait_for()
    seen.shot("civitai-example")
    page.keyboard.press("Escape")
    panel.get_by_role("button", name=re.compile("^Download")).click()
    panel.get_by_role("link", name="In the library").wait_for(timeout=30_000)
    assert page_server.get("/api/v1/models", q=file)["total"] == 1
    panel.get_by_role("link", name="Draw with it").wait_for()
    seen.shot("civitai-downloaded")
    panel.get_by_role("link", name="Draw with it").click()
    page.locator(".lora-rows", has_text=lora).wait_for()
    if size == WIDE:
        draw_a_square(seen)


def draw_a_square(seen: Seen) -> None:
    """Draw with what was just downloaded; the plan is there before."""
    pytest.importorskip("torch")
    page = seen.page
    page.get_by_label("Prompt", exact=True).fill("a large green square on a black background, tiny-outline")
    page.get_by_label("Steps").fill("4")
    page.get_by_label("Seed", exact=True).fill("1")
    page.locator(".plan", has_text="images may be sold").wait_for(timeout=60_000)
    seen.shot("draw-plan")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".stage-images img").first.wait_for(timeout=120_000)
    page.wait_for_timeout(300)
    seen.shot("draw-done")


def test_what_is_rated_above_the_level_is_blurred_until_it_is_shown(look: Look) -> None:
    seen = look("#/civitai?open=87300")
    page = seen.page
    blurred = page.locator(".examples img.veiled")
    blurred.first.wait_for()
    seen.shot("civitai-blurred")
    assert page.locator(".examples img").count() == blurred.count()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Show images rated up to").select_option("XXX")
    page.keyboard.press("Escape")
    page.locator(".examples img:not(.veiled)").first.wait_for()
    page.keyboard.press("b")
    page.locator(".examples img.veiled").first.wait_for()


def test_hostile_names_and_descriptions_are_text(look: Look) -> None:
    seen = look("#/civitai?open=87300")
    page = seen.page
    page.on("dialog", lambda dialog: seen.wrong.append(dialog.message))

    page.get_by_role("heading", name=HOSTILE).wait_for()
    panel = page.locator(".panel")
    assert "Says <hello>" in panel.inner_text()
    assert panel.locator("script, iframe, svg:not(.icon), img[src='x']").count() == 0
    page.get_by_role("link", name=HOSTILE).click()
    page.get_by_role("button", name=f"Remove filter tag {HOSTILE}").wait_for()


def test_early_access_is_said_before_the_download(look: Look) -> None:
    seen = look("#/civitai?open=84410")

    seen.page.locator(".panel .verdict.care", has_text="early access until").wait_for()
    seen.page.locator(".download .wrong, .download .reasons").first.wait_for()
    seen.page.get_by_role("button", name=re.compile("^Download")).first.click()
    refused = seen.page.locator(".download .wrong", has_text="in early access until")
    refused.wait_for(timeout=30_000)
    assert re.search(r"until \d{4}-\d\d-\d\d: ", refused.inner_text())
    seen.shot("civitai-early-access")


def test_a_pasted_address_opens_its_model(look: Look) -> None:
    seen = look("#/civitai")
    page = seen.page
    page.get_by_role("searchbox", name="Search CivitAI").fill("https://civitai.com/models/91003?modelVersionId=191030")
    page.keyboard.press("Enter")

    page.get_by_role("heading", name="Tiny Stripes").wait_for()


def focused(seen: Seen, words: str) -> None:
    """Press Tab until what has the keyboard says these words."""
    for _ in range(80):
        seen.page.keyboard.press("Tab")
        text = seen.page.evaluate("document.activeElement.textContent + ' ' + document.activeElement.ariaLabel")
        if words in text:
            return
    raise AssertionError(f"Tab never reaches `{words}`")


def test_the_keyboard_alone_downloads_and_never_loses_its_place(look: Look, page_server: Any) -> None:
    seen = look("#/library")
    page = seen.page
    cards(seen)
    page.keyboard.press("g")
    page.keyboard.press("c")
    page.locator("#view.view-civitai .cell:not(.pending)").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("diamond")
    page.get_by_role("gridcell", name=re.compile("Tiny Diamond")).wait_for()
    page.get_by_role("gridcell", name=re.compile("Soft Edges")).wait_for(state="detached")
    focused(seen, "Tiny Diamond")
    page.keyboard.press("Enter")
    page.locator(".panel-title:focus", has_text="Tiny Diamond").wait_for()
    assert page.get_by_role("complementary", name="Details").get_by_role("link", name="In the library").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.press("Control+A")
    page.keyboard.type("warm vae")
    page.get_by_role("gridcell", name=re.compile("Tiny Warm VAE")).wait_for()
    page.get_by_role("gridcell", name=re.compile("Tiny Diamond")).wait_for(state="detached")
    focused(seen, "Tiny Warm VAE")
    page.keyboard.press("Enter")
    page.locator(".panel-title:focus", has_text="Tiny Warm VAE").wait_for()
    focused(seen, "Download")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="In the library").wait_for(timeout=30_000)
    assert page_server.get("/api/v1/models", q="warm")["total"] == 1
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement !== document.body")
