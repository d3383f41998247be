"""The trained ControlNet: its file has the layout of published ones, and pictures obey the edges that it is given."""

import random
from pathlib import Path
from typing import Any

import headers
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from civman.diffusion.controlnet import load_controlnet  # noqa: E402
from civman.diffusion.loader import LoadedModel, load  # noqa: E402
from training import export, layout  # noqa: E402
from training.control import HINT_WIDTHS, colours_only, edge_map, network  # noqa: E402
from training.evaluate_control import obeys, trials  # noqa: E402
from training.judge import overlap  # noqa: E402
from training.scenes import COLOURS, Scene, draw, held_out_scenes  # noqa: E402

MODELS = Path(__file__).parents[2] / "civman" / "demo" / "models"

CHECKPOINT = MODELS / "tiny-shapes.safetensors"


def unet() -> Any:
    return diffusers.UNet2DConditionModel(**layout.UNET)


def loaded_from(file: Path, model: LoadedModel) -> Any:
    return load_controlnet(file, model, device=torch.device("cpu"), dtype=torch.float32)


def test_keys_and_ranks_are_those_of_a_published_controlnet() -> None:
    real = headers.case("own/controlnet-sd1-ldm")["tensors"]
    prefix = "" if any(name.startswith("control_model.") for name in real) else "control_model."

    ours = export.control_tensors(network(unet()))

    assert {name: tensor.ndim for name, tensor in ours.items()} == {
        prefix + name: len(shape) for name, (_, shape) in real.items()
    }


def test_what_is_written_is_loaded_with_every_tensor(tmp_path: Path) -> None:
    control = network(unet())
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter)
    file = tmp_path / "edges.safetensors"

    export.write_safetensors(file, export.control_tensors(control), {})
    loaded = loaded_from(file, load(CHECKPOINT)).module

    assert loaded.config.conditioning_embedding_out_channels == list(HINT_WIDTHS)
    for name, value in control.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name


def test_it_starts_as_the_unets_encoder_and_adds_nothing() -> None:
    plain = unet()
    noisy, step, words = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 48)

    control = network(plain)
    skips, middle = control(noisy, step, words, torch.rand(1, 3, 64, 64), return_dict=False)

    assert torch.equal(control.down_blocks[1].resnets[0].conv1.weight, plain.down_blocks[1].resnets[0].conv1.weight)
    assert not any(each.any() for each in (*skips, middle))


def test_edges_show_no_colour_of_a_scene() -> None:
    maps = [
        edge_map(draw(Scene("large", colour, "square", "white"), random.Random(3)))
        for colour in COLOURS if colour not in ("white", "yellow")
    ]  # fmt: skip

    assert all(np.array_equal(each, maps[0]) for each in maps)
    assert set(np.unique(maps[0])) == {0, 255}


def test_the_caption_names_the_colours_and_nothing_else() -> None:
    assert colours_only(Scene("three", "red", "circle", "orange", "left")) == "a red shape on an orange background"


def test_the_overlap_of_two_pictures_is_that_of_their_shapes() -> None:
    one = draw(Scene("large", "red", "circle", "white"), random.Random(4))
    recoloured = draw(Scene("large", "yellow", "circle", "black"), random.Random(4))
    elsewhere = draw(Scene("small", "red", "circle", "white", "top left"), random.Random(4))

    assert overlap(one, recoloured) > 0.97
    assert overlap(one, elsewhere) < 0.5
    assert overlap(one, np.ones_like(one)) == 0


def test_the_file_is_a_controlnet_for_the_checkpoint() -> None:
    model = load(CHECKPOINT, dtype=torch.float32)
    control = loaded_from(MODELS / "tiny-edges.safetensors", model).module

    assert all(parameter.isfinite().all() for parameter in control.parameters())
    moved = control.down_blocks[0].resnets[0].conv1.weight - model.unet.down_blocks[0].resnets[0].conv1.weight
    assert 0 < moved.norm() < model.unet.down_blocks[0].resnets[0].conv1.weight.norm()


def test_pictures_show_the_shapes_of_the_edges_where_the_edges_are() -> None:
    scenes = [next(s for s in held_out_scenes() if s.kind == kind) for kind in ("small", "large", "two", "three")]

    made = trials(MODELS, scenes)

    assert sum(obeys(each.scene, each.shown, each.controlled) for each in made) >= 3
    assert sum(obeys(each.scene, each.shown, each.free) for each in made) == 0
