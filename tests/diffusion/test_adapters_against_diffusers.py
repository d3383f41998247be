"""Merged weights against diffusers with peft, for the kinds that they take: the models give out the same."""

import logging
import warnings

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny_adapters import FAMILIES, Originals, ldm_names, low_rank, tiny_components, write_safetensors
from torch import nn

from civman.diffusion.merge_adapters import Adapter, apply, restore
from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.prompts.tokenizer import ZERO

pytest.importorskip("peft", reason="diffusers loads adapters with peft")

SCALE = 0.8
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request, tmp_path_factory):
    """A pipeline on tiny parts, made anew for each family; adapters are unloaded after each test."""
    folder = tmp_path_factory.mktemp("tokenizers")
    parts = tiny_components(request.param)
    common = {
        "vae": AutoencoderKL(block_out_channels=[8], norm_num_groups=8),
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
        "tokenizer": transformers_tokenizer(folder),
        **parts,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.param == "sd1":
            none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            made = StableDiffusionPipeline(**common, **none)
        else:
            made = StableDiffusionXLPipeline(
                **common, tokenizer_2=transformers_tokenizer(folder, ZERO), add_watermarker=False
            )
    return request.param, made, parts


def order(parts) -> list[str]:
    return ["unet", *(name for name in TEXT_ENCODERS if name in parts)]


def outputs(parts) -> list[torch.Tensor]:
    """What each component makes of fixed inputs."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    is_xl = "text_encoder_2" in parts
    more = {"text_embeds": drawn(1, 32), "time_ids": drawn(1, 6)} if is_xl else None
    with torch.no_grad():
        made = [parts["unet"](drawn(1, 4, 8, 8), 500, drawn(1, 5, 56 if is_xl else 24), added_cond_kwargs=more).sample]
        for name in order(parts)[1:]:
            ids = torch.tensor([[1, 2, 3, 4, 5]])
            made.append(parts[name](ids, output_hidden_states=True).hidden_states[-1])
    return made


def targets(parts, *, convolutions=False) -> dict[tuple[str, str], nn.Module]:
    """(component, module) of what trainers adapt."""
    found = {}
    for component, root in parts.items():
        for name, module in root.named_modules():
            is_attention = isinstance(module, nn.Linear) and (".attn" in name or "self_attn" in name)
            is_convolution = convolutions and isinstance(module, nn.Conv2d) and name.endswith(("conv1", "conv2"))
            if is_attention or (component == "unet" and is_convolution):
                found[component, name] = module
    return found


def kohya(family, parts, **which):
    ldm = ldm_names(parts["unet"])
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if family == "sdxl" else "lora_te_"}
    written = {}
    for (component, name), module in targets(parts, **which).items():
        if component == "unet":
            full = ldm[name] if family == "sdxl" else name
        else:
            full = "text_model." + name.removeprefix("text_model.")
        written[prefixes.get(component, "lora_te2_") + full.replace(".", "_")] = module
    return low_rank(written, 1)


def peft(parts, *, magnitudes=False):
    written = {}
    for (component, name), module in targets(parts).items():
        full = name if component == "unet" else "text_model." + name.removeprefix("text_model.")
        for key, tensor in low_rank({"x": module}, len(written)).items():
            if (end := {"x.lora_down.weight": "lora_A", "x.lora_up.weight": "lora_B"}.get(key)) is not None:
                written[f"{component}.{full}.{end}.weight"] = tensor
        if magnitudes:
            written[f"{component}.{full}.lora_magnitude_vector"] = module.weight.detach().norm(dim=1) * 1.1
    return written


@pytest.mark.parametrize("kind", ["kohya", "locon", "peft", "dora"])
def test_outputs_equal_those_of_diffusers_with_peft(pipeline, kind, tmp_path):
    family, made, parts = pipeline
    base = Originals(parts)
    tensors = {
        "kohya": lambda: kohya(family, parts),
        "locon": lambda: kohya(family, parts, convolutions=True),
        "peft": lambda: peft(parts),
        # with transformers 5.23 the magnitudes of text encoders are lost: peft keeps those it starts training from
        "dora": lambda: peft({"unet": parts["unet"]}, magnitudes=True),
    }[kind]()
    path = tmp_path / "adapter.safetensors"
    sha256 = write_safetensors(path, tensors)
    # diffusers scales only the low-rank part of a DoRA, so they mean the same at 1 alone
    scale = 1.0 if kind == "dora" else SCALE
    plain = outputs(parts)

    reports = apply(parts, base, [Adapter(path, sha256, scale, scale)])
    ours = outputs(parts)
    restore(parts, base, reports)
    logging.disable(logging.WARNING)  # a long table of keys that peft takes for missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="tried")
        made.set_adapters(["tried"], [scale])
    theirs = outputs(parts)
    made.unload_lora_weights()
    logging.disable(logging.NOTSET)

    for component, one, other, unchanged in zip(order(parts), ours, theirs, plain, strict=True):
        assert torch.allclose(one, other, atol=2e-5)
        assert torch.allclose(one, unchanged, atol=1e-2) == (component not in reports[0].norms)
    assert all(map(torch.equal, outputs(parts), plain))
