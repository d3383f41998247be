# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Detail passes: each region against the img2img that draws it by hand, recipes, replays, A1111's text, refusals."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image, ImageDraw
from rendering_stock import QUICK

from civman.diffusion.detail_passes import dilated
from civman.domain.recipes.details import detail_from
from civman.pictures import image_text

BASE = ("tiny-sd1", "a cat", *QUICK, "--negative", "bad")
SIZE = 64


def made(run: Any, kind: str = "render") -> Any:
    assert run.code == 0, run.out + run.err
    return run.json[kind]


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def grown(mask: np.ndarray, side: int) -> np.ndarray:
    """OpenCV's dilate (side > 0) or erode with a square, whose anchor is its pixel side // 2, pixel by pixel."""
    count, pick = abs(side), max if side > 0 else min
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        around = [
            int(mask[v, u])
            for v in range(y - count // 2, y - count // 2 + count)
            for u in range(x - count // 2, x - count // 2 + count)
            if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]
        ]  # fmt: skip
        result[y, x] = pick(around)
    return result


def mask_of(folder: Path, corners: tuple[int, int, int, int], size: int = SIZE, dilate: int = 4) -> Path:
    """A file with ADetailer's mask of a box, whose corners are both inside."""
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    path = folder / f"mask-{'-'.join(map(str, corners))}.png"
    Image.fromarray(grown(np.asarray(mask), dilate) if dilate else np.asarray(mask)).save(path)
    return path


def crop_of(mask: np.ndarray, padding: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A1111's get_crop_region and expand_crop_region for the white area of a mask."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    height, width = mask.shape
    x1, y1 = max(int(columns[0]) - padding, 0), max(int(rows[0]) - padding, 0)
    x2, y2 = min(int(columns[-1]) + 1 + padding, width), min(int(rows[-1]) + 1 + padding, height)
    if (x2 - x1) / (y2 - y1) > size[0] / size[1]:
        more = int((x2 - x1) / (size[0] / size[1]) - (y2 - y1))
        y1, y2 = y1 - more // 2, y2 + more - more // 2
        if y2 >= height:
            y1, y2 = y1 - (y2 - height), height
        if y1 < 0:
            y1, y2 = 0, y2 - y1
        y2 = min(y2, height)
    else:
        more = int((y2 - y1) * (size[0] / size[1]) - (x2 - x1))
        x1, x2 = x1 - more // 2, x2 + more - more // 2
        if x2 >= width:
            x1, x2 = x1 - (x2 - width), width
        if x1 < 0:
            x1, x2 = 0, x2 - x1
        x2 = min(x2, width)
    return x1, y1, x2, y2


def by_hand(
    civman: Civman, image: Any, mask: Path, target: Path, *options: object, prompt: str = "a cat"
) -> np.ndarray:
    """Inpaint only the masked area of an image by img2img, with ADetailer's settings unless `options` differ."""
    path = target.with_suffix(".input.png")
    Image.fromarray(image).save(path)
    usual = ("--strength", "0.4", "--padding", "32", "--mask-blur", "4")
    made(civman("render", BASE[0], prompt, *BASE[2:], "--init", path, "--mask", mask, "--only-masked", *usual, *options,
                "-o", target, "--json"))  # fmt: skip
    return pixels(target)


@pytest.mark.usefixtures("stocked")
def test_boxes_are_drawn_one_after_the_other_as_img2img_draws_them(civman: Civman, tmp_path: Path) -> None:
    own = "strength=0.6,blur=2,dilate=-3,size=80x64,steps=3,cfg=5,sampler=Heun,schedule=Karras"
    details = ("--detail", "10,12,14,10:padding=4", "--detail-prompt", "[PROMPT] with a hat", "--detail",
               f"30,30,20,24:{own}")  # fmt: skip
    plain = made(civman("render", *BASE, "--count", "2", "--json"))
    done = made(civman("render", *BASE, "--count", "2", *details, "--json"))

    for number, (first, last) in enumerate(zip(plain, done, strict=True)):
        seed = str(7 + number)
        mask = mask_of(tmp_path, (10, 12, 23, 21))
        one = by_hand(
            civman, pixels(first["path"]), mask, tmp_path / f"one{number}.png", "--size", "64x64", "--padding", "4",
            "--seed", seed, prompt="a cat with a hat",
        )  # fmt: skip
        left, top, right, bottom = crop_of(np.asarray(Image.open(mask)), 4 + 10, (64, 64))  # the blur reaches 10 pixels
        outside = np.ones((SIZE, SIZE), bool)
        outside[top:bottom, left:right] = False
        assert (one == pixels(first["path"]))[outside].all()
        two = by_hand(
            civman, one, mask_of(tmp_path, (30, 30, 49, 53), dilate=-3), tmp_path / f"two{number}.png",
            "--size", "80x64", "--strength", "0.6", "--mask-blur", "2", "--steps", "3", "--cfg", "5",
            "--sampler", "Heun", "--schedule", "Karras", "--seed", seed,
        )  # fmt: skip
        assert (pixels(last["path"]) == two).all()
        assert (two != one).any()
        assert (one != pixels(first["path"])).any()
    assert done[0]["recipe"]["schema"] == 16
    assert [each["box"] for each in done[0]["recipe"]["details"]] == ["10,12,14,10", "30,30,20,24"]
    assert "1 region of `box`" in " ".join(done[0]["notes"])
    replayed = made(civman("replay", done[1]["path"], "--json"), "replay")
    assert replayed["pictures"][0]["verdict"] == "identical"
    without = made(civman("replay", done[0]["path"], "--set", "details=off", "--json"))[0]
    assert without["pixel_sha256"] == plain[0]["pixel_sha256"]
    other = made(civman("replay", done[0]["path"], "--set", "details=8,8,16,16:strength=0.9", "--json"))[0]
    assert [each["strength"] for each in other["recipe"]["details"]] == [0.9]


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("kind", ["sd1", pytest.param("sdxl", marks=pytest.mark.long)])
def test_a_mask_after_the_second_pass_and_with_a_changing_lora(civman: Civman, tmp_path: Path, kind: str) -> None:
    lora = {"sd1": "ink", "sdxl": "xl-ink"}[kind]
    basis = (f"tiny-{kind}", "a cat", *QUICK, "--lora", f"{lora}:0@0,1@1:0.5", "--hires", "1.5", "--hires-steps", "2")
    mask = mask_of(tmp_path, (40, 20, 70, 60), 96, 0)
    [plain] = made(civman("render", *basis, "--json"))
    [done] = made(civman("render", *basis, "--detail", f"{mask}:dilate=0", "--json"))
    Image.fromarray(pixels(plain["path"])).save(tmp_path / "input.png")
    [hand] = made(civman("render", *basis[:-4], "--init", tmp_path / "input.png", "--mask", mask, "--only-masked",
                         "--strength", "0.4", "--json"))  # fmt: skip

    assert done["pixel_sha256"] == hand["pixel_sha256"]
    [larger] = made(civman("render", *basis, "--detail", f"{mask}:dilate=0", "--upscale", "lanczos:2", "--json"))
    doubled = Image.fromarray(pixels(done["path"])).resize((192, 192), Image.Resampling.LANCZOS)
    assert (pixels(larger["path"]) == np.asarray(doubled)).all(), "it is enlarged last"
    mask.unlink()
    assert made(civman("replay", done["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"
    [other] = made(civman("replay", done["path"], "--set", "seed=8", "--json"))
    assert other["recipe"]["details"] == done["recipe"]["details"]


@pytest.mark.long
@pytest.mark.usefixtures("with_faces")
def test_faces_have_seeds_and_prompts_of_their_own_and_a1111_s_text(civman: Civman, tmp_path: Path) -> None:
    asked = ("--detail", "face:strength=0.5,padding=8,steps=3,noise=1.1",
             "--detail-prompt", "a face, smiling [SEP] [PROMPT]", "--detail-negative", "blurry, bad",
             "--detail", "face", "--detail-prompt", "[SKIP]")  # fmt: skip
    [plain] = made(civman("render", *BASE, "--json"))
    [done] = made(civman("render", *BASE, *asked, "--json"))
    [note] = [each for each in done["notes"] if "faces" in each and ":" in each.partition("again")[2]]
    boxes = [tuple(map(int, words.split(","))) for words in note.rpartition(": ")[2].split("; ")]

    image = pixels(plain["path"])
    for number, (left, top, width, height) in enumerate(boxes):
        mask = mask_of(tmp_path, (left, top, left + width - 1, top + height - 1), dilate=0)
        words = "a cat" if number else "a face, smiling"
        image = by_hand(
            civman, image, mask, tmp_path / f"face{number}.png", "--size", "64x64", "--strength", "0.5", "--padding",
            "8", "--steps", "3", "--noise-multiplier", "1.1", "--seed", str(7 + number), "--negative", "blurry, bad",
            prompt=words,
        )  # fmt: skip
    assert (pixels(done["path"]) == image).all()
    text = image_text.read(Path(done["path"])).parameters or ""
    assert "ADetailer model: retinaface, " in text
    assert 'ADetailer prompt: "a face, smiling [SEP] [PROMPT]"' in text
    assert "ADetailer prompt 2nd: [SKIP]" in text
    assert "ADetailer steps: 3" in text
    (tmp_path / "settings.txt").write_text(text)
    [again] = made(civman("replay", tmp_path / "settings.txt", "--json"))
    assert again["pixel_sha256"] == done["pixel_sha256"], "from A1111's text alone"
    assert made(civman("replay", done["path"], "--json"), "replay")["pictures"][0]["verdict"] == "identical"


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--detail", "70,0,8,8"), "bad-recipe", "outside the image"),
        (("--detail", "face_yolov8n.pt"), "bad-value", "no mask file has this path"),
        (("--detail", "1,1,8,8:conf=3"), "bad-value", "conf"),
        (("--detail", "1,1,8,8:strength=0"), "bad-recipe", "strength"),
        (("--detail", "1,1,8,8:size=80x65"), "bad-recipe", "multiples of 8"),
        (("--detail", "1,1,8,8", "--detail-prompt", "x <lora:ink:1>"), "prompt-syntax", "tag"),
        (("--detail-prompt", "x"), "usage", "more often"),
        (("--detail-strength", "0.5"), "usage", "requires --detail"),
        (("--detail", "face"), "missing-files", "detection_Resnet50_Final.pth"),
        (("--detail", "1,1,8,8:sampler=nothing"), None, "nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    civman: Civman, options: tuple[str, ...], code: str | None, words: str
) -> None:
    done = civman("render", *BASE, *options, "--dry-run", "--json")

    error = done.json["error"]
    assert words in error["message"]
    assert code in (None, error["code"])


@pytest.mark.usefixtures("stocked")
def test_a_plan_shows_the_passes(civman: Civman) -> None:
    shown = civman("render", *BASE, "--detail", "1,1,8,8", "--detail-strength", "0.3", "--dry-run")

    assert "detail     1,1,8,8 at strength 0.3, 2 steps, 64x64" in shown.out
    slots = civman("render", *BASE, "--detail", "1,1,8,8", "--slots", "2", "--dry-run", "--json")
    assert made(slots, "plan")[0]["recipe"].get("slots", 0) == 0
    assert "its regions are rendered again" in slots.err


@pytest.mark.parametrize("side", [0, 1, 2, 3, 4, 7, -1, -2, -3, -4])
def test_masks_grow_as_in_opencv(side: int) -> None:
    chance = random.Random(side)
    mask = np.zeros((17, 23), np.uint8)
    for _ in range(4):
        y, x = chance.randrange(17), chance.randrange(23)
        mask[y : y + chance.randrange(1, 9), x : x + chance.randrange(1, 9)] = 255

    assert (dilated(mask, side) == (grown(mask, side) if side else mask)).all()


def test_requests_are_parsed() -> None:
    asked = detail_from("C:\\masks\\a.png:strength=0.3,whole,x=-2,sampler=Euler a")
    assert (asked.region, asked.strength, asked.only_masked, asked.x_offset, asked.sampler) == (
        "C:\\masks\\a.png", 0.3, False, -2, "Euler a",
    )  # fmt: skip
    assert detail_from("face").region == "face"


def test_steps_of_all_regions_are_told_in_the_order_of_the_stages(library: Any, stock: Path) -> None:
    from civman.cli.job_progress import JobProgress, shares
    from civman.domain.events import Step
    from civman.domain.recipes.details import DetailRequest
    from civman.domain.recipes.enlargement import UpscaleRequest
    from civman.domain.recipes.recipe import RenderRequest

    request = RenderRequest(
        str(stock / "tiny-sd1.safetensors"), "a cat", width=64, height=64, steps=2, seed=7, count=3, batch_size=2,
        sampler="Euler", details=(DetailRequest("1,1,9,9"), DetailRequest("20,20,9,9", strength=1.0)),
        upscale=UpscaleRequest("lanczos", 2.0),
    )  # fmt: skip
    planned = library.plan(request)
    steps: list[Step] = []
    progress = JobProgress(shares([planned.recipe]), called="image")
    library.render(planned, on_event=lambda event: steps.append(event) if isinstance(event, Step) else None)

    keys = [(each.first, each.stage, each.step) for each in steps if each.stage != "upscale"]
    assert keys == sorted(set(keys)), "never back, or a server would count the images of another plan"
    assert {each.stage for each in steps} >= {"first", "redraw"}
    completed = []
    for number, each in enumerate(steps):
        progress.advance(each, number)
        completed.append(progress.completed)
    assert completed == sorted(completed)
    assert completed[-1] == 1
