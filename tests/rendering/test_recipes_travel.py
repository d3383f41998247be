"""A recipe's digest survives every way it travels: key order, picture formats, a new process."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import EmbeddingUse, LoraUse, Recipe, RecipeFile
from civman.domain.recipes.record import FileName, Origin, Record, TypedPrompts, read_origin, stripped
from civman.errors import CivmanError, IntegrityError, UsageError
from civman.pictures import image_text

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
A, B = Sha256("a" * 64), Sha256("b" * 64)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: Sha256(raw.hex()))
words = st.text(max_size=60)
scales = st.floats(-4, 4)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A recipe with everything that may be odd in it, and a record of one of its pictures."""
    checkpoint, *others = draw(st.lists(digests, min_size=1, max_size=4, unique=True))
    files = tuple(
        RecipeFile(digest, draw(st.integers(0, 2**40)), draw(st.none() | st.just("urn:air:civitai:1@2")),
                   draw(st.none() | st.integers(1, 2**31)))
        for digest in sorted([checkpoint, *others])
    )  # fmt: skip
    recipe = Recipe(
        checkpoint=checkpoint, prompt=draw(words), negative_prompt=draw(words), sampler="Euler", schedule="Karras",
        steps=draw(st.integers(1, 99)), guidance_scale=draw(st.floats(0, 30)), width=64, height=64,
        seed=draw(st.integers(0, 2**62)), clip_skip=1, prediction="epsilon", is_zero_snr=False, precision="float32",
        count=draw(st.integers(1, 4)), loras=tuple(LoraUse(each, draw(scales), draw(scales)) for each in others[:2]),
        embeddings=tuple(EmbeddingUse(each, draw(words)) for each in others[2:]),
        files=draw(st.sampled_from([files, ()])),
    )  # fmt: skip
    return Record(
        recipe, recipe.seed + draw(st.integers(0, recipe.count - 1)), draw(digests),
        draw(st.dictionaries(words, words | st.integers(-(2**50), 2**50), max_size=3)),
        tuple(FileName(each, draw(words), draw(words)) for each in others), tuple(draw(st.lists(words, max_size=2))),
        draw(st.none() | digests), draw(st.none() | st.builds(TypedPrompts, words, words)),
    )  # fmt: skip


def shuffled(value: object, order: random.Random) -> object:
    """The same JSON with its keys in another order, at every depth."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@given(records(), st.randoms(use_true_random=False))
def test_records_read_back_in_any_order_of_keys(record: Record, order: random.Random) -> None:
    text = json.dumps(shuffled(json.loads(record.to_json()), order), indent=1)

    assert read_origin(text) == Origin.of(record)
    assert read_origin(text).record.recipe.sha256 == record.recipe.sha256  # type: ignore[union-attr]


@settings(deadline=None, max_examples=60)
@given(records(), st.sampled_from(["png", "jpeg", "webp"]))
def test_records_read_back_from_every_format(record: Record, kind: image_text.Format) -> None:
    data = image_text.write(PIXELS, record=record.to_json(), parameters="Steps: 1", format=kind)

    assert read_origin(image_text.read(data).record or "") == Origin.of(record)


def test_a_new_process_finds_the_same_digests() -> None:
    found: list[Record] = []

    @settings(max_examples=40, database=None, derandomize=True)
    @given(records())
    def collect(record: Record) -> None:
        found.append(record)

    collect()
    code = (
        "import json, sys; from civman.domain.recipes.record import read_origin\n"
        "print(json.dumps([read_origin(text).recipe.sha256 for text in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([each.to_json() for each in found]), capture_output=True,
        text=True, check=True, encoding="utf-8",
    )  # fmt: skip

    assert json.loads(done.stdout) == [each.recipe.sha256 for each in found]


PLAIN = Record(
    Recipe(checkpoint=A, prompt="a harbour", negative_prompt="", sampler="Euler", schedule="Normal", steps=4,
           guidance_scale=5.0, width=64, height=64, seed=7, clip_skip=1, prediction="epsilon", is_zero_snr=False,
           precision="float32", files=(RecipeFile(A, 10),)),
    7, B, {"torch": "2.13.0"},
)  # fmt: skip


def test_a_record_cut_anywhere_is_refused_in_words() -> None:
    text = PLAIN.to_json()

    for end in range(0, len(text) - 1, 7):
        with pytest.raises(UsageError) as caught:
            read_origin(text[:end])
        assert caught.value.code == "bad-recipe"
        assert caught.value.message.startswith("not a recipe")


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "a harbor"), ("seed", 6), ("guidance_scale", 5.5), ("loras", [{"sha256": A, "scale": 1.0,
     "text_scale": 1.0}])],
)  # fmt: skip
def test_an_edited_recipe_is_no_longer_the_one_whose_digest_stands_there(field: str, value: object) -> None:
    edited = json.loads(PLAIN.to_json())
    edited["recipe"][field] = value

    with pytest.raises(CivmanError) as caught:
        read_origin(json.dumps(edited))

    assert caught.value.code == "edited-recipe"
    assert isinstance(caught.value, IntegrityError)


def test_a_number_written_without_its_fraction_is_the_same_number() -> None:
    value = json.loads(PLAIN.to_json())
    value["recipe"]["guidance_scale"] = 5

    assert read_origin(json.dumps(value)) == Origin.of(PLAIN)


@pytest.mark.parametrize(
    "change",
    [{"pixel_sha256": "short"}, {"seed": "7"}, {"seed": 8}, {"environment": []}, {"environment": {"torch": None}},
     {"names": {}}, {"names": [1]}, {"typed": ["one"]}, {"parent": 1}, {"notes": "x"}, {"recipe": []}],
    ids=str,
)  # fmt: skip
def test_what_is_no_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        read_origin(json.dumps(json.loads(PLAIN.to_json()) | change))

    assert caught.value.code == "bad-recipe"


def test_an_entry_that_is_there_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        read_origin(PLAIN.to_json()[:-1] + ',"seed":7}')


def test_a_later_record_says_to_update() -> None:
    with pytest.raises(UsageError) as caught:
        read_origin(json.dumps(json.loads(PLAIN.to_json()) | {"civman_picture": 2}))

    assert caught.value.code == "newer-recipe"


def test_a_stripped_record_keeps_the_words_to_itself() -> None:
    text = stripped(PLAIN)

    assert "harbour" not in text
    assert read_origin(text) == Origin(PLAIN.recipe.sha256, pixel_sha256=B)


def test_bytes_that_are_no_text_are_refused_in_a_prompt() -> None:
    with pytest.raises(UsageError, match="invalid Unicode"):
        replace(PLAIN.recipe, prompt="a \udce9t")


def test_a_recipe_made_with_other_numbers_is_refused() -> None:
    value = json.loads(PLAIN.recipe.to_json())
    value["sampling"]["rho"] = 6.0

    with pytest.raises(UsageError, match="constants for noise levels"):
        Recipe.from_value(value)


def test_the_files_listed_are_those_that_are_named() -> None:
    with pytest.raises(UsageError, match="does not match the files"):
        replace(PLAIN.recipe, files=(RecipeFile(B, 1),))
