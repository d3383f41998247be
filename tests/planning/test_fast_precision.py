"""`--fast`: which precision it chooses, and what it says about it."""

import re

import pytest

from civman.planning.fast_precision import FAST, fast_precision
from civman.system import system_facts


@pytest.mark.parametrize("overflows", [False, True])
def test_on_a_cpu_it_follows_the_processor(overflows: bool) -> None:
    precision, notice = fast_precision("float32", vae_overflows=overflows)

    if system_facts.computes_bfloat16():
        assert precision == "bfloat16"
        assert re.search("dB PSNR", notice)
    else:
        assert precision == "float32"
        assert "changes nothing" in notice


@pytest.mark.parametrize(
    ("usual", "overflows", "chosen"),
    [("float16", True, "bfloat16"), ("float16", False, "float16"), ("bfloat16", False, "bfloat16")],
)
def test_on_a_gpu_it_changes_only_what_is_computed_in_32_bits(usual: str, overflows: bool, chosen: str) -> None:
    precision, notice = fast_precision(usual, vae_overflows=overflows)

    assert precision == chosen
    assert ("changes nothing" in notice) == (precision == usual)


def test_it_is_no_precision_of_a_recipe() -> None:
    from civman.domain.recipes.recipe_limits import PRECISIONS

    assert FAST not in PRECISIONS
