# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""ControlNets stored as changes to a checkpoint: equal to the ControlNet whose weights are added up in the test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import tiny_models
from PIL import Image
from safetensors.torch import load_file, save_file
from test_controlnet import MODEL, PICTURE, network, of_diffusers, original_name, ours, picture, recipe_with

from civman.diffusion.control_lora_shapes import require_lora_fits
from civman.diffusion.control_models import load_control
from civman.diffusion.loader import LoadedModel, load
from civman.domain.recipes.control import ControlUse
from civman.errors import Incompatible

CPU = torch.device("cpu")
HALF = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
RANK = 3


def names_of(module: Any, kind: str) -> dict[str, str]:
    """Parameter of diffusers' ControlNet → its original name."""
    prefixes = tiny_models.unet_prefixes(tiny_models.KINDS[kind]["unet"])
    return {name: original_name(name, prefixes) for name, _ in module.named_parameters()}


def control_lora(checkpoint: Path, kind: str, tail: str = "") -> tuple[Any, dict[str, Any]]:
    """An explicit ControlNet with base + up @ down, and the tensors of the ControlLoRA that it stands for."""
    module, base = network(kind), {name: value.float() for name, value in load_file(checkpoint).items()}
    torch.manual_seed(11)
    state, expected = {"lora_controlnet": torch.zeros(0)}, {}
    for name, plain in names_of(module, kind).items():
        own = module.get_parameter(name).detach()
        below = base.get(f"model.diffusion_model.{plain}")
        if below is None or not plain.startswith(HALF):  # the layers that only a ControlNet has
            state[plain] = expected[name] = own
        elif plain.endswith(".weight") and own.ndim > 1 and "time_embed" not in plain:
            up, down = torch.randn(own.shape[0], RANK) * 0.1, torch.randn(RANK, own[0].numel()) * 0.1
            conv = own.ndim == 4
            stem = plain.removesuffix(".weight")
            state[f"{stem}.up{tail}"] = up[:, :, None, None].contiguous() if conv else up
            state[f"{stem}.down{tail}"] = down.reshape(RANK, *own.shape[1:])
            expected[name] = below.reshape(own.shape) + (up @ down).reshape(own.shape)
        elif plain.endswith(".bias"):
            state[plain] = expected[name] = own
        else:  # neither changed nor replaced
            expected[name] = below.reshape(own.shape)
    module.load_state_dict(expected)
    return module, state


def of_file(state: dict[str, Any], model: LoadedModel, path: Path) -> Any:
    save_file(state, path)
    return load_control(path, model, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("tail", ["", ".weight"])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_control_lora_is_the_checkpoint_with_its_changes(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str, tail: str
) -> None:
    model, (explicit, state) = load(tiny_files[kind], dtype=torch.float32), control_lora(tiny_files[kind], kind, tail)

    found = of_file(state, model, tmp_path / "lora.safetensors").module

    expected = dict(explicit.named_parameters())
    assert {name for name, _ in found.named_parameters()} == expected.keys()
    for name, value in found.named_parameters():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_image_with_a_control_lora_equals_that_of_the_explicit_controlnet(
    tiny_files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model, (explicit, state) = load(tiny_files[kind], dtype=torch.float32), control_lora(tiny_files[kind], kind)
    recipe, pixels = recipe_with(ControlUse(MODEL, PICTURE, 0.7), sampler="Euler", steps=3), picture()

    found = ours(model, recipe, [of_file(state, model, tmp_path / "lora.safetensors")], [pixels])

    expected = of_diffusers(
        model, kind, explicit, Image.fromarray(pixels), num_inference_steps=3, controlnet_conditioning_scale=0.7
    )
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4
    assert np.abs(found - ours(model, recipe_with(sampler="Euler", steps=3), [], [])).max() > 2 / 255


def test_a_difference_is_added_to_the_checkpoint(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, module = load(tiny_files["sd1"], dtype=torch.float32), network("sd1")
    base = load_file(tiny_files["sd1"])
    names = names_of(module, "sd1")
    state = {"difference": torch.zeros(0)} | {
        f"control_model.{plain}": module.get_parameter(name).detach() for name, plain in names.items()
    }

    found = of_file(state, model, tmp_path / "difference.safetensors").module

    for name, value in found.named_parameters():
        own, below = module.get_parameter(name).detach(), base.get(f"model.diffusion_model.{names[name]}")
        shared = below is not None and names[name].startswith(HALF)
        torch.testing.assert_close(value, own + below.float().reshape(own.shape) if shared else own)


def shapes_of(tensors: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def test_a_control_lora_of_another_base_does_not_fit(tiny_files: dict[str, Path]) -> None:
    bases = {kind: shapes_of(load_file(tiny_files[kind])) for kind in ("sd1", "sd2", "sdxl")}
    for kind in bases:
        lora = shapes_of(control_lora(tiny_files[kind], kind)[1])
        for base, checkpoint in bases.items():
            if base == kind:
                require_lora_fits(checkpoint, lora, "a")
            else:
                with pytest.raises(Incompatible, match=r"of its .* changes have other shapes"):
                    require_lora_fits(checkpoint, lora, "a")
