"""Draw and Pictures in a real Chromium: draw with a LoRA, compare two scales, replay, and read a stranger's image."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from browser_running import NARROW, WIDE, Look, Seen
from PIL import Image, PngImagePlugin
from serve_running import Served

pytestmark = pytest.mark.browser
DRAWN = 90_000
"""Milliseconds within which a small image is drawn; the first one loads torch."""


def ready(look: Look, route: str, size: tuple[int, int] = WIDE, **options: Any) -> Seen:
    """Open a view with the demo's checkpoint chosen."""
    seen = look(route, size, **options)
    seen.page.get_by_role("button", name=re.compile("checkpoint", re.IGNORECASE)).first.click()
    seen.page.get_by_role("dialog", name="Checkpoint").get_by_role("button", name="Tiny Shapes").click()
    return seen


def fill_in(seen: Seen, **values: str) -> None:
    names = {"steps": "Steps", "cfg": "CFG scale", "seed": "Seed", "images": "Images", "prompt": "Prompt"}
    for name, value in values.items():
        seen.page.get_by_label(names[name], exact=True).fill(value)


def drawn(seen: Seen) -> None:
    """Press Draw, and wait for its images."""
    before = seen.page.locator(".made img, .stage-images .error").count()
    seen.page.get_by_role("button", name="Draw", exact=True).click()
    seen.page.locator(".stage-now progress").wait_for()
    seen.page.locator(".stage-now progress").wait_for(state="hidden", timeout=DRAWN)
    seen.page.locator(".made img").first.wait_for()
    assert before == 0 or seen.page.locator(".stage-images .error").count() == 0


def newest(served: Served) -> Any:
    return served.get("/api/v1/pictures", limit=1)["pictures"][0]


def test_draw_with_a_lora_compare_two_scales_and_replay(look: Look, page_server: Served) -> None:
    seen = ready(look, "#/draw")
    page = seen.page
    fill_in(seen, prompt="a large red circle on a blue background", steps="4", cfg="4", seed="1")
    page.get_by_role("button", name="Add a LoRA").click()
    page.get_by_role("dialog", name="Add a LoRA").get_by_role("button", name=re.compile("Tiny Stripes")).click()
    page.get_by_role("button", name="tiny-stripes", exact=True).click()
    assert "tiny-stripes" in page.get_by_label("Prompt", exact=True).input_value()
    plan = page.get_by_role("status", name="Plan")
    plan.get_by_text("1 image, 64×64").wait_for(timeout=DRAWN)  # the first plan starts the process that renders
    assert "Licence: " in plan.inner_text()
    assert "With Tiny Shapes v1.0, Tiny Stripes v1.0 at 1\n" in plan.inner_text()
    seen.shot("draw-plan")

    drawn(seen)
    first = newest(page_server)
    assert first["seed"] == 1
    seen.shot("draw-result")
    page.get_by_label("Scale of Tiny Stripes").fill("0.3")
    drawn(seen)
    second = newest(page_server)

    recipes = [page_server.get(f"/api/v1/pictures/{each['id']}")["recipe"] for each in (first, second)]
    assert [recipe["loras"][0]["scale"] for recipe in recipes] == [1.0, 0.3]
    page.locator(".made a").first.click()
    panel = page.get_by_role("complementary", name="Details")
    panel.get_by_role("button", name="Compare").click()
    page.get_by_text("Choose the image to compare").wait_for()
    page.get_by_role("gridcell").nth(1).click()
    page.locator(".verdict", has_text="different").wait_for()
    (row,) = page.locator(".compare tbody tr").all()
    assert [cell.inner_text() for cell in row.locator("th, td").all()] == [
        "loras", "Tiny Stripes v1.0 at 0.3", "Tiny Stripes v1.0 at 1",
    ]  # fmt: skip
    page.get_by_alt_text("Where the two images differ").wait_for()
    seen.shot("compare")
    page.get_by_role("button", name="Back to the images").click()
    panel.get_by_role("button", name="Replay").click()
    panel.locator(".verdict", has_text="identical").wait_for(timeout=DRAWN)
    seen.shot("pictures-replay")
    panel.get_by_role("link", name="Use all settings").click()
    page.get_by_label("Scale of Tiny Stripes").wait_for()
    assert page.get_by_label("Scale of Tiny Stripes").input_value() == "0.3"
    assert page.get_by_label("Seed", exact=True).input_value() == "1"


def test_a_grid_is_drawn_and_a_wrong_value_is_explained_before(look: Look, page_server: Served) -> None:
    seen = ready(look, "#/draw")
    page = seen.page
    fill_in(seen, prompt="a red circle", steps="0")
    page.get_by_role("status", name="Plan").get_by_role("alert").wait_for()
    assert page.get_by_role("button", name="Draw", exact=True).is_disabled()
    fill_in(seen, steps="2")
    page.get_by_text("Grid: vary one or two settings").click()
    page.get_by_label("Columns vary", exact=True).select_option("seed")
    page.get_by_label("Columns vary: values").fill("1..2")
    page.get_by_label("Rows vary", exact=True).select_option("cfg")
    page.get_by_label("Rows vary: values").fill("2, 6")
    page.get_by_role("status", name="Plan").get_by_text("4 images").wait_for()

    drawn(seen)

    page.get_by_alt_text(re.compile("^The grid")).wait_for()
    assert page.locator(".made img").count() == 4
    seen.shot("draw-grid")
    assert {each["seed"] for each in page_server.get("/api/v1/pictures", limit=4)["pictures"]} == {1, 2}


def test_a_long_render_shows_previews_and_is_cancelled(look: Look, page_server: Served) -> None:
    seen = ready(look, "#/draw")
    fill_in(seen, prompt="a long one", steps="1000", seed="5")
    seen.page.get_by_role("status", name="Plan").get_by_text("1000 steps").or_(
        seen.page.get_by_text("1,000 steps")
    ).wait_for()
    seen.page.get_by_role("button", name="Draw", exact=True).click()

    seen.page.locator("img.preview:not([hidden])").wait_for(timeout=DRAWN)
    assert (seen.page.locator("img.preview").get_attribute("src") or "").startswith("data:image/jpeg;base64,")
    seen.shot("draw-preview")
    seen.page.locator(".stage-now").get_by_role("button", name="Cancel").click()

    seen.page.get_by_text("Cancelled.").wait_for(timeout=DRAWN)
    assert page_server.get("/api/v1/jobs")["jobs"][0]["state"] == "cancelled"


def test_a_strangers_image_is_read_and_drawn_again(look: Look, page_server: Served, tmp_path: Path) -> None:
    (model,) = page_server.get("/api/v1/models", q="tiny shapes", type="Checkpoint")["models"]
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "a yellow circle\nNegative prompt: blue\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64, "
        f"Model hash: {model['blob']['sha256'][:10]}, Model: <b>theirs</b>, Version: v1.10.1",
    )
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(out, "PNG", pnginfo=info)
    (tmp_path / "stranger.png").write_bytes(out.getvalue())
    seen = ready(look, "#/pictures")
    before = page_server.get("/api/v1/pictures")["total"]

    seen.page.get_by_label("An image file to read").set_input_files(tmp_path / "stranger.png")

    panel = seen.page.get_by_role("complementary", name="Details")
    panel.get_by_text("a yellow circle").first.wait_for()
    assert "in the library, recognised by its hash" in panel.inner_text()
    assert page_server.get("/api/v1/pictures")["total"] == before, "reading keeps nothing"
    seen.shot("read-stranger")
    panel.get_by_role("button", name="Draw it again").click()
    panel.locator(".results img").wait_for(timeout=DRAWN)
    assert newest(page_server)["seed"] == 11
    panel.get_by_role("button", name="Edit in Draw").click()
    seen.page.get_by_label("Seed", exact=True).wait_for()
    assert seen.page.get_by_label("Prompt", exact=True).input_value() == "a yellow circle"


def test_an_example_image_of_civitai_is_drawn_again_and_edited(look: Look, page_server: Served) -> None:
    seen = look("#/civitai?open=91003")
    page = seen.page
    page.get_by_role("button", name=re.compile("^Example image 1, rated")).click()
    dialog = page.get_by_role("dialog", name="Example image")
    dialog.get_by_role("button", name="Draw with these settings").click()
    dialog.locator(".plan", has_text="With Tiny Shapes v1.0, Tiny Stripes v1.0 at 1").wait_for(timeout=DRAWN)
    prompt = dialog.locator(".description").first.inner_text()
    seen.shot("civitai-example-plan")

    dialog.get_by_role("button", name="Draw it").click()

    dialog.locator(".results img").wait_for(timeout=DRAWN)
    drawn_again = newest(page_server)
    assert drawn_again["prompt"] == prompt
    seen.shot("civitai-example-drawn")
    dialog.get_by_role("button", name="Edit in Draw").click()
    page.get_by_label("Scale of Tiny Stripes v1.0").wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value() == prompt
    assert page.get_by_label("Seed", exact=True).input_value() == str(drawn_again["seed"])
    assert page.get_by_role("dialog", name="Example image").count() == 0


def test_images_are_filtered_by_words_and_by_model(look: Look, page_server: Served) -> None:
    (stripes,) = page_server.get("/api/v1/models", q="tiny stripes", type="LORA")["models"]
    for prompt, loras in (
        ("a striped square", [{"ref": f"sha256:{stripes['blob']['sha256']}"}]),
        ("a plain square", []),
    ):
        request = {"checkpoint": "91001", "prompt": prompt, "steps": 4, "seed": 3, "loras": loras}
        job = page_server.ended(page_server.submit({"kind": "render", "request": request, "device": "cpu"}))
        assert job["state"] == "done", job
    seen = look("#/pictures?q=square")
    seen.page.locator(".total", has_text=re.compile("^2 images$")).wait_for()

    seen.page.get_by_role("button", name="Model", exact=True).click()
    seen.page.get_by_role("dialog", name="Model").get_by_role("button", name=re.compile("Tiny Stripes")).click()

    seen.page.locator(".total", has_text=re.compile("^1 image$")).wait_for()
    assert "a striped square" in seen.page.get_by_role("gridcell").first.inner_text()
    seen.page.get_by_role("button", name="Remove filter made with Tiny Stripes").click()
    seen.page.locator(".total", has_text=re.compile("^2 images$")).wait_for()


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_draw_and_pictures_have_no_serious_fault(
    look: Look, axe: str, page_server: Served, size: tuple[int, int], scheme: str
) -> None:
    request = {"checkpoint": "91001", "prompt": "a red circle", "steps": 2, "seed": 3, "count": 2}
    if page_server.get("/api/v1/pictures")["total"] < 2:
        page_server.ended(page_server.submit({"kind": "render", "request": request, "device": "cpu"}))
    one, other = (each["id"] for each in page_server.get("/api/v1/pictures", limit=2)["pictures"])
    seen = ready(look, "#/draw", size, color_scheme=scheme, bypass_csp=True)
    faults = []
    visits = {
        "draw": ".plan p", f"pictures?open={one}": ".panel .part", f"pictures?compare={one},{other}": ".compare-images",
    }  # fmt: skip
    for route, waits in visits.items():
        seen.page.evaluate("(route) => { location.hash = '#/' + route; }", route)
        seen.page.wait_for_selector(waits)
        seen.shot(f"{route.partition('?')[0]}-{scheme}{'-compare' if 'compare' in route else ''}")
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0], route
        faults += [(route, *each) for each in seen.faults(axe)]
    assert faults == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_opens_in_draw_and_pictures_has_no_serious_fault(
    look: Look, axe: str, size: tuple[int, int], scheme: str
) -> None:
    seen = ready(look, "#/draw", size, color_scheme=scheme, bypass_csp=True)
    page, faults = seen.page, []

    def judge(what: str) -> None:
        seen.shot(f"{what}-{scheme}")
        faults.extend((what, *each) for each in seen.faults(axe))

    page.get_by_role("button", name="Add a LoRA").click()
    loras = page.get_by_role("dialog", name="Add a LoRA")
    loras.get_by_role("button", name=re.compile("Tiny Stripes")).wait_for()
    judge("open-loras")
    loras.get_by_role("button", name=re.compile("Tiny Stripes")).click()
    page.get_by_text("Grid: vary one or two settings").click()
    page.get_by_label("Columns vary", exact=True).select_option("seed")
    fill_in(seen, prompt="a red circle", steps="0")
    page.get_by_role("status", name="Plan").get_by_role("alert").wait_for()
    judge("open-grid")
    page.evaluate("location.hash = '#/pictures'")
    page.get_by_role("button", name="Model", exact=True).click()
    page.get_by_role("dialog", name="Model").get_by_role("button", name=re.compile("Tiny Stripes")).wait_for()
    judge("open-models")
    page.keyboard.press("Escape")
    image = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", "a circle\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64, Model: theirs"
    )
    Image.new("RGB", (64, 64), "navy").save(image, "PNG", pnginfo=info)
    page.get_by_label("An image file to read").set_input_files(
        {"name": "theirs.png", "mimeType": "image/png", "buffer": image.getvalue()}
    )
    page.get_by_role("heading", name="It cannot be drawn again now").wait_for()
    judge("open-read")
    assert faults == []


def test_the_keyboard_alone_suffices_to_draw(look: Look, page_server: Served) -> None:
    seen = ready(look, "#/library")
    page = seen.page
    page.locator("main").focus()
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.get_by_label("Steps", exact=True).wait_for()
    page.keyboard.press("/")
    page.keyboard.type("drawn by keys")
    fill_in(seen, steps="2")
    page.get_by_label("Steps", exact=True).press("Control+Enter")

    page.locator(".made img").first.wait_for(timeout=DRAWN)
    assert newest(page_server)["prompt"] == "drawn by keys"
