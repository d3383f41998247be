"""ComfyUI's graphs, built for images that civman drew: drawn again from the graph alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_graphs import built, from_image
from running import Civman

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.library import Library
from civman.pictures import image_text

CASES = [(case, kind) for case in range(30) for kind in ("sd1", "sdxl")]
QUICK = [(2, "sd1"), (3, "sd1"), (5, "sdxl"), (9, "sdxl")]


def value(civman: Civman, *arguments: object) -> Any:
    ran = civman(*arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def drawn(civman: Civman, folder: Path, case: int, kind: str) -> tuple[Any, Any]:
    """The pixels of civman's own image, and of the one that is drawn from the graph; both are rounded down."""
    made = built(case, kind)
    prompt, *options = made.options
    plan = value(civman, "render", f"tiny-{kind}", prompt, *options, "--trigger", "off", "--device", "cpu", "--dry-run")
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(plan["plan"][0]["recipe"] | {"rounding": "down"}))
    value(civman, "replay", recipe, "-o", folder / "mine.png", "--device", "cpu")
    mine = image_text.pixels(folder / "mine.png")
    graph = folder / "graph.json"
    if case % 2:
        graph = folder / "ComfyUI_00001_.png"
        save_as_comfyui(graph, mine, made.nodes)
    else:
        graph.write_text(json.dumps(made.nodes))
    again = value(civman, "replay", graph, "-o", folder / "theirs.png", "--device", "cpu")
    if case % 2:
        assert again["render"][0]["compared"]["verdict"] == "the same picture", again
    return mine, image_text.pixels(folder / "theirs.png")


def save_as_comfyui(path: Path, pixels: Any, nodes: Any) -> None:
    """A PNG as ComfyUI saves it. One pixel is changed, because civman knows its own images by their pixels."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    info = PngInfo()
    info.add_text("prompt", json.dumps(nodes))
    info.add_text("workflow", json.dumps({"nodes": [], "links": []}))
    Image.fromarray(changed).save(path, pnginfo=info)


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("case", "kind"), QUICK)
def test_an_image_is_drawn_again_identically_from_its_graph(
    civman: Civman, tmp_path: Path, case: int, kind: str
) -> None:
    mine, theirs = drawn(civman, tmp_path, case, kind)

    assert (mine == theirs).all()


@pytest.mark.long
@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(("case", "kind"), CASES)
def test_sixty_images_are_drawn_again_identically_from_their_graphs(
    civman: Civman, tmp_path: Path, case: int, kind: str
) -> None:
    mine, theirs = drawn(civman, tmp_path, case, kind)

    assert (mine == theirs).all()


@pytest.mark.usefixtures("stocked")
def test_graphs_ask_for_the_recipes_of_their_options(civman: Civman, root: Path) -> None:
    """Whatever determines the pixels of six of the images, without drawing them."""
    from civman.planning.redraw import redraw

    with Library.open(root) as library:
        for case, kind in CASES[::11]:
            made = built(case, kind)
            prompt, *options = made.options
            plan = value(civman, "render", f"tiny-{kind}", prompt, *options, "--trigger", "off", "--device", "cpu",
                         "--dry-run")  # fmt: skip
            wanted = plan["plan"][0]["recipe"]
            found = redraw({"foreign": json.dumps(made.nodes)})
            assert found.drawable == "differs", (case, kind, found.reasons)
            settings = library.pictures.plan_settings(json.dumps(made.nodes))
            got = json.loads(settings.recipe.to_json()) | {"rounding": "nearest", "precision": "float32"}
            assert got == wanted | {"precision": "float32"}, (case, kind, made.nodes)


def written(folder: Path) -> None:
    """An image with transparency and a mask, of sizes that are no multiples of 8."""
    from PIL import Image

    numbers = np.random.default_rng(2)
    small = numbers.integers(0, 256, (8, 10, 4), dtype=np.uint8)
    Image.fromarray(small, "RGBA").resize((75, 61), Image.Resampling.BILINEAR).save(folder / "source.png")
    Image.fromarray(small[..., :3]).resize((90, 50), Image.Resampling.NEAREST).save(folder / "mask.png")


def drawn_from_image(civman: Civman, folder: Path, case: int, kind: str) -> tuple[Any, Any]:
    """The pixels of civman's own image, and of the one that is drawn from the graph and its images."""
    made = from_image(case, kind)
    prompt, *options = (folder / each if each.endswith(".png") else each for each in made.options)
    plan = value(civman, "render", f"tiny-{kind}", prompt, *options, "--trigger", "off", "--device", "cpu", "--dry-run")
    recipe, graph = folder / "recipe.json", folder / "graph.json"
    recipe.write_text(json.dumps(plan["plan"][0]["recipe"] | {"rounding": "down"}))
    images = [part for name in ("source.png", "mask.png") for part in ("--picture", folder / name)]
    value(civman, "replay", recipe, *images, "-o", folder / "mine.png", "--device", "cpu")
    graph.write_text(json.dumps(made.nodes))
    value(civman, "replay", graph, *images, "-o", folder / "theirs.png", "--device", "cpu")
    return image_text.pixels(folder / "mine.png"), image_text.pixels(folder / "theirs.png")


IMAGES = [(case, kind) for case in range(12) for kind in ("sd1", "sdxl")]


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("case", "kind"), [pytest.param(*each, marks=() if each in ((3, "sd1"), (6, "sdxl")) else pytest.mark.long)
                       for each in IMAGES],
)  # fmt: skip
def test_an_image_is_drawn_again_identically_from_its_graph_and_the_images_it_loads(
    civman: Civman, tmp_path: Path, case: int, kind: str
) -> None:
    written(tmp_path)

    mine, theirs = drawn_from_image(civman, tmp_path, case, kind)

    assert (mine == theirs).all()


@pytest.mark.usefixtures("stocked")
def test_images_are_asked_for_by_their_nodes(civman: Civman, tmp_path: Path) -> None:
    written(tmp_path)
    made, graph = from_image(2, "sd1"), tmp_path / "graph.json"
    ids = {
        each["inputs"]["image"]: key for key, each in made.nodes.items() if each["class_type"].startswith("LoadImage")
    }
    graph.write_text(json.dumps(made.nodes))
    other = tmp_path / "renamed.png"
    other.write_bytes((tmp_path / "mask.png").read_bytes())

    def asked(*given: object) -> Any:
        words = [part for each in given for part in ("--picture", each)]
        return civman("replay", graph, *words, "-o", tmp_path / "out.png", "--device", "cpu", "--json")

    without, half = asked(), asked(tmp_path / "source.png")
    whole = asked(tmp_path / "source.png", f"{ids['mask.png']}={other}")
    named = asked(f"source.png={tmp_path / 'source.png'}", f"mask.png={other}")

    assert without.json["error"]["code"] == half.json["error"]["code"] == "not-drawable"
    assert f"--picture {ids['mask.png']}=mask.png" in half.json["error"]["message"]
    assert whole.code == named.code == 0, whole.err
    assert whole.json["render"][0]["pixel_sha256"] == named.json["render"][0]["pixel_sha256"]


@pytest.mark.usefixtures("stocked")
def test_what_comfyui_s_rules_do_not_allow_is_refused_before_drawing(civman: Civman, tmp_path: Path) -> None:
    import tiny_models

    written(tmp_path)
    tiny_models.write(tmp_path / "inpainting.safetensors", "sd1-inpaint")
    civman("import", tmp_path / "inpainting.safetensors")
    rules = ("--init", tmp_path / "source.png", "--resize-mode", "comfyui crop", "--sampling-rules", "comfyui")
    for checkpoint, options, code in (
        ("inpainting", (), "odd-input"), ("tiny-sd1", ("--size", "64x64"), "bad-size"),
        ("tiny-sd1", ("--sampling-rules", "a1111"), "bad-recipe"), ("tiny-sd1", ("--grow-mask", "6"), "no-start-image"),
        ("tiny-sd1", ("--mask", tmp_path / "mask.png", "--mask-channel", "hue"), "bad-value"),
    ):  # fmt: skip
        ran = civman("render", checkpoint, "a cat", *rules, *options, "--device", "cpu", "--dry-run", "--json")
        assert ran.json["error"]["code"] == code, ran.out
