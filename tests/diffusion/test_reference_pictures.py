# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""IP-Adapters: encoders and preprocessing equal transformers', images equal those of diffusers' own pipelines."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import ip_adapter_files as files
from PIL import Image
from test_run import PLAIN, picture, prompt
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.reference_pictures import Reference, encode_reference, load_ip_adapter
from civman.diffusion.run_recipe import iterate
from civman.diffusion.vision_encoder import encoder_input, load_vision_encoder
from civman.domain.digests import Sha256
from civman.domain.recipes.reference import ReferenceUse
from civman.errors import CannotRender

CPU, SINGLE = torch.device("cpu"), torch.float32
USE = ReferenceUse(Sha256("a" * 64), Sha256("b" * 64), Sha256("c" * 64))
BASES = ("sd1", "sdxl")


@pytest.mark.parametrize(
    "size", [(64, 64), (100, 64), (64, 100), (300, 199), (57, 40), (40, 57), (1024, 333), (56, 56)]
)
def test_the_encoders_input_has_transformers_numbers(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(4).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    for side in (56, 224):
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

        expected = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values

        torch.testing.assert_close(encoder_input(pixels, side), expected, rtol=0, atol=2e-6)


class OpenClip(nn.Module):
    """OpenCLIP's vision transformer, as its paper and code describe it, on torch's own attention."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.state = {name.removeprefix("visual."): value for name, value in state.items()}

    def forward(self, pixels: Any) -> tuple[Any, Any]:
        state, width, heads = self.state, files.WIDTH, files.WIDTH // 64
        x = nn.functional.conv2d(pixels, state["conv1.weight"], stride=14).flatten(2).transpose(1, 2)
        x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], dim=1) + state["positional_embedding"]
        x, outputs = self._norm(x, "ln_pre"), []
        layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer."))
        for number in range(layers):
            block = f"transformer.resblocks.{number}"
            attention = nn.MultiheadAttention(width, heads, batch_first=True)
            names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            attention.load_state_dict({name: state[f"{block}.attn.{name}"] for name in names})
            outputs.append(x)
            normed = self._norm(x, f"{block}.ln_1")
            x = x + attention(normed, normed, normed, need_weights=False)[0]
            inner = self._linear(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            x = x + self._linear(nn.functional.gelu(inner), f"{block}.mlp.c_proj")
        return self._norm(x[:, 0], "ln_post") @ state["proj"], outputs[-1]

    def _norm(self, x: Any, name: str) -> Any:
        return nn.functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _linear(self, x: Any, name: str) -> Any:
        return nn.functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def test_both_layouts_of_an_encoder_compute_what_their_authors_do(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    theirs = files.encoder()
    inputs = torch.randn(2, 3, files.SIDE, files.SIDE, generator=torch.Generator().manual_seed(1))
    paths = {
        layout: files.write_encoder(theirs, tmp_path / f"{layout}.safetensors", layout)
        for layout in ("transformers", "open_clip")
    }

    with torch.no_grad():
        expected = theirs(inputs, output_hidden_states=True)
        embedding, second_last = OpenClip(load_file(paths["open_clip"]))(inputs)
        for path in paths.values():
            found = load_vision_encoder(path, device=CPU, dtype=SINGLE)
            torch.testing.assert_close(found.embedding(inputs), expected.image_embeds)
            torch.testing.assert_close(found.patches(inputs), expected.hidden_states[-2])
    torch.testing.assert_close(expected.image_embeds, embedding, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected.hidden_states[-2], second_last, rtol=1e-4, atol=1e-4)


def test_an_incomplete_encoder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(files.write_encoder(files.encoder(), tmp_path / "whole.safetensors", "open_clip"))
    for lost, says in (("visual.ln_pre.bias", "lacks the tensor"), ("visual.proj", "not a CLIP vision encoder")):
        save_file({name: value for name, value in whole.items() if name != lost}, tmp_path / "part.safetensors")
        with pytest.raises(CannotRender, match=says):
            load_vision_encoder(tmp_path / "part.safetensors", device=CPU, dtype=SINGLE)


def loaded(state: files.State, pixels: Any, folder: Path, layout: str = "safetensors", name: str = "it") -> Reference:
    """The reference that civman makes of an adapter's file, an encoder's file and a picture."""
    path = files.write_encoder(files.encoder(), folder / "encoder.safetensors")
    encoder = load_vision_encoder(path, device=CPU, dtype=SINGLE)
    made = load_ip_adapter(files.write(state, folder / f"{name}.safetensors", layout), name, device=CPU, dtype=SINGLE)
    return encode_reference(made, encoder, encoder_input(pixels, files.SIDE))


def ours(model: LoadedModel, references: Sequence[Reference], uses: Sequence[ReferenceUse], **options: Any) -> Any:
    recipe = replace(PLAIN, sampler="Euler", references=tuple(uses), **options.pop("changes", {}))
    ((image,),) = iterate(recipe, model, prompt(model), references=references, **options)
    return image.pixels / 255


def of_diffusers(
    path: Path, kind: str, states: Sequence[files.State], pictures: Sequence[Any], weights: Sequence[float], *,
    net: Any = None, unet: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """The image of diffusers' own pipeline and IP-Adapters, with civman's Euler behind its scheduler interface."""
    import diffusers

    model = load(path, dtype=SINGLE, for_diffusers=True)  # diffusers changes the UNet
    if unet is not None:
        model.unet.load_state_dict(unet.state_dict(), assign=True)
    parts = {name: value for name, value in pipeline_of(model).components.items() if name != "image_encoder"}
    name = f"StableDiffusion{'XL' if kind == 'sdxl' else ''}{'ControlNet' if net is not None else ''}Pipeline"
    parts |= {"force_zeros_for_empty_prompt": True} if kind == "sdxl" else {"requires_safety_checker": False}
    parts |= {"controlnet": net} if net is not None else {}
    parts["feature_extractor"] = CLIPImageProcessorPil(
        size={"shortest_edge": files.SIDE}, crop_size={"height": files.SIDE, "width": files.SIDE}
    )
    pipe = getattr(diffusers, name)(**parts, image_encoder=files.encoder())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PipelineScheduler("Euler")
    pipe.load_ip_adapter([{**state} for state in states], [""] * len(states), [""] * len(states))
    pipe.set_ip_adapter_scale(list(weights))
    given, pooled = prompt(model), {}
    if kind == "sdxl":
        pooled = {"pooled_prompt_embeds": given.pooled, "negative_pooled_prompt_embeds": given.uncond_pooled}
    return pipe(
        prompt_embeds=given.cond, negative_prompt_embeds=given.uncond, num_inference_steps=3, guidance_scale=4.0,
        ip_adapter_image=[Image.fromarray(each) for each in pictures], height=64, width=64,
        generator=torch.Generator().manual_seed(7), output_type="np", **pooled, **options,
    ).images[0]  # fmt: skip


def assert_same(found: Any, expected: Any) -> None:
    assert np.abs(found - expected).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("kind", files.KINDS)
@pytest.mark.parametrize("base", BASES)
def test_an_image_equals_that_of_diffusers_pipeline(
    tiny_files: dict[str, Path], tmp_path: Path, base: str, kind: str
) -> None:
    model, state, pixels = load(tiny_files[base], dtype=SINGLE), files.adapter(kind, base), picture(2, 90)

    found = ours(model, [loaded(state, pixels, tmp_path)], [replace(USE, weight=0.7)])

    assert_same(found, of_diffusers(tiny_files[base], base, [state], [pixels], [0.7]))
    assert np.abs(found - ours(model, [], [])).max() > 2 / 255
