# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Weights that stay in their file are, while their layer works, the weights of a loaded model to the bit."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import headers
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from test_run import PLAIN, prompt
from tiny_adapters import low_rank, write_safetensors

from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.merge_adapters import Adapter, Later, apply
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.run_recipe import render
from civman.errors import Incompatible

FEW = 100


def streamed(path: Path, dtype: "torch.dtype | None", **how: bool) -> tuple[LoadedModel, Later]:
    model = load(path, dtype=dtype, leaves=FEW, **how)
    return model, stream(model)


def adapters(model: LoadedModel, folder: Path) -> list[Adapter]:
    """A plain LoRA on linear layers and convolutions, the same with magnitudes, and one of whole differences."""
    unet = model.unet
    attention = {f"unet.{n}": m for n, m in unet.named_modules() if n.endswith((".to_q", ".to_k", ".conv1"))}
    linear = {name: module for name, module in attention.items() if module.weight.ndim == 2}
    generator = torch.Generator().manual_seed(3)
    decomposed = low_rank(linear, 3) | {
        f"{name}.dora_scale": torch.rand(len(module.weight), 1, generator=generator) + 0.5
        for name, module in linear.items()
    }
    whole = {f"{name}.diff": torch.randn(module.weight.shape, generator=generator) * 0.01
             for name, module in attention.items()}  # fmt: skip
    made = []
    for name, tensors, scale in (("plain", low_rank(attention, 2), 0.8), ("dora", decomposed, 0.5), ("d", whole, 1.0)):
        path = folder / f"{name}.safetensors"
        made.append(Adapter(path, write_safetensors(path, tensors), scale, name=name))
    return made


def weights_at_work(model: LoadedModel) -> dict[str, Any]:
    """The values of every parameter of the UNet as its layer is called."""
    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, _inputs: Any) -> None:
            for key, weight in module.named_parameters(recurse=False):
                seen[f"{name}.{key}"] = weight.detach().clone()

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in model.unet.named_modules()]
    render(replace(PLAIN, steps=1), model, prompt(model))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("which", [(), (0,), (0, 1, 2)])
def test_a_layer_computes_with_the_bits_of_a_loaded_model(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, dtype: "torch.dtype | None", which: tuple[int, ...]
) -> None:
    usual = load(tiny_files[kind], dtype=dtype)
    sparing, later = streamed(tiny_files[kind], dtype)
    chosen = [adapters(usual, tmp_path)[number] for number in which]
    reports = [
        apply({"unet": model.unet}, model.base_tensor, chosen, done_with=model.forget, later=each)
        for model, each in ((usual, None), (sparing, later))
    ]

    ours, theirs = weights_at_work(sparing), weights_at_work(usual)

    assert reports[0] == reports[1]
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert weight.dtype == ours[name].dtype
        assert weight.stride() == ours[name].stride()
        assert torch.equal(weight, ours[name]), name
    assert any(weight.is_meta for weight in sparing.unet.parameters()), "large weights are gone again"


@pytest.mark.long
def test_the_picture_is_the_same_to_the_byte_and_other_adapters_take_over(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    sparing, later = streamed(tiny_files["sdxl"], torch.float32)
    chosen = adapters(load(tiny_files["sdxl"]), tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for which in (chosen[:1], chosen, []):
            usual = load(tiny_files["sdxl"], dtype=torch.float32)
            apply({"unet": usual.unet}, usual.base_tensor, which)
            apply({"unet": sparing.unet}, sparing.base_tensor, which, later=later)

            (expected,) = render(PLAIN, usual, prompt(usual))
            (made,) = render(PLAIN, sparing, prompt(sparing))

            assert made.sha256 == expected.sha256
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("factor", "code"), [(0.0, "adapter-no-change"), (float("nan"), "adapter-not-finite")])
def test_what_a_loaded_model_refuses_is_refused_before_any_layer_is_called(
    tiny_files: dict[str, Path], tmp_path: Path, factor: float, code: str
) -> None:
    sparing, later = streamed(tiny_files["sd1"], torch.float32)
    modules = {f"unet.{n}": m for n, m in load(tiny_files["sd1"]).unet.named_modules() if n.endswith(".to_q")}
    tensors = {name: tensor * factor if "up" in name else tensor for name, tensor in low_rank(modules, 1).items()}
    sha256 = write_safetensors(tmp_path / "bad.safetensors", tensors)
    before = render(PLAIN, sparing, prompt(sparing))

    with pytest.raises(Incompatible) as caught:
        apply({"unet": sparing.unet}, sparing.base_tensor, [Adapter(tmp_path / "bad.safetensors", sha256)], later=later)

    assert caught.value.code == code
    assert render(PLAIN, sparing, prompt(sparing))[0].sha256 == before[0].sha256


def test_a_layer_that_fails_gives_its_memory_back(tiny_files: dict[str, Path]) -> None:
    sparing, _ = streamed(tiny_files["sd1"], torch.float32)
    layer = next(m for n, m in sparing.unet.named_modules() if n.endswith(".to_q"))
    assert layer.weight.is_meta

    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 7777))

    assert layer.weight.is_meta


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_own_pipeline_draws_with_it_too(tiny_files: dict[str, Path], kind: str) -> None:
    pixels = []
    sparing, _ = streamed(tiny_files[kind], torch.float32, for_diffusers=True)
    for model in (load(tiny_files[kind], dtype=torch.float32, for_diffusers=True), sparing):
        given = prompt(model)
        pipeline = pipeline_of(model)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = PipelineScheduler("Euler", is_xl=kind == "sdxl")
        pooled = {} if kind == "sd1" else {
            "pooled_prompt_embeds": given.pooled, "negative_pooled_prompt_embeds": given.uncond_pooled,
        }  # fmt: skip
        pixels.append(pipeline(
            prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, num_inference_steps=2, height=64, width=64,
            generator=torch.Generator().manual_seed(7), output_type="np", **pooled,
        ).images[0])  # fmt: skip

    assert (pixels[0] == pixels[1]).all()


@pytest.mark.long
def test_a_whole_model_takes_the_memory_of_a_layer(tmp_path: Path) -> None:
    """SD 1.5's own shapes, computed in single precision: 3.4 GB of weights where they are loaded."""
    file = headers.write_sparse("own/ckpt-sd15", tmp_path / "model.safetensors")
    if file.stat().st_blocks * 512 > 8 << 20:
        pytest.skip("this file system keeps no holes")
    model = load(file, dtype=torch.float32, leaves=SMALL)
    stream(model)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], resident_bytes())

    before = resident_bytes()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with torch.no_grad():
            model.unet(torch.zeros(1, 4, 8, 8), torch.tensor(1.0), encoder_hidden_states=torch.zeros(1, 77, 768))
    finally:
        done.set()
        watcher.join()

    assert most[0] - before < 400 << 20


def resident_bytes() -> int:
    if not Path("/proc/self/statm").exists():
        pytest.skip("asks Linux what is resident")
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_packed_weights_are_unpacked_layer_by_layer(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from packed_files import quantised, write_gguf
    from safetensors.torch import load_file

    stored, _ = quantised(load_file(tiny_files["sd1"]), "Q4_1")
    said = {key: value for key, value in load(tiny_files["sd1"]).metadata.items() if key == "civman.config"}
    path = write_gguf(tmp_path / "packed.gguf", stored, said)
    usual = load(path, dtype=torch.float32)
    sparing, later = streamed(path, torch.float32)
    chosen = adapters(usual, tmp_path)
    for model, each in ((usual, None), (sparing, later)):
        apply({"unet": model.unet}, model.base_tensor, chosen, done_with=model.forget, later=each)

    ours, theirs = weights_at_work(sparing), weights_at_work(usual)

    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any("Q4_1" in note for note in usual.notes)
