"""`show --pictures`: the example images of a version as a contact sheet, blurred by their rating."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from running import Civman

from civman.cli.example_pictures import rating_of
from civman.cli.picture_preview import half_blocks
from civman.demo.demo_catalog import DemoImage
from civman.demo.server import CivitaiServer

SHAPES = 91001


@pytest.fixture
def rated(online: CivitaiServer) -> CivitaiServer:
    """The demo's site, on which the second example image of the checkpoint is rated R and the third is unrated."""
    model = next(each for each in online.catalogue if each.id == SHAPES)
    version = model.versions[0]
    levels = (1, 4, 0, 2)
    images: tuple[DemoImage, ...] = tuple(
        replace(image, level=level) for image, level in zip(version.images, levels, strict=False)
    )
    online.catalogue.add(replace(model, versions=(replace(version, images=images), *model.versions[1:])))
    return online


@pytest.mark.usefixtures("rated")
def test_the_sheet_is_saved_and_what_is_rated_above_pg13_is_blurred(civman: Civman, tmp_path: Path) -> None:
    done = civman("show", SHAPES, "--pictures", "--output", tmp_path / "sheet.png", "--json")
    clear = civman("show", SHAPES, "--pictures", "--unblurred", "--output", tmp_path / "clear.png", "--json")

    assert (done.code, clear.code) == (0, 0), done.err + clear.err
    told = done.json["show"]
    assert [(each["rating"], each["is_blurred"]) for each in told["examples"]] == [
        ("PG", False), ("R, blurred", True), ("unrated, blurred", True), ("PG-13", False),
    ]  # fmt: skip
    assert not any(each["is_blurred"] for each in clear.json["show"]["examples"])
    assert told["versions"], "everything else is told as well"
    blurred, sharp = (
        np.asarray(Image.open(tmp_path / name).convert("L")).astype(int) for name in ("sheet.png", "clear.png")
    )
    assert blurred.shape == sharp.shape
    steps = [np.abs(np.diff(each[60:180], axis=1)) for each in (blurred, sharp)]  # without the labels above
    cells = np.array_split(steps[0], 4, axis=1), np.array_split(steps[1], 4, axis=1)
    shares = [float(one.mean() / other.mean()) for one, other in zip(*cells, strict=True)]
    assert shares[0] == pytest.approx(1, abs=0.05)
    assert shares[1] < 0.8


@pytest.mark.usefixtures("rated")
def test_without_a_terminal_or_a_file_nothing_is_guessed(civman: Civman) -> None:
    for options, word in (
        (("--pictures",), "--output"),
        (("--unblurred",), "--pictures"),
        (("-o", "a.png"), "--pictures"),
    ):
        run = civman("show", SHAPES, *options)
        assert run.code == 2
        assert word in run.err


@pytest.mark.parametrize(
    ("level", "words"), [(0, "unrated"), (1, "PG"), (3, "PG-13"), (4, "R"), (31, "XXX"), (33, "blocked")]
)
def test_the_highest_rating_counts(level: int, words: str) -> None:
    assert rating_of(level) == words


def test_half_blocks_have_two_pixels_in_each_character() -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.paste((200, 100, 50), (0, 1, 4, 2))
    data = io.BytesIO()
    image.save(data, "PNG")
    stream = io.StringIO()

    half_blocks(Console(file=stream, width=4), data.getvalue())

    first, second, rest = stream.getvalue().split("\n")
    assert first == "\x1b[38;2;10;20;30;48;2;200;100;50m▀" * 4 + "\x1b[0m"
    assert second == "\x1b[38;2;10;20;30;48;2;10;20;30m▀" * 4 + "\x1b[0m"
    assert rest == ""
