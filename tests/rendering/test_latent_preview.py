# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""Previews while an image is computed: they look like the image, and the image does not depend on them."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image

import civman.demo
from civman.diffusion.families.registry import Family
from civman.diffusion.families.sd1 import SD1
from civman.diffusion.families.sd2 import SD2
from civman.diffusion.families.sdxl import SDXL
from civman.diffusion.latent_preview import preview_of
from civman.diffusion.loader import load
from civman.domain.events import Event, Step
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import RenderRequest
from civman.library import Library

SHAPES = Path(civman.demo.__file__).parent / "models" / "tiny-shapes.safetensors"


def colours(image: Image.Image, side: int = 8) -> Any:
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX), dtype=float)


def test_a_preview_looks_like_the_image_and_leaves_its_bytes_alone(civman: Any, online: Any, library: Library) -> None:
    assert civman("download", "91001", "--quiet").code == 0
    asked = RenderRequest("91001", prompt="a large red circle on a blue background", steps=6, guidance_scale=4.0,
                          seed=1, count=2, batch_size=2, sampler="DPM++ 2M")  # fmt: skip
    shown: list[tuple[int, bytes]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            assert event.preview is not None
            shown.append((event.step, event.preview()))

    planned, machine = library.plan(asked), Machine("cpu")
    plain = library.render(planned, machine=machine)
    watched = library.render(planned, machine=machine, on_event=watch)

    assert [one.record.pixel_sha256 for one in plain] == [one.record.pixel_sha256 for one in watched]
    assert [Path(one.path).read_bytes() for one in plain] == [Path(one.path).read_bytes() for one in watched]
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5, 6]
    final = colours(Image.open(plain[0].path))
    far = [float(np.abs(colours(Image.open(io.BytesIO(data))) - final).mean()) for _, data in shown]
    assert far[-1] < far[0]
    last = colours(Image.open(io.BytesIO(shown[-1][1])))
    assert np.corrcoef(last.ravel(), final.ravel())[0, 1] > 0.95
    assert far[-1] < 25
    other = colours(Image.open(plain[1].path))
    assert np.abs(last - final).mean() < np.abs(last - other).mean(), "the first image is shown"
    assert Image.open(io.BytesIO(shown[-1][1])).format == "JPEG"
    assert len(shown[-1][1]) < 40_000


@pytest.mark.parametrize(("family", "matrix"), [
    (SD1, [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]),
    (SD2, [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]),
    (SDXL, [[0.3448, 0.4168, 0.4395], [-0.1953, -0.029, 0.025], [0.1074, 0.0886, -0.0163],
                   [-0.373, -0.2499, -0.2088]]),
])  # fmt: skip
def test_the_usual_vaes_need_no_decoding(family: Family, matrix: list[list[float]]) -> None:
    config = SimpleNamespace(block_out_channels=[128, 256, 512, 512])
    model: Any = SimpleNamespace(vae=SimpleNamespace(config=config), family=family)  # nothing here can decode
    for pixel in ([0.0, 0.0, 0.0, 0.0], [1.0, -0.5, 0.3, 0.2], [-1.2, 0.4, 0.1, 0.6]):
        latents = torch.tensor(pixel)[None, :, None, None].expand(1, 4, 8, 8)

        image = Image.open(io.BytesIO(preview_of(model, latents)()))

        # the product written out, in the range of a byte
        wanted = [
            255 * min(1, max(0, 0.5 + 0.5 * sum(x * row[c] for x, row in zip(pixel, matrix, strict=True))))
            for c in range(3)
        ]
        assert np.abs(np.asarray(image).mean(axis=(0, 1)) - wanted).max() < 3


@pytest.mark.parametrize(("shape", "size"), [((96, 64), (512, 768)), ((4, 8), (64, 32)), ((64, 64), (512, 512))])
def test_a_preview_has_the_images_proportions_and_a_bounded_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    model = load(SHAPES, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()

    data = preview_of(model, torch.randn(2, 4, *shape, generator=generator))()

    image = Image.open(io.BytesIO(data))
    assert max(image.size) <= 512
    assert abs(image.width / image.height - size[0] / size[1]) < 0.02
    assert torch.equal(torch.get_rng_state(), before)
