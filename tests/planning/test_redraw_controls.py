"""ControlNet's units in the settings of other programs, in every form that A1111's extension and CivitAI gave them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_redraw import PLAIN, read

from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.reference import ReferenceRequest
from civman.pictures import infotext
from civman.pictures.site_settings import Entries
from civman.planning.redraw import redraw
from civman.planning.redraw_controls import controls_in
from civman.planning.redraw_tiles import SourceImage

CONTROL = SourceImage(Path("control.png"), Sha256("a" * 64), (64, 64))
BOTH = replace(CONTROL, others=(replace(CONTROL, path=Path("second.png")),))
FULL = {
    "module": "canny", "model": "control_v11p_sd15_canny [d14c016b]", "weight": 0.8, "resize_mode": "Resize and Fill",
    "processor_res": 512, "threshold_a": 50.0, "threshold_b": 150.0, "guidance_start": 0.1, "guidance_end": 0.9,
    "pixel_perfect": False, "control_mode": "ControlNet is more important",
}  # fmt: skip
WANTED = ControlRequest(
    "control.png", "control_v11p_sd15_canny", 0.8, 0.1, 0.9, "control", "resize and pad", "canny:50:150"
)


def serialized(unit: dict[str, Any]) -> str:
    """The extension's own rule for a unit in the settings, with A1111's quotes around a value with commas."""
    text = ", ".join(
        f"{' '.join(word.capitalize() for word in key.split('_'))}: {value}" for key, value in unit.items()
    )
    return json.dumps(text)


def of_2023(unit: dict[str, Any]) -> str:
    """The same unit as the extension wrote it until 2024."""
    return json.dumps(
        f"preprocessor: {unit['module']}, model: {unit['model']}, weight: {unit['weight']}, starting/ending: "
        f"({unit['guidance_start']}, {unit['guidance_end']}), resize mode: {unit['resize_mode']}, pixel perfect: "
        f"{unit['pixel_perfect']}, control mode: {unit['control_mode']}, preprocessor params: "
        f"({unit['processor_res']}, {unit['threshold_a']}, {unit['threshold_b']})"
    )


def torn(text: str) -> dict[str, str]:
    """A quoted entry as CivitAI's older reader tears it apart: at commas outside parentheses."""
    parts = text.replace("(", "\0").replace(")", "\1")
    pieces, depth, word = [], 0, ""
    for letter in parts:
        depth += (letter == "\0") - (letter == "\1")
        if letter == "," and not depth:
            pieces.append(word)
            word = ""
        else:
            word += letter
    found = {}
    for piece in [*pieces, word]:
        key, _, value = piece.replace("\0", "(").replace("\1", ")").partition(": ")
        found[key.strip()] = value.strip()
    return found


FORMS: dict[str, dict[str, Any]] = {
    "today": {"ControlNet 0": json.loads(serialized(FULL))},
    "today, as CivitAI's object": {
        "ControlNet 0": dict(each.split(": ", 1) for each in json.loads(serialized(FULL)).split(", "))
    },
    "today, torn": torn(serialized(FULL)),
    "2023": {"ControlNet 0": json.loads(of_2023(FULL))},
    "2023, torn": torn(of_2023(FULL)),
    "early 2023": {
        "ControlNet 0 Enabled": "True", "ControlNet 0 Preprocessor": "canny", "ControlNet 0 Model": FULL["model"],
        "ControlNet 0 Weight": "0.8", "ControlNet 0 Starting Step": "0.1", "ControlNet 0 Ending Step": "0.9",
        "ControlNet 0 Resize Mode": "Resize and Fill", "ControlNet 0 Pixel Perfect": "False",
        "ControlNet 0 Control Mode": "ControlNet is more important",
        "ControlNet 0 Preprocessor Parameters": '"(512, 50, 150)"',
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_unit_is_read_in_every_form(form: str) -> None:
    found = controls_in(Entries(FORMS[form]), CONTROL, {})

    assert found.requests == (WANTED,)
    assert [(each.role, each.name, each.hash) for each in found.files] == [
        ("controlnet", "control_v11p_sd15_canny", "d14c016b")
    ]
    assert all(reason.verdict == "differs" for reason in found.reasons)


def test_the_first_form_has_the_extensions_defaults_and_leaves_out_what_is_off() -> None:
    entries = {
        "ControlNet-0 Enabled": "True", "ControlNet-0 Module": "none", "ControlNet-0 Model": "sketch(ab12cd34)",
        "ControlNet-0 Weight": "0.7", "ControlNet-0 Guidance Start": "0", "ControlNet-0 Guidance End": "0.5",
        "ControlNet-1 Enabled": "False", "ControlNet-1 Model": "other", "ControlNet-2 Enabled": "True",
        "ControlNet-2 Module": "depth", "ControlNet-2 Model": "depth [aabbccdd]", "ControlNet-2 Weight": "1",
    }  # fmt: skip

    found = controls_in(Entries(entries), BOTH, {})

    assert found.requests == (
        ControlRequest("control.png", "sketch(ab12cd34)", 0.7, 0.0, 0.5, "balanced", "crop and resize", "none"),
        ControlRequest("second.png", "depth", 1.0, 0.0, 1.0, "balanced", "crop and resize", "none"),
    )
    assert any("the ControlNet module `depth`" in reason.words for reason in found.reasons)


def test_a_picture_is_asked_for_each_unit_and_taken_in_order() -> None:
    entries = {f"ControlNet {number}": json.loads(serialized(FULL)) for number in (0, 1)}

    none = read(**entries)
    one = redraw({"meta": _meta(**entries), "source": CONTROL})
    two = redraw({"meta": _meta(**entries), "source": BOTH})

    assert none["drawable"] == "needs-input"
    assert any("pass it with `civman replay IMAGE --picture CONTROL`" in reason for reason in none["reasons"])
    assert one.drawable == "needs-input"
    assert two.drawable == "differs"
    assert [each.picture for each in two.controls] == ["control.png", "second.png"]
    assert two.recipe["controls"][0] == {
        "model": {"name": "control_v11p_sd15_canny", "hash": "d14c016b"}, "module": "canny:50:150", "weight": 0.8,
        "start": 0.1, "end": 0.9, "mode": "control", "resize_mode": "resize and pad",
    }  # fmt: skip


def test_the_start_image_comes_before_the_control_pictures() -> None:
    changes = {"ControlNet 0": json.loads(serialized(FULL)), "Denoising strength": "0.5"}

    missing = redraw({"meta": _meta(**changes), "source": CONTROL})
    both = redraw({"meta": _meta(**changes), "source": BOTH})

    assert missing.drawable == "needs-input"
    assert both.drawable == "differs"
    assert [each.picture for each in both.controls] == ["second.png"]
    assert both.made is not None
    assert both.made.start is not None


def test_a_controlnet_in_tiles_is_not_drawn() -> None:
    changes = {"ControlNet 0": json.loads(serialized(FULL)), "SD upscale upscaler": "None", "SD upscale overlap": "64",
               "Denoising strength": "0.2"}  # fmt: skip

    found = redraw({"meta": _meta(**changes), "source": BOTH})

    assert found.drawable == "no"
    assert any("in tiles" in reason for reason in found.reasons)


def _meta(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


@pytest.mark.parametrize("unit", [
    {**FULL, "module": "reference_only", "model": "None"}, {**FULL, "module": "ip-adapter_face_id"},
    {**FULL, "module": "inpaint_only+lama"},
])  # fmt: skip
def test_units_that_civman_does_not_have_are_named(unit: dict[str, Any]) -> None:
    found = read(**{"ControlNet 0": json.loads(serialized(unit))})

    assert found["drawable"] == "no"
    assert any(f"`{unit['module']}`" in reason for reason in found["reasons"])


def test_a_unit_of_an_ip_adapter_is_a_reference_picture_in_its_order() -> None:
    shown = FULL | {"module": "ip-adapter_clip_sd15", "model": "ip-adapter_sd15 [6a3f6166]", "control_mode": "Balanced"}
    entries = {f"ControlNet {n}": json.loads(serialized(unit)) for n, unit in enumerate((shown, FULL))}

    none = read(**entries)
    both = redraw({"meta": _meta(**entries), "source": BOTH})

    assert none["drawable"] == "needs-input"
    assert any("the IP-Adapter `ip-adapter_sd15` used a picture" in reason for reason in none["reasons"])
    assert both.drawable == "differs"
    assert both.references == (ReferenceRequest("control.png", "ip-adapter_sd15", 0.8, 0.1, 0.9),)
    assert [each.picture for each in both.controls] == ["second.png"]
    assert {(each.role, each.hash) for each in both.resources} >= {
        ("ip-adapter", "6a3f6166"), ("controlnet", "d14c016b")
    }  # fmt: skip


def test_a_unit_in_a_text_keeps_the_checkpoint_apart() -> None:
    text = (
        f"a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model hash: 0123456789, Model: base, "
        f"ControlNet 0: {serialized(FULL)}, Version: v1.10.1"
    )

    details = infotext.read(text).details
    found = controls_in(Entries(dict(details)), CONTROL, {})

    assert details["Model"] == "base"
    assert found.requests == (WANTED,)
