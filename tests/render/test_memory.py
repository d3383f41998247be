# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""What a rendering needs is known before loading, and the plans for little memory give the same picture."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from test_run import PLAIN, prompt

from civman.errors import CannotRender
from civman.render.environment import choose_device, choose_dtype, environment
from civman.render.guard import memory_errors
from civman.render.loader import load
from civman.render.memory import Estimate, MemoryPlan, apply, available_bytes, estimate
from civman.render.run import render
from civman.render.weights import Weights


def test_weights_are_counted_exactly(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sdxl"])
    counted = {
        name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in model.components.items()
    }

    found = estimate(Weights(tiny_files["sdxl"]).shapes, width=64, height=64)

    assert found.unet == counted["unet"]
    assert found.vae == counted["vae"]
    # the file's encoders carry a few small tensors that nothing uses
    assert 0 <= found.text - counted["text_encoder"] - counted["text_encoder_2"] < 1000


def test_work_grows_with_the_picture_and_the_batch(tiny_files: dict[str, Path]) -> None:
    shapes = Weights(tiny_files["sd1"]).shapes
    small = estimate(shapes, width=64, height=64)

    assert estimate(shapes, width=128, height=128).vae_work == 4 * small.vae_work
    assert estimate(shapes, width=64, height=64, batch=3).unet_work == 3 * small.unet_work
    assert estimate(shapes, width=64, height=64, is_guided=False).unet_work == small.unet_work // 2


def test_less_memory_chooses_a_slower_plan_and_too_little_is_refused() -> None:
    gib = 2**30
    needs = Estimate(unet=5 * gib, vae=gib // 3, text=gib, unet_work=gib // 2, vae_work=5 * gib)

    chosen = [needs.plan(available * gib) for available in (16, 10, 7, 3)]

    assert chosen == list(MemoryPlan)
    with pytest.raises(CannotRender) as caught:
        needs.plan(gib)
    assert caught.value.code == "out-of-memory"


@pytest.mark.parametrize("plan", MemoryPlan)
def test_every_plan_gives_the_same_picture(tiny_files: dict[str, Path], plan: MemoryPlan) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    (usual,) = render(PLAIN, model, prompt(model))

    apply(plan, model, torch.device("cpu"))
    (made,) = render(PLAIN, model, prompt(model))

    assert np.abs(made.pixels.astype(int) - usual.pixels.astype(int)).max() <= 1


def test_free_memory_is_a_number_of_bytes() -> None:
    assert available_bytes(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("… can't allocate memory: …")]
)
def test_running_out_of_memory_says_what_to_do(error: Exception) -> None:
    with pytest.raises(CannotRender) as caught, memory_errors("decoding the picture"):
        raise error

    assert caught.value.code == "out-of-memory"
    assert caught.value.hint


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("computing"):
        raise RuntimeError("shapes do not fit")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_dtype(torch.device("cpu")) is torch.float32
    assert choose_dtype(torch.device("cuda")) is torch.float16
    for name in ("abacus", "mps" if not torch.backends.mps.is_available() else "xpu"):
        with pytest.raises(CannotRender) as caught:
            choose_device(name)
        assert caught.value.code == "no-device"


def test_the_environment_names_what_decides_the_bits() -> None:
    facts = environment(torch.device("cpu")).to_facts()

    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
