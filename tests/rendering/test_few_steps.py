"""A checkpoint made for few steps is recognised by its label or name, and only then something is said."""

import pytest

from civman.planning.few_steps import few_steps_notice


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
