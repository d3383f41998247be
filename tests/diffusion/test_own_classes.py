# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The classes that are quick to import compute the bits of diffusers' and transformers' own ones."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.diffusion.loader import LoadedModel, load


@pytest.fixture(params=["sd1", "sd2", "sdxl", "refiner", "sd1-inpaint"])
def both(tiny_files: dict[str, Path], request: pytest.FixtureRequest) -> tuple[LoadedModel, LoadedModel]:
    path = tiny_files[request.param]
    return tuple(load(path, dtype=torch.float32, for_diffusers=theirs) for theirs in (False, True))  # type: ignore[return-value]


def test_parameters_and_modules_have_the_same_names(both: tuple[LoadedModel, LoadedModel]) -> None:
    ours, theirs = both

    assert ours.components.keys() == theirs.components.keys()
    for name, component in ours.components.items():
        other = theirs.components[name]
        assert list(component.state_dict()) == list(other.state_dict())
        named = {key: type(module).__name__ for key, module in other.named_modules() if key}
        found = {key: type(module).__name__ for key, module in component.named_modules() if key}
        if name.startswith("text"):  # their activation is a module; adapters change only layers with parameters
            weighted = {key.rpartition(".")[0] for key in other.state_dict()}
            assert {key: found[key] for key in weighted} == {key: named[key] for key in weighted}
        else:
            assert found == named


def test_every_part_computes_the_same_bits(both: tuple[LoadedModel, LoadedModel]) -> None:
    ours, theirs = both
    generator = torch.Generator().manual_seed(3)
    config = ours.configs["unet"]
    channels, width = int(config["in_channels"]), int(config["cross_attention_dim"])
    more: dict[str, Any] = {}
    if ours.family.is_xl:
        sizes = 5 if ours.family.needs_picture else 6
        pooled = ours.unet.add_embedding.linear_1.in_features - sizes * int(config["addition_time_embed_dim"])
        more["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.rand(2, sizes, generator=generator) * 64,
        }
    asked = torch.randn(2, channels, 8, 12, generator=generator), torch.tensor(701.5)
    context = torch.randn(2, 77, width, generator=generator)
    words = min(int(config["vocab_size"]) for name, config in ours.configs.items() if name.startswith("text"))
    ids = torch.randint(0, words, (2, 77), generator=generator)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1

    def results(model: LoadedModel) -> list[Any]:
        found = [model.unet(*asked, encoder_hidden_states=context, return_dict=False, **more)[0]]
        for name, encoder in model.components.items():
            if name.startswith("text"):
                states = encoder(ids, output_hidden_states=True)
                found += [*states.hidden_states, states.last_hidden_state]
        return [*found, model.vae.decode(latents).sample, model.vae.encode(pixels).latent_dist.mean]

    with torch.no_grad():
        first, second = results(ours), results(theirs)
    assert len(first) == len(second)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_loading_imports_neither_diffusers_nor_transformers(tiny_files: dict[str, Path]) -> None:
    script = f"""
import sys
from pathlib import Path
from civman.diffusion.loader import load
model = load(Path({str(tiny_files["sdxl"])!r}))
found = {{"diffusers", "transformers", "accelerate", "huggingface_hub", "torch._dynamo"}} & sys.modules.keys()
assert not found, found
import diffusers
real = diffusers.UNet2DConditionModel
assert not isinstance(model.unet, real) and real.__module__.startswith("diffusers.")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
