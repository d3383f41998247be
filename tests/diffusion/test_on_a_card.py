# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""What only a CUDA card can show. Skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from test_run import PLAIN, prompt

from civman.diffusion.layer_streaming import stream
from civman.diffusion.loader import load
from civman.diffusion.memory_plan import MemoryPlan, apply
from civman.diffusion.noise import PictureNoise, Rng
from civman.diffusion.run_recipe import render

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # operations that CUDA has in no deterministic form warn; the same bytes twice are asked for here
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
]


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_on_a_card_half_precision_makes_a_picture_and_the_same_one_again(
    tiny_files: dict[str, Path], kind: str
) -> None:
    model = load(tiny_files[kind], device="cuda", dtype=torch.float16)

    first, again = (render(PLAIN, model, prompt(model))[0] for _ in range(2))

    assert first.pixels.max() > 0
    assert first.sha256 == again.sha256


@pytest.mark.parametrize("plan", [plan for plan in MemoryPlan if plan is not MemoryPlan.RESIDENT])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_on_a_card_plans_for_little_memory_give_the_resident_picture(
    tiny_files: dict[str, Path], kind: str, plan: MemoryPlan
) -> None:
    cuda = torch.device("cuda")
    resident = load(tiny_files[kind], device=cuda, dtype=torch.float16)
    (usual,) = render(PLAIN, resident, prompt(resident))
    by_layer, device = plan is MemoryPlan.LAYER_BY_LAYER, "cpu" if plan is MemoryPlan.ONE_AT_A_TIME else cuda
    sparing = load(tiny_files[kind], device=device, dtype=torch.float16, leaves=100 if by_layer else None)
    if by_layer:
        stream(sparing)
    apply(plan, sparing, cuda)

    (made,) = render(PLAIN, sparing, prompt(sparing))

    assert np.abs(made.pixels.astype(int) - usual.pixels.astype(int)).max() <= 2


def test_on_a_card_single_precision_is_the_cpu_s_picture(tiny_files: dict[str, Path]) -> None:
    pictures = []
    for device in ("cpu", "cuda"):
        model = load(tiny_files["sd1"], device=device, dtype=torch.float32)
        pictures.append(render(PLAIN, model, prompt(model))[0].pixels.astype(int))

    assert np.abs(pictures[0] - pictures[1]).max() <= 2


def test_on_a_card_noise_is_what_torch_draws_there() -> None:
    generator = torch.Generator("cuda").manual_seed(7)

    theirs = torch.randn(4, 64, 64, generator=generator, device="cuda").cpu()

    assert torch.allclose(PictureNoise(7, rng=Rng.NV).start((4, 64, 64)), theirs, atol=1e-6)
