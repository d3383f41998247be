"""Scales that change over the steps: the extension's rules written again with numpy, and what is no scale."""

import itertools
import random
import re

import pytest

from civman.domain.adapters.scale_keyframes import are_keyframes, is_changing, read_scale, scale_at, step_reported
from civman.domain.scales import parse_scale_pair, parse_scaled
from civman.errors import UsageError
from civman.planning.redraw_prompts import read_tags
from civman.prompts import emphasis

np = pytest.importorskip("numpy")


def weight_in_the_extension(text: str, step: int, steps: int) -> float:
    """The weight that sd-webui-loractl computes while A1111 reports `step`; its division by zero is taken for 0."""
    pairs = [[float(number) for number in re.split("[@~]", part)] for part in re.split("[,;]", text)]
    if len(pairs[0]) == 1:
        return pairs[0][0]
    pairs = sorted(([*pair, 1.0][:2] for pair in pairs), key=lambda pair: pair[1])
    scales, places = zip(*pairs, strict=True)
    position = (step / (steps - 2) if steps > 2 else 0.0) if places[-1] <= 1 else step
    return float(np.interp(position, places, scales))


def typed(pick: random.Random) -> str:
    top = pick.choice((1.0, 1.0, 12.0))
    frames = [
        f"{pick.choice((0, 0.5, 1, -1, 0.75, 2))}{pick.choice('@~')}{round(pick.uniform(0, top), 2):g}"
        for _ in range(pick.randrange(1, 6))
    ]
    return pick.choice(",;").join(frames) + pick.choice(("", "", ",0.25"))


@pytest.mark.parametrize("seed", range(60))
def test_keyframes_give_the_extension_s_weight_in_every_step(seed: int) -> None:
    text = typed(random.Random(seed))
    first, keyframes = read_scale(text)
    assert are_keyframes(keyframes) or not keyframes
    assert read_scale(keyframes) == (first, keyframes) if keyframes else True
    for steps in (1, 2, 3, 7, 20):
        for step in range(steps):
            mine = scale_at(keyframes, step, steps) if keyframes else first
            assert mine == pytest.approx(weight_in_the_extension(text, step, steps), abs=1e-12), (text, step, steps)
    assert first == weight_in_the_extension(text, 0, 0)


def test_a_range_is_0_outside() -> None:
    steps = 12
    for text, start, end in (
        ("0.8@0.2-0.6", 0.2, 0.6),
        ("0.8@0-0.5", 0, 0.5),
        ("0.8@0.5-", 0.5, 2),
        ("1@0.3-1", 0.3, 2),
    ):
        scale = float(text.partition("@")[0])
        _, keyframes = read_scale(text)
        for step in range(steps - 1):
            inside = start <= step / (steps - 2) < end
            assert scale_at(keyframes, step, steps) == (scale if inside else 0), (text, step)
    _, by_steps = read_scale("0.8@3-6")
    assert [scale_at(by_steps, step, 20) for step in range(8)] == [0, 0, 0, 0.8, 0.8, 0.8, 0, 0]


@pytest.mark.parametrize("calls_per_step", [1, 2])
def test_a_step_is_reported_after_its_first_evaluation(calls_per_step: int) -> None:
    """A1111's samplers call back after the first evaluation of a step; until then the last reported step counts."""
    steps = 9
    reported, seen = 0, []
    for step in range(steps):
        for call in range(calls_per_step if step < steps - 1 else 1):  # the last step of Heun has one evaluation
            seen.append(reported)
            if call == 0:
                reported = step
    assert [step_reported(call, len(seen), steps) for call in range(len(seen))] == seen


@pytest.mark.parametrize(
    "text", ["", "x", "0@", "@1", "0@0,,1@1", "0@-1", "101@0,1@1", "0@0@1", "nan@0", "0@inf", "0.5@0.6-0.2", "1@20000"]
)
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_scale(text)
    assert refused.value.code == "bad-scale"


def test_the_command_line_tells_keyframes_from_versions() -> None:
    for text, ref, unet, encoder, keyframes in (
        ("ink:0@0,1@0.5", "ink", 0, 0, "0@0,1@0.5"), ("ink:1@0,0@1:0.3", "ink", 1, 0.3, "1@0,0@1"),
        ("678@910:0.5", "678@910", 0.5, 0.5, ""), ("678@910:1@0,0.5@1", "678@910", 1, 1, "1@0,0.5@1"),
        ("urn:air:sdxl:lora:civitai:123@456", "urn:air:sdxl:lora:civitai:123@456", None, None, ""),
        ("ink:0.8@0.2-0.6", "ink", 0, 0, "0@0,0@0.2,0.8@0.2,0.8@0.6,0@0.6"), ("ink:0.5@0.3", "ink", 0.5, 0.5, ""),
    ):  # fmt: skip
        found = parse_scaled(text)
        assert (found.ref, found.unet, found.text_encoder, found.keyframes) == (ref, unet, encoder, keyframes), text
    with pytest.raises(UsageError, match="text encoders cannot change"):
        parse_scaled("ink:0.5:0@0,1@1")
    pair = parse_scale_pair("0@0,1@1:0.5")
    assert (pair.unet, pair.text_encoder, pair.keyframes, pair.acts) == (0, 0.5, "0@0,1@1", True)


@pytest.mark.parametrize("kind", ["lora", "loractl"])
def test_tags_follow_the_extension(kind: str) -> None:
    cases = {
        "0.5:hr=1.0": (0.5, 0.5, "", "1@0"),
        "0@0,1@1:hr=1@0,0@1": (0, 0, "0@0,1@1", "1@0,0@1"),
        "1:0@5,1@6": (1, 0, "0@5,1@6", ""),
        "te=1:unet=0@0,1@1": (1, 0, "0@0,1@1", ""),
        "te=0.5@0,1@1:unet=1": (0.5, 1, "", ""),
        "0@0,1@1:hrunet=0.5:hrte=0.2": (0, 0, "0@0,1@1", "0.5@0"),
    }
    for words, (text, unet, keyframes, second) in cases.items():
        tag = f"<{kind}:ink:{words}>"
        [lora] = emphasis.parse(f"a cat {tag}").loras
        assert (lora.te_scale, lora.unet_scale) == (text, unet), tag
        assert [read_scale(each)[1] or f"{read_scale(each)[0]:g}@0" if each else "" for each in
                (lora.keyframes, lora.hires_keyframes)] == [keyframes, second], tag  # fmt: skip
        [read] = read_tags(tag, (1, 10)).loras
        assert (read.text, read.unet, read.keyframes, read.hires_keyframes) == (text, unet, keyframes, second), tag
    assert "depends on earlier images" in read_tags("<lora:ink:0@0,1@1>", (1, 10)).reasons[0].words
    assert not read_tags("<lora:ink:te=1:unet=0@0,1@1>", (1, 10)).reasons
    assert "keyframes" in read_tags("<lora:ink:0@x>", (1, 10)).reasons[0].words
    with pytest.raises(UsageError) as refused:
        emphasis.parse("a <lora:ink:0@x>")
    assert refused.value.code == "prompt-syntax"
    [with_blocks] = emphasis.parse("<lora:ink:0@0,1@1:lbw=IND>").loras
    assert with_blocks.blocks.startswith("1,0,0,0")
    assert with_blocks.keyframes == "0@0,1@1"


def test_plain_numbers_are_not_keyframes() -> None:
    assert not any(map(is_changing, ("0.5", "-1", "1,2,3")))
    assert read_scale("0.5") == (0.5, "")
    assert all(a != b for a, b in itertools.pairwise(scale_at("0@0,1@1", step, 9) for step in range(8)))
