# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""torch.compile takes the UNet as one graph, and does not compile it again for nothing."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.diffusion.loader import load

pytestmark = pytest.mark.long  # tracing a UNet takes 5 s and more


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_unet_is_one_graph_whatever_is_imported_between_two_calls(tiny_files: dict[str, Path], kind: str) -> None:
    unet = load(tiny_files[kind], dtype=torch.float32).unet
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(unet, backend=backend, fullgraph=True)
    more: dict[str, Any] = {}
    if kind == "sdxl":
        width = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
        more["added_cond_kwargs"] = {"text_embeds": torch.zeros(2, width), "time_ids": torch.zeros(2, 6)}

    def call(sigma: float) -> Any:
        context = torch.zeros(2, 77, unet.config.cross_attention_dim)
        inputs = torch.ones(2, 4, 8, 8), torch.tensor(sigma)
        with torch.no_grad():
            return [
                run(*inputs, encoder_hidden_states=context, return_dict=False, **more)[0] for run in (compiled, unet)
            ]

    for sigma in (3.0, 3.0, 5.0):
        ours, eager = call(sigma)
        assert torch.equal(ours, eager)
        sys.modules.pop("wave", None)
        importlib.import_module("wave")
    with torch.no_grad():
        for parameter in unet.parameters():  # as after merging another LoRA
            parameter.data = parameter.data * 1.01
    call(3.0)

    assert len(graphs) == 1
