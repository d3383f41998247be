# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""IP-Adapters: encoders and preprocessing equal transformers', images equal those of diffusers' own pipelines."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import fake_card
import ip_adapter_files as files
from PIL import Image
from test_controlnet import loaded as loaded_net
from test_controlnet import network
from test_fake_card import ALLOWED, HALF, QUEUED, conditioning
from test_run import PLAIN, picture, prompt
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.pipeline_scheduler import PipelineScheduler
from civman.diffusion.reference_pictures import (
    ActiveReference,
    Reference,
    attending,
    encode_reference,
    load_ip_adapter,
)
from civman.diffusion.run_recipe import Inputs, iterate, job_of, run_in_slots
from civman.diffusion.stage_model import one_model
from civman.diffusion.vision_encoder import encoder_input, load_vision_encoder
from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlUse
from civman.domain.recipes.recipe import FreeU, Hires
from civman.domain.recipes.reference import ReferenceUse
from civman.errors import CannotRender, Incompatible
from civman.store.blobs import BlobStore
from civman.store.safe_copies import copy_place, make_copy

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
    recipe = replace(PLAIN, references=tuple(uses), **options.pop("changes", {}))
    ((image,),) = iterate(recipe, one_model(model, prompt(model)), references=references, **options)
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


@pytest.mark.parametrize("kind", files.KINDS)
def test_every_layout_of_an_adapter_holds_the_same(tmp_path: Path, kind: str) -> None:
    state, pixels = files.adapter(kind, "sd1"), picture(2, 90)
    pickle = files.write(state, tmp_path / "adapter.bin", "bin")
    digest = Sha256(hashlib.sha256(pickle.read_bytes()).hexdigest())
    copy = make_copy(pickle, copy_place(BlobStore(tmp_path), digest)).path
    paths = [
        files.write(state, tmp_path / "plain.safetensors"), copy,
        files.write(state, tmp_path / "d.safetensors", "diffusers"),
    ]  # fmt: skip
    encoder = load_vision_encoder(
        files.write_encoder(files.encoder(), tmp_path / "e.safetensors"), device=CPU, dtype=SINGLE
    )

    found = [
        encode_reference(
            load_ip_adapter(path, path.name, device=CPU, dtype=SINGLE), encoder, encoder_input(pixels, files.SIDE)
        )
        for path in paths
    ]  # fmt: skip

    first, *others = found
    for other in others:
        torch.testing.assert_close(first.positive, other.positive)
        torch.testing.assert_close(first.negative, other.negative)
        for ours, theirs in zip(first.adapter.layers, other.adapter.layers, strict=True):
            assert all(torch.equal(one, same) for one, same in zip(ours, theirs, strict=True))


def test_two_adapters_add_up_as_in_diffusers(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, states = load(tiny_files["sd1"], dtype=SINGLE), [files.adapter("plain", "sd1"), files.adapter("plus", "sd1")]
    pictures = [picture(2, 90), picture(3, 64)]
    references = [
        loaded(state, pixels, tmp_path, name=str(number))
        for number, (state, pixels) in enumerate(zip(states, pictures, strict=True))
    ]

    found = ours(model, references, [replace(USE, weight=0.6), replace(USE, weight=-0.3)])

    assert_same(found, of_diffusers(tiny_files["sd1"], "sd1", states, pictures, [0.6, -0.3]))
    assert np.abs(found - ours(model, references[:1], [replace(USE, weight=0.6)])).max() > 2 / 255


@pytest.mark.parametrize("base", BASES)
def test_with_a_lora_and_a_controlnet_an_image_equals_that_of_diffusers(
    tiny_files: dict[str, Path], tmp_path: Path, base: str
) -> None:
    model, state, pixels = load(tiny_files[base], dtype=SINGLE), files.adapter("plus", base), picture(2, 90)
    for name, parameter in model.unet.named_parameters():  # what a LoRA leaves behind: other weights, the same modules
        if "attn2.to_" in name and parameter.ndim == 2:
            change = torch.outer(*(torch.linspace(-1, 1, size) for size in parameter.shape))
            parameter.data = parameter.data + 0.3 * change
    guide, theirs = picture(5), network(base)
    net = loaded_net(theirs, base, model, tmp_path / "net.safetensors")
    found = ours(
        model, [loaded(state, pixels, tmp_path)], [replace(USE, weight=0.8)],
        changes={"controls": (ControlUse(Sha256("d" * 64), Sha256("e" * 64), 0.5),)},
        inputs=Inputs(controls=(guide,)), controlnets=[net],
    )  # fmt: skip

    expected = of_diffusers(
        tiny_files[base], base, [state], [pixels], [0.8], net=theirs, unet=model.unet, image=Image.fromarray(guide),
        controlnet_conditioning_scale=0.5,
    )  # fmt: skip
    assert_same(found, expected)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.3, 1.0), (0.3, 0.4)])
def test_a_share_of_the_steps_is_that_of_a_pipeline_whose_scale_is_changed(
    tiny_files: dict[str, Path], tmp_path: Path, start: float, end: float
) -> None:
    model, state, pixels = load(tiny_files["sd1"], dtype=SINGLE), files.adapter("plain", "sd1"), picture(2, 90)
    use = replace(USE, weight=0.7, start=start, end=end)
    weights = [0.7 * (start <= step / 3 <= end) for step in range(4)]

    def change(pipe: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(weights[step + 1])
        return given

    found = ours(model, [loaded(state, pixels, tmp_path)], [use])

    expected = of_diffusers(
        tiny_files["sd1"], "sd1", [state], [pixels], weights[:1], callback_on_step_end=change
    )  # fmt: skip
    assert_same(found, expected)


def test_a_weight_of_0_and_a_render_afterwards_are_without_a_trace(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model = load(tiny_files["sdxl"], dtype=SINGLE)
    reference = loaded(files.adapter("full-face", "sdxl"), picture(2, 90), tmp_path)

    before = ours(model, [], [])
    with_it = ours(model, [reference], [USE])
    without = ours(model, [reference], [replace(USE, weight=0.0)])
    after = ours(model, [], [])

    assert np.array_equal(before, after)
    assert np.array_equal(before, without)
    assert not np.array_equal(before, with_it)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.unet.modules())


CHANGES: dict[str, dict[str, Any]] = {
    "second pass": {"hires": Hires(128, 128, 2, 0.5, "latent")},
    "token merging": {"token_merging": 0.5},
    "FreeU": {"freeu": FreeU("v2", 1.3, 1.4, 0.9, 0.2)},
    "odd sizes": {"width": 72, "odd_sizes": "a1111"},
    "no negative prompt": {"guidance_scale": 1.0},
    "two evaluations in each step": {"sampler": "Heun"},
    "adaptive": {"sampler": "DPM adaptive"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "adaptive" else ()) for name in CHANGES]
)
def test_other_settings_work_with_a_reference(tiny_files: dict[str, Path], tmp_path: Path, name: str) -> None:
    model = load(tiny_files["sd1"], dtype=SINGLE)
    reference = loaded(files.adapter("plain", "sd1"), picture(2, 90), tmp_path)
    asked: list[tuple[int, bool]] = []
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q
    model.unet.register_forward_pre_hook(lambda _, given: asked.append((len(given[0]), bool(layer._forward_hooks))))

    plain = ours(model, [], [], changes=CHANGES[name])
    calls = len(asked)
    found = ours(model, [reference], [USE], changes=CHANGES[name])

    assert all(not is_hooked for _, is_hooked in asked[:calls])
    assert all(is_hooked for _, is_hooked in asked[calls:])  # in both passes
    assert {count for count, _ in asked} == {1 if name == "no negative prompt" else 2}
    assert np.abs(found - plain).max() > 2 / 255


def test_layers_read_from_the_file_on_call_give_the_same_bits(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    from civman.diffusion.layer_streaming import SMALL, stream

    whole = load(tiny_files["sd1"], dtype=SINGLE)
    parts = load(tiny_files["sd1"], dtype=SINGLE, leaves=SMALL)
    stream(parts)
    reference = loaded(files.adapter("plus", "sd1"), picture(2, 90), tmp_path)

    assert np.array_equal(ours(whole, [reference], [USE]), ours(parts, [reference], [USE]))


def test_images_of_a_batch_and_prompts_of_unequal_length_get_their_own_tokens(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    model, state = load(tiny_files["sd1"], dtype=SINGLE), files.adapter("plain", "sd1")
    reference = loaded(state, picture(2, 90), tmp_path)
    recipe = replace(PLAIN, references=(USE,), count=2, batch_size=2)
    longer = prompt(model, negative_chunks=2)  # the prompt and the negative prompt need a call each

    together = [
        image.pixels for batch in iterate(recipe, one_model(model, longer), references=[reference]) for image in batch
    ]
    alone = [
        image.pixels
        for seed in (7, 8)
        for batch in iterate(
            replace(recipe, seed=seed, count=1, batch_size=1), one_model(model, longer), references=[reference]
        )
        for image in batch
    ]  # fmt: skip

    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).max() > 2


def test_an_adapter_of_another_unet_is_refused_when_it_is_applied(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model = load(tiny_files["sdxl"], dtype=SINGLE)
    active = ActiveReference(loaded(files.adapter("plain", "sd1"), picture(2, 90), tmp_path), USE)

    asked = active.asked([True, False], 1)
    with pytest.raises(Incompatible, match="made for 16 attention layers"), attending(model.unet, [asked]):
        pass


def test_nothing_is_on_the_wrong_side_of_a_card(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    half = torch.float16
    model = load(tiny_files["sd1"], dtype=half)
    encoder = load_vision_encoder(
        files.write_encoder(files.encoder(), tmp_path / "e.safetensors"), device=CPU, dtype=half
    )
    path = files.write(files.adapter("plus", "sd1"), tmp_path / "a.safetensors")
    adapter = load_ip_adapter(path, "a", device=CPU, dtype=half)
    inputs = encoder_input(picture(2, 90), files.SIDE).to(half)
    recipe = replace(HALF, references=(USE,))

    with fake_card.fake_card() as card:
        for part in (*model.components.values(), encoder):
            card.put(part)
        model.device = fake_card.CARD
        sent = fake_card.empty_like
        adapter = replace(
            adapter, projection={name: sent(value) for name, value in adapter.projection.items()},
            layers=tuple((sent(keys), sent(values)) for keys, values in adapter.layers),
        )  # fmt: skip
        reference = encode_reference(adapter, encoder, sent(inputs))
        ((made,),) = iterate(recipe, one_model(model, conditioning(model)), references=[reference])

    allowed = ALLOWED | {("queued cpu to cuda", where): count for where, count in QUEUED.items()}
    assert not {where: count for where, count in card.crossings.items() if count > allowed.get(where, 0)}
    assert made.pixels.shape == (64, 64, 3)


def test_images_in_slots_have_their_own_references(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    model, state = load(tiny_files["sd1"], dtype=SINGLE), files.adapter("plain", "sd1")
    first = loaded(state, picture(2, 90), tmp_path)
    second = replace(first, positive=loaded(state, picture(4, 90), tmp_path).positive)
    recipe = replace(PLAIN, slots=2, references=(USE,))
    jobs = {
        7: (recipe, first), 8: (replace(recipe, seed=8), second),
        9: (replace(recipe, seed=9, references=(replace(USE, weight=0.2),)), first),
    }  # fmt: skip

    def calls(seeds: Sequence[int]) -> dict[int, str]:
        found = run_in_slots(recipe, model, (
            job_of(own, one_model(model, prompt(model)), references=[reference]).batch(0, [own.seed])
            for own, reference in (jobs[seed] for seed in seeds)
        ))  # fmt: skip
        return {image.seed: image.sha256 for images in found for image in images}

    together = calls([7, 8, 9])
    alone = {seed: calls([seed])[seed] for seed in jobs}

    assert together == alone
    assert len(set(together.values())) == 3
