"""Images of transformer families are those of stable-diffusion.cpp, a program that shares no code with torch.

Both programs get the same weights, seed, prompts and numbers; stable-diffusion.cpp computes the noise, the noise levels
and the tokens itself. Its image has whole numbers from 0 to 255. A wrong shift, a missing step, another word or another
scale gives an image that differs by much more than rounding does.
"""

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("gguf")

import numpy as np
import sd_cpp_models
import sd_cpp_oracle
import torch
from sd_cpp_models import PEERS, Peer, family_of
from test_flow_pictures import drawn, recipe_for

from civman.diffusion.open_model import load
from civman.domain.recipes.recipe import Flow, Recipe

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        importlib.util.find_spec("stable_diffusion_cpp") is None,
        reason="stable-diffusion-cpp-python is not installed: `make peer-tests` builds it",
    ),
]
SAME, OTHER = 1.0, 4.0
"""The most that an equal image differs, and the least that another one does, of 255 at the most different number."""
HEAVY = ("flux1-dev", "chroma", "sd3", "qwen-image", "z-image", "anima", "flux2-dev")
"""Models of gigabytes, or with many tokens: for the long tests."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is deleted at once, because the files are large."""
    with TemporaryDirectory() as name:
        yield Path(name)


def recipe_of(name: str, peer: Peer) -> Recipe:
    family = family_of(name)
    variant = name.removeprefix("flux1-") if name.startswith("flux1") else ""
    shift = family.shift(variant, (64, 96), peer.steps) if peer.has_own_shift else 2.5
    flow = Flow(shift, family.entries, family.defaults(variant).guidance)
    return recipe_for(name, cfg=peer.cfg, steps=peer.steps, prompt=peer.prompt, flow=flow)


def theirs(peer: Peer, recipe: Recipe, files: dict[str, Path], folder: Path) -> np.ndarray:
    assert recipe.flow is not None
    image = {
        "prompt": recipe.prompt, "negative_prompt": recipe.negative_prompt, "width": recipe.width,
        "height": recipe.height, "cfg_scale": recipe.guidance_scale, "guidance": recipe.flow.guidance,
        "scheduler": "simple", "sample_method": "euler", "sample_steps": recipe.steps, "seed": recipe.seed,
    }  # fmt: skip
    if not peer.has_own_shift:
        image["flow_shift"] = math.log(recipe.flow.shift) if peer.is_shift_mu else recipe.flow.shift
    model = {"rng_type": "cpu", "vae_decode_only": True, "n_threads": os.cpu_count()} | dict(peer.options)
    request = {"model": model, "image": image}
    return sd_cpp_oracle.draw({sd_cpp_models.ARGUMENTS[role]: path for role, path in files.items()}, request, folder)


def ours(model: Any, recipe: Recipe) -> np.ndarray:
    values, _ = drawn(model, recipe)
    return (values.permute(1, 2, 0) * 255).double().numpy()


def wrong(peer: Peer, recipe: Recipe) -> dict[str, Recipe]:
    """Recipes of other images."""
    assert recipe.flow is not None
    found = {
        "shift": replace(recipe, flow=replace(recipe.flow, shift=1.0)),
        "steps": replace(recipe, steps=recipe.steps - 1),
        "seed": replace(recipe, seed=4),
    }
    if "a photo of a cat" in recipe.prompt:
        found["prompt"] = replace(recipe, prompt=recipe.prompt.replace("a photo of a cat", "a photo of a dog"))
    if peer.cfg != 1:
        found["scale"] = replace(recipe, guidance_scale=1.0)
        found["negative"] = replace(recipe, negative_prompt="a dog")
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in HEAVY else ()) for name in PEERS]
)
def test_an_image_is_that_of_stable_diffusion_cpp(folder: Path, name: str) -> None:
    peer = PEERS[name]
    recipe = recipe_of(name, peer)
    own, files = sd_cpp_models.write_files(name, folder)
    expected = theirs(peer, recipe, files, folder).astype(float)
    parts = {role: path for role, path in own.items() if role not in ("transformer", "vae")}

    model = load(own["transformer"], vae=own["vae"], parts=parts, dtype=torch.float32)

    def difference(made: Recipe) -> float:
        return round(float(np.abs(ours(model, made) - expected).max()), 2)

    others = {change: difference(made) for change, made in wrong(peer, recipe).items()}
    same = difference(recipe)
    print(f"{name}: {same} of 255, {others}")
    assert same <= SAME
    assert min(others.values()) >= OTHER, others
