"""Adapters are written as trainers write them, and the checkpoint says what its shapes do not."""

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from civman.diffusion.checkpoint_names import VAE  # noqa: E402
from civman.diffusion.families.registry import family_of  # noqa: E402
from civman.diffusion.unet_configs import component_configs  # noqa: E402
from civman.domain.files.header import Header  # noqa: E402
from civman.store.read_header import read_header  # noqa: E402
from training import adapters, layout  # noqa: E402
from training.evaluate_adapters import changes  # noqa: E402
from training.export import write_safetensors  # noqa: E402

MODELS = Path(__file__).parents[2] / "civman" / "demo" / "models"


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**layout.UNET).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("style", ["outline", "stripes", "night"])
def test_what_is_written_is_the_change_that_was_trained(tmp_path: Path, style: str) -> None:
    about = adapters.STYLES[style]
    adapted = adapters.adapt(unet(), about.kind, has_convolutions=about.has_convolutions)
    for module in adapted.values():
        for parameter in module.delta.parameters():
            parameter.data.normal_()

    tensors = adapters.kohya_tensors(adapted, about.strength)
    write_safetensors(tmp_path / "a.safetensors", tensors, {})

    written = changes(tmp_path / "a.safetensors")
    assert len(written) == len(adapted)
    for name, module in adapted.items():
        expected = about.strength * module.delta()
        found = written["lora_unet_" + name.replace(".", "_")]
        assert torch.allclose(found.view_as(expected), expected, rtol=0.01, atol=0.05)


def test_a_run_goes_on_from_what_was_written() -> None:
    first, second = (adapters.adapt(unet(), "lora", has_convolutions=True) for _ in range(2))
    for module in first.values():
        module.delta.up.data.normal_()

    adapters.take_up(second, adapters.kohya_tensors(first, 1.25))

    for name, module in first.items():
        assert torch.allclose(second[name].delta(), module.delta(), rtol=0.01, atol=0.05)


def test_an_adapted_layer_that_has_learned_nothing_changes_nothing() -> None:
    plain = unet()
    noisy, step, words = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 48)

    before = plain(noisy, step, encoder_hidden_states=words).sample
    adapters.adapt(plain, "lora", has_convolutions=True)
    after = plain(noisy, step, encoder_hidden_states=words).sample

    assert torch.allclose(before, after, atol=1e-5)


class Spelled:
    """Words whose rows are their letters' places in the alphabet; "s" stands for "shape"."""

    other = 30

    @property
    def tokenizer(self) -> "Spelled":
        return self

    def ids(self, _text: str) -> list[int]:
        return [19, 20]

    def small(self, token: int) -> int:
        return token

    def rows(self, captions: list[str], _rng: random.Random, *, strays: float) -> Any:
        return torch.tensor([[ord(letter) - 96 for letter in caption] for caption in captions])


def test_each_unnamed_word_becomes_all_trained_rows_and_the_length_stays() -> None:
    inverted: Any = adapters.InvertedWords(Spelled())  # type: ignore[arg-type]

    rows = inverted.rows(["abscdef", "abtcdef"], random.Random(0), strays=0)

    assert rows.tolist() == [[1, 2, 31, 32, 33, 3, 4]] * 2


def test_the_checkpoint_says_itself_what_no_shape_tells() -> None:
    header: Header = read_header(MODELS / "tiny-shapes.safetensors")
    vae = {name.removeprefix(VAE): shape for name, shape in header.shapes.items() if name.startswith(VAE)}

    found = component_configs(family_of(header.shapes), header.shapes, vae, header.metadata, {})

    for part, expected in (("unet", layout.UNET), ("vae", layout.VAE), ("text_encoder", layout.TEXT)):
        known = {key: value for key, value in expected.items() if key in found[part] and key != "sample_size"}
        assert {key: found[part][key] for key in known} == known
