# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Recorded calls of a network, with a recorder that computes on the CPU into the same memory each time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from test_run import PLAIN, prompt

from civman.diffusion.graphed_calls import CudaRecorder, GraphedCalls, Run
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.run_recipe import render


class HostRecorder:
    """Computes again what was recorded, into the memory of the first results; `error` is added to them."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.replays = 0

    def record(self, run: Run) -> tuple[Any, Callable[[], None]]:
        results = run()

        def replay() -> None:
            self.replays += 1
            for kept, new in zip(results, run(), strict=True):
                kept.copy_(new + self.error)

        return results, replay


@pytest.fixture
def pair(tiny_files: dict[str, Path]) -> tuple[LoadedModel, LoadedModel]:
    first, second = (load(tiny_files["sd1"], dtype=torch.float32) for _ in range(2))
    return first, second


def test_an_image_is_the_same_and_each_shape_is_recorded_once(pair: tuple[LoadedModel, LoadedModel]) -> None:
    ours, theirs = pair
    recorder, refusals = HostRecorder(), []
    calls = GraphedCalls(ours.unet, recorder, refusals.append)

    for chunks in (1, 2, 1):
        pictures = [render(PLAIN, model, prompt(model, chunks=chunks))[0].sha256 for model in (ours, theirs)]
        assert pictures[0] == pictures[1]

    assert refusals == []
    # prompts of equal length are one call, and prompts of different lengths are two, one of them the first one's half
    assert calls.recorded == 3
    assert recorder.replays > calls.recorded


def test_other_weights_are_recorded_again(pair: tuple[LoadedModel, LoadedModel]) -> None:
    ours, theirs = pair
    calls = GraphedCalls(ours.unet, HostRecorder(), pytest.fail)
    render(PLAIN, ours, prompt(ours))
    for model in pair:
        for parameter in model.unet.parameters():
            parameter.data = parameter.data * 1.01

    pictures = [render(PLAIN, model, prompt(model))[0].sha256 for model in (ours, theirs)]

    assert pictures[0] == pictures[1]
    assert calls.recorded == 2


def test_a_graph_that_differs_is_refused_before_it_is_used(pair: tuple[LoadedModel, LoadedModel]) -> None:
    ours, theirs = pair
    refusals: list[str] = []
    calls = GraphedCalls(ours.unet, HostRecorder(error=1e-6), refusals.append)

    pictures = [render(PLAIN, model, prompt(model))[0].sha256 for model in (ours, theirs)]

    assert pictures[0] == pictures[1]
    assert not calls.is_on
    assert len(refusals) == 1
    assert "differs" in refusals[0]


def test_what_cannot_be_recorded_is_computed_without(pair: tuple[LoadedModel, LoadedModel]) -> None:
    class Broken:
        def record(self, _run: Run) -> tuple[Any, Callable[[], None]]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    ours, theirs = pair
    refusals: list[str] = []
    GraphedCalls(ours.unet, Broken(), refusals.append)

    pictures = [render(PLAIN, model, prompt(model))[0].sha256 for model in (ours, theirs)]

    assert pictures[0] == pictures[1]
    assert refusals == ["operation not permitted when stream is capturing"]


def test_calls_with_hooks_inside_are_not_recorded(pair: tuple[LoadedModel, LoadedModel]) -> None:
    ours, _ = pair
    calls = GraphedCalls(ours.unet, HostRecorder(), pytest.fail)
    hook = ours.unet.mid_block.register_forward_hook(lambda *_: None)

    render(PLAIN, ours, prompt(ours))

    assert calls.recorded == 0
    hook.remove()
    render(replace(PLAIN, odd_sizes="a1111"), ours, prompt(ours))
    assert calls.recorded == 0
    render(PLAIN, ours, prompt(ours))
    assert calls.recorded == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_a_graph_gives_the_same_image(tiny_files: dict[str, Path]) -> None:
    ours, theirs = (load(tiny_files["sd1"], device="cuda", dtype=torch.float16) for _ in range(2))
    calls = GraphedCalls(ours.unet, CudaRecorder(torch.device("cuda")), pytest.fail)

    pictures = [render(PLAIN, model, prompt(model))[0].sha256 for model in (ours, theirs)]

    assert pictures[0] == pictures[1]
    assert calls.recorded > 0
