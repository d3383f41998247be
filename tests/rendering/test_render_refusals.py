"""What cannot be rendered is refused in words before torch is imported, let alone a weight loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rendering_stock import QUICK, picture

# runs each line of arguments in one process that has never imported torch, and tells what came of it
_DRIVER = """
import contextlib, io, json, sys
from civman.cli.app import main
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main(json.loads(line))
    heavy = [name for name in ("torch", "diffusers", "transformers") if name in sys.modules]
    print(json.dumps({"code": int(code), "out": out.getvalue(), "heavy": heavy}), flush=True)
"""
_BLOCKED = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Nowhere())
from civman.cli.app import main
sys.exit(main(["render", "1", "a cat", "--json"]))
"""
PLACE = "{place}"
CASES = {
    "lora for another base": (["--lora", "xl-ink"], 7, "cannot-work"),
    "lora for another base by its tag": (["{prompt}a cat <lora:xl-ink:1>"], 7, "cannot-work"),
    "a checkpoint as lora": (["--lora", "tiny-sdxl"], 2, "wrong-kind"),
    "missing checkpoint": (["{checkpoint}4384@128713"], 3, "not-found"),
    "missing lora": (["--lora", "678@910"], 3, "not-found"),
    "missing lora by its tag": (["{prompt}a cat <lora:nobody:1>"], 3, "not-found"),
    "missing vae": (["--vae", "sha256:" + "0" * 64], 3, "not-found"),
    "two choices of the precision": (["--fast", "--precision", "float16"], 2, "usage"),
    "compiled, with little memory": (["--compile", "--low-vram"], 2, "not-compilable"),
    "compiled, with merged tokens": (["--compile", "--token-merging", "0.5"], 2, "not-compilable"),
    "unknown sampler": (["--sampler", "DPM++ 2N Karras"], 2, "unknown-sampler"),
    "no sampler's name": (["--sampler", ""], 2, "unknown-sampler"),
    "two schedules": (["--sampler", "Euler Karras", "--schedule", "Beta"], 2, "two-schedules"),
    "about a second pass without one": (["--upscaler", "lanczos"], 2, "usage"),
    "unknown upscaler": (["--hires", "2", "--upscaler", "esrgan"], 3, "not-found"),
    "second pass that makes it smaller": (["--hires", "0.5"], 2, "bad-size"),
    "unknown schedule": (["--sampler", "Euler", "--schedule", "Karos"], 2, "unknown-schedule"),
    "size that is none": (["--size", "big"], 2, "bad-size"),
    "size beyond reason": (["--size", "100000x100000"], 2, "bad-recipe"),
    "size not in eights": (["--size", "70x64"], 2, "bad-recipe"),
    "no steps": (["--steps", "0"], 2, "bad-recipe"),
    "too many steps": (["--steps", "1001"], 2, "bad-steps"),
    "start that is no picture": (["--init", PLACE + "/noise.png"], 2, "unreadable-picture"),
    "start that is half a picture": (["--init", PLACE + "/cut.png"], 2, "unreadable-picture"),
    "start that is not there": (["--init", PLACE + "/gone.png"], 2, "unreadable-picture"),
    "masked content without a mask": (["--init", PLACE + "/whole.png", "--mask-content", "fill"], 2, "no-start-image"),
    "only masked without a mask": (["--init", PLACE + "/whole.png", "--only-masked"], 2, "no-start-image"),
    "noise multiplier without a picture": (["--noise-multiplier", "1.1"], 2, "no-start-image"),
    "unknown masked content": (
        ["--init", PLACE + "/whole.png", "--mask", PLACE + "/whole.png", "--mask-content", "blue"],
        2,
        "bad-recipe",
    ),
    "a mask that paints nothing": (["--init", PLACE + "/whole.png", "--mask", PLACE + "/black.png"], 2, "empty-mask"),
    "eta that is no share": (["--sampler", "Euler a", "--eta", "-1"], 2, "bad-recipe"),
    "a sampler that is known and not there": (["--sampler", "sa_solver"], 2, "unknown-sampler"),
    "mask without a picture": (["--mask", PLACE + "/whole.png"], 2, "no-start-image"),
    "strength beyond one": (["--init", PLACE + "/whole.png", "--strength", "1.5"], 2, "bad-recipe"),
    "scale that is no number": (["--lora", "ink:strong"], 3, "not-found"),
    "three scales": (["--lora", "ink:1:2:3"], 3, "not-found"),
    "scale out of range": (["--lora", "ink:1000"], 2, "usage"),
    "scale out of range in a tag": (["{prompt}a cat <lora:ink:1000>"], 2, "bad-scale"),
    "prompt syntax": (["{prompt}a <wildcard:x:1> cat"], 2, "prompt-syntax"),
    "combined prompts that are rescaled": (["{prompt}a AND b", "--cfg-rescale", "0.5"], 2, "prompt-syntax"),
    "adapter in the negative prompt": (["-n", "<lora:ink:1>"], 2, "prompt-syntax"),
    "clip skip too deep": (["--clip-skip", "9"], 2, "clip-skip"),
    "embedding nobody calls": (["--embedding", "easydream"], 2, "embedding-unused"),
    "rng of nobody": (["--rng", "dice"], 2, "bad-recipe"),
    "precision of nobody": (["--precision", "int3"], 2, "bad-recipe"),
    "trigger of nobody": (["--trigger", "maybe"], 2, "usage"),
    "an embedding as checkpoint": (["{checkpoint}easydream"], 2, "wrong-kind"),
    "no prompt at all": (["{prompt}"], 0, ""),
}


def words(changes: list[str], place: Path) -> list[str]:
    """A command that works, with something wrong in it."""
    checkpoint, prompt, options = "tiny-sd1", "a cat", []
    for word in changes:
        if word.startswith("{prompt}"):
            prompt = word.removeprefix("{prompt}")
        elif word.startswith("{checkpoint}"):
            checkpoint = word.removeprefix("{checkpoint}")
        else:
            options.append(word.replace(PLACE, str(place)))
    return ["render", checkpoint, prompt, *QUICK, *options, "--dry-run", "--json"]


@pytest.fixture(scope="module")
def outcomes(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All of them, asked in one process."""
    place = tmp_path_factory.mktemp("refusals")
    whole = picture(place / "whole.png", (64, 64)).read_bytes()
    Image.new("L", (64, 64), 0).save(place / "black.png")
    (place / "noise.png").write_bytes(b"no picture at all")
    (place / "cut.png").write_bytes(whole[: len(whole) // 2])
    lines = [["import", "--offline", str(stock)], *(words(changes, place) for changes, _, _ in CASES.values())]
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER], input="\n".join(map(json.dumps, lines)), capture_output=True, text=True,
        env={**os.environ, "CIVMAN_LIBRARY": str(place / "library"), "CIVMAN_CONFIG_DIR": str(place / "config")},
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(lines), done.stderr
    return dict(zip(CASES, told[1:], strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_cause_before_torch_is_imported(outcomes: dict[str, dict[str, Any]], case: str) -> None:
    _, exit_code, code = CASES[case]
    found = outcomes[case]

    answer = json.loads(found["out"])

    assert found["heavy"] == []
    assert found["code"] == exit_code, answer
    if exit_code:
        assert answer["error"]["code"] == code
        spelled_out = ("bad-recipe", "bad-size", "bad-steps", "clip-skip", "usage", "prompt-syntax")
        assert answer["error"]["hint"] or code in spelled_out


def test_refusals_name_the_way_out(outcomes: dict[str, dict[str, Any]]) -> None:
    hints = {case: json.loads(found["out"]).get("error", {}).get("hint") for case, found in outcomes.items()}

    assert "`civman download 678@910`" in hints["missing lora"]
    assert "civman download 4384@128713" in hints["missing checkpoint"]
    assert "`DPM++ 2M`" in hints["unknown sampler"]
    for case in ("scale that is no number", "three scales"):
        assert "`ink:0.7`" in hints[case]
    assert "--hires 2" in hints["about a second pass without one"]
    assert "--force" in hints["lora for another base"]


def test_without_the_extra_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED], capture_output=True, text=True,
        env={**os.environ, "CIVMAN_LIBRARY": str(tmp_path / "library")},
    )  # fmt: skip

    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (8, "no-render-extra")
    assert 'pip install "civman[render]"' in error["hint"]
    assert error["facts"]["missing"] == ["torch", "diffusers"]
    assert not (tmp_path / "library").exists()
