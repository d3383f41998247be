from pathlib import Path
from typing import Any

import headers
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from training import export, layout  # noqa: E402 (needs torch)


def networks() -> tuple[Any, Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**layout.TEXT))
    return UNet2DConditionModel(**layout.UNET), AutoencoderKL(**layout.VAE), text


def test_bytes_depend_on_content_and_not_on_the_order_it_came_in(tmp_path: Path) -> None:
    one, two = torch.arange(6).reshape(2, 3).half(), torch.ones(4)

    export.write_safetensors(tmp_path / "a", {"one": one, "two": two}, {"x": "1", "y": "2"})
    export.write_safetensors(tmp_path / "b", {"two": two, "one": one}, {"y": "2", "x": "1"})

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_written_is_read_back_by_the_reference_reader(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = {"b": torch.randn(3, 2).half(), "a": torch.arange(5), "scalar": torch.tensor(4.0)}

    size = export.write_safetensors(tmp_path / "file.safetensors", tensors, {"k": "v"})

    assert size == (tmp_path / "file.safetensors").stat().st_size
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v"}
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())


@pytest.mark.parametrize("name", ["own/ckpt-sd15", "ckpt-sd15"])
def test_keys_are_those_of_a_real_checkpoint_but_for_ten_text_layers(name: str) -> None:
    real = {key: what for key, what in headers.case(name)["tensors"].items() if not key.startswith("model_ema.")}

    ours = export.checkpoint(*networks())

    deeper = {key for key in real if any(f"encoder.layers.{n}." in key for n in range(2, 12))}
    assert set(ours) == set(real) - deeper
    assert {k for k, v in ours.items() if v.ndim != len(real[k][1])} == set()
    names = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    if not name.startswith("own/"):  # those have one type throughout
        assert {k for k, v in ours.items() if names[v.dtype] != real[k][0]} == set()


def test_every_parameter_is_in_the_file_under_a_name_of_its_own() -> None:
    unet, vae, text = networks()

    ours = export.checkpoint(unet, vae, text)

    parameters = sum(p.numel() for part in (unet, vae, text) for p in part.parameters())
    buffers = sum(ours[name].numel() for name in export.schedule()) + 77
    assert sum(v.numel() for v in ours.values()) == parameters + buffers
