# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Options of guidance and attention: from the command line into the recipe, the image's text, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from rendering_stock import QUICK

from civman.pictures import image_text, infotext

HIRES = ("--hires", "1.5", "--hires-steps", "2")
CASES: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
    (("--token-merging", "0.5"), {"Token merging ratio": "0.5"}),
    (("--hires-token-merging", "0.4", *HIRES), {"Token merging ratio hr": "0.4"}),
    (("--thresholding", "2,percentile=90,cfg_mode=Power Up,cfg_minimum=1,power=2", "--cfg", "9"),
     {"Mimic scale": "2", "Threshold percentile": "90", "CFG mode": "Power Up", "CFG scale minimum": "1",
      "Scheduler value": "2", "Dynamic thresholding enabled": "True"}),
    (("--ngms", "20"), {"NGMS": "20"}),
    (("--ngms", "20", "--ngms-all"), {"NGMS": "20", "NGMS all steps": "True"}),
    (("--skip-early-cfg", "0.3"), {"Skip Early CFG": "0.3"}),
    (("--drop-penultimate",), {"Discard penultimate sigma": "True"}),
    (("--emphasis", "no norm"), {"Emphasis": "No norm"}),
    (("--fit-negative",), {"Pad conds v0": "True"}),
    (("--half-levels",), {"Downcast alphas_cumprod": "True"}),
)  # fmt: skip


def value(civman: Civman, *arguments: object) -> Any:
    ran = civman(*arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_option_changes_the_image_and_is_written_into_it(civman: Civman, tmp_path: Path, case: int) -> None:
    options, written = CASES[case]
    basis = ("render", "tiny-sd1", "a (cat:1.4)", "--negative", "bad " * 80, *QUICK[:2], "--steps", "4", *QUICK[4:])
    second = HIRES if "--hires" in options else ()

    value(civman, *basis, *second, "-o", tmp_path / "plain.png")
    value(civman, *basis, *options, "-o", tmp_path / "mine.png")

    plain, mine = (image_text.pixels(tmp_path / name) for name in ("plain.png", "mine.png"))
    assert (plain != mine).any()
    details = infotext.read(image_text.read(tmp_path / "mine.png").entries["parameters"]).details
    assert written.items() <= dict(details).items()
    again = value(civman, "replay", tmp_path / "mine.png", "-o", tmp_path / "again.png")
    assert (image_text.pixels(tmp_path / "again.png") == mine).all(), again


@pytest.mark.usefixtures("stocked")
def test_sdxl_has_no_tokens_to_merge(civman: Civman) -> None:
    ran = civman("render", "tiny-sdxl", "a cat", *QUICK, "--token-merging", "0.5", "--dry-run", "--json")

    assert ran.code == 0
    assert "token merging has no effect" in ran.err
    assert json.loads(ran.out)["plan"][0]["recipe"].get("token_merging", 0) == 0


@pytest.mark.usefixtures("stocked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--token-merging", "0.95"), "merged tokens"),
        (("--thresholding", "7,mimic_mode=Up"), "not a mode"),
        (("--thresholding", "7,percentile=101"), "percentile"),
        (("--thresholding", "7", "--cfg-rescale", "0.5"), "cannot be combined"),
        (("--ngms", "-1"), "noise level"),
        (("--skip-early-cfg", "2"), "fraction"),
        (("--ngms", "1", "--sampler", "Euler CFG++"), "negative prompt"),
        (("--hires-token-merging", "0.5"), "requires a second pass"),
    ],
)
def test_what_is_out_of_range_is_refused(civman: Civman, options: tuple[str, ...], words: str) -> None:
    ran = civman("render", "tiny-sd1", "a cat", *QUICK, *options)

    assert ran.code != 0
    assert words in ran.err
