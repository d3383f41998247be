# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""What a rendering needs is known before loading, and the plans for little memory give the same picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models
from safetensors.torch import load_file, save_file
from test_run import PLAIN, prompt

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.environment import choose_device, choose_dtype, environment
from civman.diffusion.guard import memory_errors
from civman.diffusion.layer_streaming import stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.memory_plan import Estimate, MemoryPlan, apply, available_bytes, estimate, take_turns
from civman.diffusion.run_recipe import Inputs, render
from civman.diffusion.text_conditioning import encode
from civman.domain.recipes.recipe import Hires, StartImage
from civman.errors import CannotRender
from civman.prompts.emphasis import parse
from civman.prompts.tokenizer import clip_tokenizer


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


def test_a_controlnet_s_outputs_are_counted_with_their_weighted_copies() -> None:
    from diffusers import ControlNetModel

    with torch.device("meta"):
        net = ControlNetModel()  # of the size of SD 1
        latents, time, context = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 1280)
        skips, middle = net(latents, time, context, torch.empty(1, 3, 512, 512), return_dict=False)
    outputs = sum(each.numel() for each in (*skips, middle))
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
    sizes = {"width": 512, "height": 512, "is_guided": False, "dtype_bytes": 4}

    one, two, none = (estimate(shapes, **sizes, controlnets=number) for number in (1, 2, 0))

    assert one.unet_work - none.unet_work == two.unet_work - one.unet_work
    assert one.unet_work - none.unet_work == pytest.approx(2 * outputs * 4, rel=0.1)


def test_what_stays_on_the_device_counts_under_every_plan() -> None:
    gib = 2**30
    needs = Estimate(unet=5 * gib, vae=gib // 3, text=gib, unet_work=gib // 2, vae_work=5 * gib)
    with_more = replace(needs, attached=2 * gib)

    assert {with_more.needed(plan) - needs.needed(plan) for plan in MemoryPlan} == {2 * gib}
    assert with_more.weights - needs.weights == 2 * gib
    assert (needs.plan(10 * gib), with_more.plan(10 * gib)) == (MemoryPlan.TILED, MemoryPlan.ONE_AT_A_TIME)


def loaded(path: Path, plan: MemoryPlan, dtype: "torch.dtype" = torch.float32) -> LoadedModel:
    """A model that works under a plan on the CPU."""
    by_layer = plan is MemoryPlan.LAYER_BY_LAYER
    model = load(path, dtype=dtype, leaves=100 if by_layer else None)
    if by_layer:
        stream(model)
    apply(plan, model, torch.device("cpu"))
    return model


@pytest.mark.parametrize("plan", MemoryPlan)
def test_every_plan_gives_the_same_picture(tiny_files: dict[str, Path], plan: MemoryPlan) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    (usual,) = render(PLAIN, model, prompt(model))

    planned = loaded(tiny_files["sd1"], plan)
    (made,) = render(PLAIN, planned, prompt(planned))

    most = 1 if plan is MemoryPlan.TILED else 0
    assert np.abs(made.pixels.astype(int) - usual.pixels.astype(int)).max() <= most


@pytest.mark.parametrize("plan", MemoryPlan)
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_plan_encodes_prompts_and_pictures_alike(tmp_path: Path, kind: str, plan: MemoryPlan) -> None:
    """Layers that wait for their turn have no values and no device of their own."""
    path = tiny_models.write(tmp_path / "whole.safetensors", kind)
    usual, planned = load(path, dtype=torch.float32), loaded(path, plan)
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    recipe = replace(PLAIN, start=StartImage(PLAIN.checkpoint, 0.5), hires=Hires(96, 96, 2, 0.5, "lanczos"))

    results = []
    for model in (usual, planned):
        encoders = [model.components[name] for name in ("text_encoder", "text_encoder_2") if name in model.components]
        pads = [
            int(model.configs[name]["pad_token_id"]) for name in ("text_encoder", "text_encoder_2")[: len(encoders)]
        ]
        tokenizers = [clip_tokenizer().padded_with(pad) for pad in pads]
        (cond, pooled), (uncond, unpooled) = (
            encode(encoders, tokenizers, parse(text), 1, is_negative=not text) for text in ("a (red:1.3) cat", "")
        )
        results.append(
            (cond, render(recipe, model, Conditioning(cond, uncond, pooled, unpooled), inputs=Inputs(image)))
        )

    (context, (made,)), (other_context, (other,)) = results
    assert torch.equal(context, other_context)
    assert np.abs(made.pixels.astype(int) - other.pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("plan", MemoryPlan)
def test_every_plan_runs_an_overflowing_vae_again_in_single_precision(
    tiny_files: dict[str, Path], tmp_path: Path, plan: MemoryPlan
) -> None:
    tensors = load_file(tiny_files["sd1"])
    for part in ("weight", "bias"):  # a factor that half precision cannot hold, taken back by the norms behind it
        tensors[f"first_stage_model.decoder.conv_in.{part}"] *= 30000
    save_file(tensors, tmp_path / "overflowing.safetensors")
    model = loaded(tmp_path / "overflowing.safetensors", plan, torch.float16)

    for _ in range(2):  # the second time from weights that went to single precision and came back
        (made,) = render(PLAIN, model, prompt(model))

        assert made.decoded_in == "float32"
        assert made.notes == ("the VAE overflowed in float16, so the image was decoded again in float32",)


class Traveller(torch.nn.Linear):
    """Says where it is sent."""

    def __init__(self, name: str, heard: list[str]) -> None:
        super().__init__(1, 1)
        self.name, self.heard = name, heard

    def to(self, device: object) -> "Traveller":  # type: ignore[override]
        self.heard.append(f"{self.name} to {torch.device(device).type}")  # type: ignore[arg-type]
        return self


def test_only_the_component_whose_turn_it_is_is_on_the_device() -> None:
    heard: list[str] = []
    text, unet, vae = (Traveller(name, heard) for name in ("text", "unet", "vae"))
    take_turns([text, unet, vae], torch.device("meta"))
    heard.clear()

    # a picture is encoded before the UNet, which comes back after each decoding
    for module in (text, vae, unet, unet, vae, unet, vae, text):
        module._hf_hook.pre_forward(module)  # as diffusers calls it for the VAE, which has no forward of its own

    assert heard == [
        "text to meta", "text to cpu", "vae to meta", "vae to cpu", "unet to meta", "unet to cpu", "vae to meta",
        "vae to cpu", "unet to meta", "unet to cpu", "vae to meta", "vae to cpu", "text to meta",
    ]  # fmt: skip


def test_sdxl_s_vae_is_held_in_single_precision_on_the_cpu_too(tiny_files: dict[str, Path]) -> None:
    """Plans for little memory load on the CPU and compute elsewhere; theirs must be the resident picture."""
    model = load(tiny_files["sdxl"], device="cpu", dtype=torch.float16)

    assert {part: next(module.parameters()).dtype for part, module in model.components.items()} == {
        "unet": torch.float16, "vae": torch.float32, "text_encoder": torch.float16, "text_encoder_2": torch.float16,
    }  # fmt: skip
    shapes = Weights(tiny_files["sdxl"]).shapes
    found = estimate(shapes, width=64, height=64, vae_bytes=4)
    assert found.vae == sum(p.numel() * p.element_size() for p in model.vae.parameters())


def test_free_memory_is_a_number_of_bytes() -> None:
    assert available_bytes(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("… can't allocate memory: …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Invalid buffer size: 20.00 GiB"),
    ],
)  # fmt: skip
def test_running_out_of_memory_says_what_to_do(error: Exception) -> None:
    with pytest.raises(CannotRender) as caught, memory_errors("decoding the image"):
        raise error

    assert caught.value.code == "out-of-memory"
    assert caught.value.facts["stage"] == "decoding the image"
    for way in ("--size", "--batch-size", "--low-vram"):
        assert way in caught.value.hint


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
