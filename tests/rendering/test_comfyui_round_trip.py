"""ComfyUI's graphs, built for images that civman drew: drawn again from the graph alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_graphs import built
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
