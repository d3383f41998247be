"""A checkpoint made for few steps is recognised by its label or name, and only then something is said."""

import pytest

from civman.planning.few_steps import few_steps_defaults, few_steps_notice


@pytest.mark.parametrize(
    ("label", "name", "word"),
    [
        ("SDXL Lightning", "a.safetensors", "Lightning"),
        ("SDXL Turbo", "a.safetensors", "Turbo"),
        ("SD 1.5 LCM", "a.safetensors", "LCM"),
        ("SD 1.5 Hyper", "a.safetensors", "Hyper"),
        ("SDXL 1.0", "dreamshaperXL_lightningDPMSDE.safetensors", "Lightning"),
        ("SDXL 1.0", "juggernaut_lightning-v9.safetensors", "Lightning"),
        (None, "model_DMD2_4step.safetensors", "DMD2"),
    ],
)
def test_usual_settings_on_such_a_model_are_mentioned(label, name, word):
    notice = few_steps_notice(label, name, steps=25, cfg=7)

    assert word in (notice or "nothing was said")


@pytest.mark.parametrize(
    ("asked", "used", "words"),
    [
        ((None, None), (8, 1.5), "8 steps and a CFG scale of 1.5"), ((4, None), (4, 1.5), "so a CFG scale of 1.5"),
        ((None, 2.0), (8, 2.0), "so 8 steps are"), ((25, 7.0), (25, 7.0), None),
    ],
)  # fmt: skip
def test_defaults_suit_such_a_model_and_never_replace_what_is_given(asked, used, words):
    steps, cfg, notice = few_steps_defaults("SDXL Lightning", "a.safetensors", steps=asked[0], cfg=asked[1])

    assert (steps, cfg) == used
    assert notice is None if words is None else words in notice


def test_other_models_keep_their_defaults():
    assert few_steps_defaults("SDXL 1.0", "hypernova.safetensors", steps=None, cfg=None) == (None, None, None)


@pytest.mark.parametrize(
    ("label", "name", "steps", "cfg"),
    [
        ("SDXL Lightning", "a.safetensors", 8, 2),
        ("SDXL 1.0", "hypernova.safetensors", 25, 7),
        ("SD 1.5", "turbocharged.safetensors", 25, 7),
        (None, "plain.safetensors", 25, 7),
    ],
)
def test_nothing_is_said_of_others_or_of_settings_that_suit(label, name, steps, cfg):
    assert few_steps_notice(label, name, steps=steps, cfg=cfg) is None
