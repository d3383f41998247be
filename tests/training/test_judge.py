import random
from dataclasses import replace

import numpy as np
import pytest

from training.judge import STRICT_IOU, mark, read
from training.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIDE,
    UNNAMED_SHAPE,
    Scene,
    Texture,
    draw,
    every_scene,
    held_out_scenes,
    random_caption,
    sentence,
    tags,
    trained_scenes,
    with_place,
)


def some_scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [with_place(rng.choice(every_scene()), rng) for _ in range(count)]


def test_every_drawn_picture_is_read_back_as_it_was_meant() -> None:
    rng = random.Random(1)
    scenes = some_scenes(300, seed=2)

    readings = [read(draw(scene, rng)) for scene in scenes]

    marks = [mark(scene, seen) for scene, seen in zip(scenes, readings, strict=True)]
    assert all(m.has_all and m.place for m in marks)
    assert {seen.texture for seen in readings} == {Texture.FILL}


@pytest.mark.parametrize("texture", list(Texture))
def test_textures_are_told_apart_at_almost_no_error(texture: Texture) -> None:
    rng = random.Random(3)
    scenes = [replace(scene, texture=texture) for scene in some_scenes(200, seed=4)]

    readings = [read(draw(scene, rng)) for scene in scenes]

    marks = [mark(scene, seen) for scene, seen in zip(scenes, readings, strict=True)]
    assert sum(seen.texture is texture for seen in readings) >= 198
    assert sum(m.has_all for m in marks) >= 195


def test_light_tells_a_black_ground_from_every_other() -> None:
    rng = random.Random(5)

    light = {
        ground: read(draw(Scene("large", "red", "circle", ground), rng)).light for ground in set(COLOURS) - {"red"}
    }

    assert light.pop("black") < 0.15
    assert min(light.values()) > 0.3


def test_the_unnamed_shape_is_read_as_itself() -> None:
    picture = draw(Scene("large", "red", UNNAMED_SHAPE, "blue"), random.Random(7))

    assert read(picture).shape == UNNAMED_SHAPE


def test_an_even_picture_shows_a_ground_and_nothing_else() -> None:
    picture = np.broadcast_to(np.array(COLOURS["green"], np.float32) / 255, (SIDE, SIDE, 3))

    seen = read(picture)

    assert (seen.ground, seen.colour, seen.shape, seen.kind) == ("green", None, None, None)


def test_swapped_colours_are_wrong() -> None:
    asked = Scene("large", "red", "circle", "blue")
    picture = draw(replace(asked, colour="blue", ground="red"), random.Random(8))

    marks = mark(asked, read(picture))

    assert not marks.ground
    assert not marks.colour
    assert marks.shape
    assert marks.kind


def test_a_shape_with_a_bitten_corner_falls_under_the_strict_gate() -> None:
    picture = draw(Scene("large", "white", "square", "black"), random.Random(9)).copy()
    rows, columns = np.nonzero(picture[:, :, 0] > 0.5)
    middle_y, middle_x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    picture[: middle_y + 4, : middle_x + 4] = picture[0, 0]

    seen = read(picture)

    assert seen.iou < STRICT_IOU


def test_held_out_scenes_share_no_triple_with_trained_ones() -> None:
    trained = {(s.colour, s.shape, s.ground) for s in trained_scenes()}
    held_out = {(s.colour, s.shape, s.ground) for s in held_out_scenes()}

    assert not trained & held_out
    assert len(held_out) >= 15
    assert {s.shape for s in held_out_scenes()} == set(SHAPES)
    assert len({s.ground for s in held_out_scenes()}) >= 7


def test_captions_say_an_before_a_vowel() -> None:
    assert sentence(Scene("small", "red", "circle", "orange", "top left")) == (
        "a small red circle at the top left on an orange background"
    )
    assert (
        sentence(Scene("large", "orange", "square", "red"), says_size=False) == "an orange square on a red background"
    )
    assert tags(Scene("two", "blue", "square", "white")) == "two blue squares, white background"


def test_no_caption_names_the_unnamed_shape() -> None:
    rng = random.Random(10)
    scenes = [replace(scene, shape=UNNAMED_SHAPE) for scene in some_scenes(200, seed=11)]

    captions = [random_caption(scene, rng, noun="shape") for scene in scenes]

    assert not [text for text in captions if UNNAMED_SHAPE in text]


def test_a_named_place_is_where_the_shape_is_drawn() -> None:
    rng = random.Random(12)

    seen = {place: read(draw(Scene("small", "red", "circle", "white", place), rng)).place for place in PLACES}

    assert seen == {place: place for place in PLACES}
