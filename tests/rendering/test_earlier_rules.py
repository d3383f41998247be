# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Pictures that an earlier civman made are made again by the rules of then.

The records in fixtures/earlier_pictures.json were written by `civman render` of commit e56a966, whose SDE samplers had
noise of the opposite sign and whose DDIM, masks and second pass were not A1111's. The PNGs next to it were made by the
same commit on another processor, which differs in the last bit.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import Civman

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.domain.recipes.record import read_origin
from civman.pictures import image_text

FIXTURES = Path(__file__).parents[1] / "fixtures"
EARLIER: dict[str, Any] = json.loads((FIXTURES / "earlier_pictures.json").read_text(encoding="utf-8"))


@pytest.fixture
def there(stocked: Path, tmp_path: Path) -> Path:
    """A folder with the records and the pictures they start from; the library holds the checkpoint."""
    for name, data in EARLIER["inputs"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    for name, record in EARLIER["pictures"].items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        assert record["recipe"]["schema"] == 2
    return tmp_path


@pytest.mark.parametrize("name", EARLIER["pictures"])
def test_a_picture_of_the_earlier_rules_is_the_same(civman: Civman, there: Path, name: str) -> None:
    """On the processors where the records and the PNGs were made, to the bit; on others, to the last value or two."""
    inputs = [part for name in EARLIER["inputs"] for part in ("--picture", there / name)] if name == "inpaint" else []

    run = civman("replay", there / f"{name}.json", "--json", "--output", there / "again.png", *inputs)

    assert run.code in (0, 10), run.err
    (picture,) = run.json["replay"]["pictures"]
    expected, again = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (FIXTURES / f"earlier_{name}.png", there / "again.png")
    )
    known = {EARLIER["pictures"][name]["pixel_sha256"], hashlib.sha256(expected.astype("uint8").tobytes()).hexdigest()}
    assert picture["pixel_sha256"] in known or np.abs(again - expected).max() <= 2


@pytest.mark.parametrize("name", EARLIER["pictures"])
def test_its_recipe_keeps_its_digest_and_names_its_rules(name: str) -> None:
    text = json.dumps(EARLIER["pictures"][name])

    origin = read_origin(text)

    assert origin.recipe is not None
    assert origin.recipe.rules == 1
    assert origin.recipe.sha256 == EARLIER["pictures"][name]["recipe_sha256"]


def test_a_variation_keeps_the_rules_and_can_leave_them(civman: Civman, there: Path) -> None:
    def drawn(*changes: str) -> tuple[str, int]:
        options = [part for change in changes for part in ("--set", change)]
        run = civman("replay", there / "sde.json", *options, "--threads", "1", "--device", "cpu", "--json")
        assert run.code == 0, run.err
        (made,) = run.json["render"]
        recipe = read_origin(image_text.read(Path(made["path"])).record or "").recipe
        assert recipe is not None
        return made["pixel_sha256"], recipe.rules

    kept, left = drawn("seed=8"), drawn("seed=8", "rules=2")

    assert (kept[1], left[1]) == (1, 2)
    assert kept[0] != left[0]
