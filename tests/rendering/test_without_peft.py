"""Rendering does without PEFT, which diffusers would use for adapters: the same picture, LoRA included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rendering_stock import QUICK

pytest.importorskip("diffusers")
HIDE = """
import sys
sys.modules["peft"] = None  # what makes an import fail
from civman.cli.app import main
sys.exit(main())
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("stocked")
def test_a_picture_with_a_lora_is_the_same_where_peft_is_absent(root: Path) -> None:
    words = ["render", "tiny-sd1", "a red cat", "--lora", "ink:0.8", *QUICK, "--library", str(root), "--json"]
    made = [
        subprocess.run([sys.executable, *how, *words], capture_output=True, text=True, timeout=300)
        for how in (("-m", "civman"), ("-c", HIDE))
    ]

    assert [each.returncode for each in made] == [0, 0], made[1].stderr
    plain, without = (json.loads(each.stdout)["render"][0]["pixel_sha256"] for each in made)
    assert plain == without
