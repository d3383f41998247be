"""The second model: its file has the layout of Stable Diffusion 3.5, and civman computes what was trained."""

import random
from pathlib import Path
from typing import Any

import headers
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import civman.demo  # noqa: E402
from civman.diffusion.flow_text import FlowText  # noqa: E402
from civman.diffusion.open_model import load  # noqa: E402
from civman.prompts.emphasis import parse  # noqa: E402
from training import flow, flow_export, layout  # noqa: E402
from training.export import write_safetensors  # noqa: E402
from training.finished import finished  # noqa: E402
from training.release import flow_metadata  # noqa: E402
from training.scenes import draw, every_scene  # noqa: E402
from training.words import Words  # noqa: E402

CAPTION = "two green squares on an orange background"
LAST = layout.FLOW["num_layers"] - 1


@pytest.fixture(scope="module")
def trained() -> Any:
    torch.manual_seed(1)
    net = flow.networks().eval().requires_grad_(requires_grad=False)
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn_like(parameter)  # also where training starts at zero
    return net


@pytest.fixture(scope="module")
def vae() -> Any:
    return finished(Path(civman.demo.__file__).parent / "models" / "tiny-shapes.safetensors").vae


@pytest.fixture(scope="module")
def file(trained: Any, vae: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "flow.safetensors"
    write_safetensors(path, flow_export.checkpoint(trained.transformer, trained.texts, vae), flow_metadata())
    return path


def test_keys_and_ranks_are_those_of_a_published_transformer(trained: Any) -> None:
    real = headers.case("own/orig-sd35l")["tensors"]
    prefix = "model.diffusion_model." if any(name.startswith("model.diffusion_model.") for name in real) else ""
    deepest = max(int(name.split("joint_blocks.")[1].split(".")[0]) for name in real if "joint_blocks." in name)

    ours = {
        prefix + name.replace(f"joint_blocks.{LAST}.", f"joint_blocks.{deepest}."): value.ndim
        for name, value in flow_export.transformer_tensors(trained.transformer).items()
    }

    wanted = {
        name: len(shape) for name, (_, shape) in real.items()
        if name.startswith(f"{prefix}joint_blocks.{deepest}.") or "joint_blocks." not in name
        or int(name.split("joint_blocks.")[1].split(".")[0]) < LAST
    }  # fmt: skip
    assert ours == wanted


def test_civman_loads_every_tensor_into_its_place(trained: Any, file: Path) -> None:
    model = load(file, dtype=torch.float32)

    assert {name.rpartition(".")[2] for name in model.unused} == {"position_ids"}
    assert model.components["text_encoder"].config.num_attention_heads == 4
    transformer = model.components["transformer"]
    loaded = {**transformer.state_dict(), **dict(transformer.named_buffers())}
    for name, value in trained.transformer.state_dict().items():
        assert torch.equal(loaded[name], value.half().float()), name


def test_civman_encodes_a_caption_as_it_was_trained(trained: Any, file: Path) -> None:
    model = load(file, dtype=torch.float32)

    encoded = model.family.encode(FlowText(model.components, torch.device("cpu")), parse(CAPTION))
    states, pooled = trained.texts([CAPTION], 0, strays=0, tokens=77)
    short, pooled_again = trained.texts([CAPTION], 0, strays=0, tokens=flow.SHORT)

    assert torch.allclose(encoded.context, states, atol=0.02)
    assert torch.allclose(encoded.pooled, pooled, atol=0.02)
    assert torch.allclose(short, states[:, : flow.SHORT], atol=1e-5)
    assert torch.allclose(pooled_again, pooled, atol=1e-5)


def test_the_folded_autoencoder_has_the_latents_of_stable_diffusion_3(vae: Any) -> None:
    rng = random.Random(4)
    drawn = [draw(scene, rng) for scene in every_scene()[::60]]
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) * 2 - 1

    folded = flow_export.folded(vae)
    old, new = vae.encode(pictures).latent_dist, folded.encode(pictures).latent_dist

    scale, shift = layout.FLOW_VAE["scaling_factor"], layout.FLOW_VAE["shift_factor"]
    assert torch.allclose((new.mean - shift) * scale, old.mean * layout.SCALE, atol=1e-4)
    assert torch.allclose(new.std * scale, old.std * layout.SCALE, rtol=1e-3)
    # a bias has moved past the padding, so the borders differ a little
    assert (vae.decode(old.mean).sample - folded.decode(new.mean).sample).abs().mean() < 0.003


def test_a_style_is_written_as_diffusers_trainers_do(trained: Any) -> None:
    real = headers.case("own/peft-sd3m-lora")["tensors"]
    places = [name for name, _ in trained.transformer.named_modules() if flow.STYLED.match(name)]

    adapted = {name: flow.put_change(flow.transformer(), name, "lora", 2) for name in places}
    tensors = flow.peft_tensors(adapted, 1.25)

    layers = {name for name in real if any(f"transformer_blocks.{number}." in name for number in range(LAST + 1))}
    assert layers <= set(tensors)
    assert len(places) == 6 * (LAST + 1)
    assert all(not value.any() for name, value in tensors.items() if name.endswith("lora_B.weight"))


def test_short_captions_fit_the_tokens_that_most_batches_see() -> None:
    rng, words = random.Random(3), Words()
    scenes = flow.training_scenes(300, rng)

    lengths = [len(words.tokenizer.ids(flow.short_caption(scene, rng))) for scene in scenes]

    assert max(lengths) + 2 <= flow.SHORT
