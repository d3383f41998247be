# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Blocks are compiled as one graph each, and never compiled again for nothing."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_flows
from test_flow_pictures import drawn, family_of, recipe_for
from test_run import PLAIN, prompt
from torch._dynamo.backends.debugging import aot_eager

from civman.diffusion.compiled_regions import CompiledRegions, compiler_of
from civman.diffusion.environment import environment
from civman.diffusion.loader import load
from civman.diffusion.open_model import load as load_any
from civman.diffusion.run_recipe import render
from civman.domain.recipes.freeu_settings import FreeU
from civman.errors import CannotRender
from civman.rendering.compare_pictures import differences

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test but the last one calls the compiler, so any program with a version does."""
    monkeypatch.setenv("CXX", sys.executable)


def traced(graph: Any, _inputs: Any) -> Any:
    return graph.forward


def caller(unet: Any, other: Any) -> Callable[..., None]:
    """A function that calls both UNets with the same inputs and compares the results."""
    config, more = unet.config, {}
    if getattr(config, "addition_embed_type", None):
        width = unet.add_embedding.linear_1.in_features - 6 * config.addition_time_embed_dim
        more["added_cond_kwargs"] = {"text_embeds": torch.zeros(2, width), "time_ids": torch.zeros(2, 6)}

    def call(sigma: float, *, height: int = 8, tokens: int = 77) -> None:
        generator = torch.Generator().manual_seed(3)
        context = torch.randn(2, tokens, config.cross_attention_dim, generator=generator)
        latents = torch.randn(2, 4, height, 8, generator=generator)
        with torch.no_grad():
            ours, eager = (
                each(latents, torch.tensor(sigma), encoder_hidden_states=context, return_dict=False, **more)[0]
                for each in (unet, other)
            )
        assert torch.equal(ours, eager)

    return call


def test_graphs_are_made_once_for_each_kind_of_block_and_size(tiny_files: dict[str, Path]) -> None:
    ours, theirs = (load(tiny_files["sd1"], dtype=torch.float32) for _ in range(2))
    compiled = CompiledRegions(ours.unet, CPU, traced)
    call = caller(ours.unet, theirs.unet)

    call(3.0)

    blocks = [name for name, module in ours.unet.named_modules() if "forward" in vars(module)]
    first = compiled.graphs
    assert 0 < first <= len(blocks)
    assert {type(ours.unet.get_submodule(name)).__name__ for name in blocks} == {
        "BasicTransformerBlock", "ResnetBlock2D",
    }  # fmt: skip
    for sigma, tokens in ((3.0, 77), (5.0, 77), (5.0, 154), (3.0, 231)):
        call(sigma, tokens=tokens)
        sys.modules.pop("wave", None)
        importlib.import_module("wave")
    for model in (ours, theirs):
        with torch.no_grad():
            for parameter in model.unet.parameters():  # as after merging another LoRA
                parameter.data = parameter.data * 1.01
    call(3.0)
    assert compiled.graphs == first
    call(3.0, height=16)
    second = compiled.graphs
    assert first < second <= 2 * first
    for height in (8, 16):
        call(4.0, height=height, tokens=154)
    assert compiled.graphs == second


@pytest.mark.long
def test_a_render_is_that_of_the_blocks_one_by_one(tiny_files: dict[str, Path]) -> None:
    """Through civman's whole loop, with features that change what goes into a block."""
    ours, theirs = (load(tiny_files["sd1"], dtype=torch.float32) for _ in range(2))
    compiled = CompiledRegions(ours.unet, CPU, traced)
    freed = replace(PLAIN, steps=2, freeu=FreeU("v2", 1.3, 1.4, 0.9, 0.2), odd_sizes="a1111")
    found = []

    for recipe in (replace(PLAIN, steps=2), freed):
        pictures = [render(recipe, model, prompt(model, chunks=2))[0].sha256 for model in (ours, theirs)]
        assert pictures[0] == pictures[1]
        found.append(compiled.graphs)

    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name", [name if name == "flux1" else pytest.param(name, marks=pytest.mark.long) for name in tiny_flows.TINY]
)
def test_the_blocks_of_a_transformer_are_compiled(tmp_path: Path, name: str) -> None:
    if name == "hidream":
        pytest.skip("--compile refuses this family, see test_hidream")
    path = tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name))
    ours, theirs = (load_any(path, dtype=torch.float32) for _ in range(2))
    compiled = CompiledRegions(ours.unet, CPU, traced)
    recipe = recipe_for(name, cfg=1.0, steps=2)

    assert drawn(ours, recipe)[1].sha256 == drawn(theirs, recipe)[1].sha256
    assert compiled.graphs > 0


def test_the_environment_names_the_engine(tiny_files: dict[str, Path]) -> None:
    model = load(tiny_files["sd1"], dtype=torch.float32)
    compiled = CompiledRegions(model.unet, CPU, traced)

    eager, ours = environment(CPU).to_facts(), environment(CPU, compiled).to_facts()

    assert (eager["engine"], eager["compiler"]) == ("eager", "")
    assert str(ours["engine"]).startswith("inductor/")
    assert "Python" in str(ours["compiler"])
    assert [each.what for each in differences(eager, ours)] == ["compiler", "engine"]
    earlier = {name: value for name, value in eager.items() if name not in ("engine", "compiler")}
    assert differences(earlier, eager) == ()
    assert str(differences(earlier, ours)[1]) == f"engine: eager for the original, {ours['engine']} for the replay"


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotRender, match="C\\+\\+ compiler") as caught:
        compiler_of(CPU)
    assert caught.value.code == "no-compiler"
    with pytest.raises(CannotRender, match="CUDA devices and CPUs"):
        compiler_of(torch.device("mps"))


@pytest.mark.parametrize(
    "name", [name if name == "flux1" else pytest.param(name, marks=pytest.mark.long) for name in tiny_flows.TINY]
)
def test_a_whole_transformer_is_one_graph(tmp_path: Path, name: str) -> None:
    if name == "hidream":
        pytest.skip("which tokens go to which expert depends on values; --compile refuses this family")
    model = load_any(tiny_flows.write(tmp_path / "tiny.safetensors", name, family_of(name)), dtype=torch.float32)
    recipe = recipe_for(name, cfg=1.0, steps=2)
    _, eager = drawn(model, recipe)  # the first call of some families computes tables of positions
    graphs: list[Any] = []
    torch._dynamo.reset()  # it counts the graphs of all classes together, up to a limit

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    transformer: Any = model.components["transformer"]
    vars(transformer)["forward"] = torch.compile(transformer.forward, backend=backend, fullgraph=True)

    _, ours = drawn(model, recipe)

    assert len(graphs) == 1
    assert ours.sha256 == eager.sha256


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_whole_unet_is_one_graph(tiny_files: dict[str, Path], kind: str) -> None:
    ours, theirs = (load(tiny_files[kind], dtype=torch.float32) for _ in range(2))
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    call = caller(ours.unet, theirs.unet)
    vars(ours.unet)["forward"] = torch.compile(ours.unet.forward, backend=backend, fullgraph=True)
    for sigma in (3.0, 3.0, 5.0):
        call(sigma)

    assert len(graphs) == 1


@pytest.mark.long
def test_the_real_compiler_gives_the_same_bytes_in_every_process(
    tiny_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drawn before, and with kernels from the disk: a render depends on its recipe alone."""
    monkeypatch.delenv("CXX")
    try:
        compiler_of(CPU)
    except CannotRender:
        pytest.skip("there is no C++ compiler")
    script = f"""
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_run import PLAIN, prompt
from civman.diffusion.compiled_regions import CompiledRegions
from civman.diffusion.loader import load
from civman.diffusion.run_recipe import render
torch.set_num_threads(1)
model = load(Path({str(tiny_files["sd1"])!r}), dtype=torch.float32)
def draw(tokens):
    return render(replace(PLAIN, steps=2), model, prompt(model, chunks=tokens))[0]
eager = draw(1)
CompiledRegions(model.unet, torch.device("cpu"))
order = (1, 2) if sys.argv[1] == "short first" else (2, 1)
made = {{tokens: draw(tokens) for tokens in order}}
print(made[1].sha256, made[2].sha256, abs(made[1].pixels.astype(int) - eager.pixels.astype(int)).max())
"""
    environ = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = [
        subprocess.run(
            [sys.executable, "-c", script, order], env=environ, check=True, capture_output=True, text=True
        ).stdout.split()
        for order in ("short first", "long first")
    ]  # fmt: skip

    assert told[0] == told[1]
    assert int(told[0][2]) <= 1
