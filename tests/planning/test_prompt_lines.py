"""Files of prompts with settings, as A1111's script reads them."""

from pathlib import Path

import pytest

from civman.domain.recipes.render_request import RenderRequest
from civman.errors import UsageError
from civman.planning.prompt_lines import prompt_line, read_prompt_file

BASE = RenderRequest("model", negative_prompt="blurry", steps=20)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a boat, at dawn", {"prompt": "a boat, at dawn", "negative_prompt": "blurry", "steps": 20}),
        ('--prompt "a boat"', {"prompt": "a boat", "negative_prompt": "blurry"}),
        ("--prompt a boat at dawn --steps 30", {"prompt": "a boat at dawn", "steps": 30}),
        ("--prompt a --negative_prompt b c --cfg_scale 5.5", {"negative_prompt": "b c", "guidance_scale": 5.5}),
        ("--prompt a --width 640 --height 832 --seed 7", {"width": 640, "height": 832, "seed": 7}),
        ("--prompt a --size 640x832", {"width": 640, "height": 832}),
        ("--prompt a --seed -1", {"seed": None}),
        ('--prompt a --sampler_name "DPM++ 2M Karras" --schedule Karras', {"sampler": "DPM++ 2M Karras"}),
        ("--prompt a --sampler_name Euler a", {"sampler": "Euler a"}),
        ("--prompt a --batch_size 2 --n_iter 3", {"batch_size": 2, "count": 6}),
        ("--prompt a --batch_size 2", {"batch_size": 2, "count": 2}),
        ("--prompt a --n_iter 3", {"batch_size": None, "count": 3}),
        ("--prompt a --subseed 5 --subseed_strength 0.2", {"variation_seed": 5, "variation_strength": 0.2}),
        ("--prompt a --subseed 5 --subseed_strength 0", {"variation_seed": None, "variation_strength": None}),
        ("--prompt a --seed_resize_from_w 512 --seed_resize_from_h 768", {"seed_resize": "512x768"}),
        ("--prompt a --seed_resize_from_w -1 --seed_resize_from_h -1", {"seed_resize": None}),
        ("--prompt a --sd_model 4384@128713", {"checkpoint": "4384@128713"}),
        ("--prompt a --clip-skip 2", {"clip_skip": 2}),
        ("--negative b --prompt a", {"prompt": "a", "negative_prompt": "b"}),
    ],
)
def test_a_line_changes_the_request_as_in_a1111(line: str, expected: dict[str, object]) -> None:
    found = prompt_line(line, BASE).request

    assert {name: getattr(found, name) for name in expected} == expected


def test_a_line_may_name_styles() -> None:
    assert prompt_line("--prompt a --styles ink, night", BASE).styles == ("ink", "night")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--steps 30", "has no prompt"),
        ("a boat --steps 30", "there is text before the first option"),
        ("--prompt a --steps many", "`--steps many` is not an integer"),
        ("--prompt a --steps", "`--steps` has no value"),
        ("--prompt a --cfg_scale", "`--cfg_scale` has no value"),
        ("--prompt a --size big", "`--size big` is not a size"),
        ("--prompt a --restore_faces true", "civman does not support the option `--restore_faces`"),
        ("--prompt a --outpath_samples x", "civman does not support the option `--outpath_samples`"),
        ('--prompt "a', "a quotation mark is not closed"),
        ("-- a", "civman does not support the option `--`"),
    ],
)
def test_a_line_that_cannot_be_followed_is_refused_with_its_number(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "prompts.txt").write_text(f"# comment\n\na cat\n{line}\n")

    with pytest.raises(UsageError) as error:
        read_prompt_file(tmp_path / "prompts.txt", BASE)
    assert error.value.code == "unreadable-prompts"
    assert says in error.value.message
    assert "line 4 of" in error.value.message
    assert error.value.hint
