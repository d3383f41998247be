"""Every kind of adapter, made by lycoris-lora's own modules, against what those modules compute in their forward.

(Not against lycoris' own merge, which multiplies alpha / rank twice for LoHa and LoKr.)
"""

import importlib
import logging

import pytest
import torch
from tiny_adapters import FAMILIES, Originals, ldm_names, tiny_unet, write_safetensors
from torch import nn

from civman.diffusion.merge_adapters import Adapter, apply, restore

pytest.importorskip("lycoris.modules", reason="lycoris-lora is only an oracle")

LINEAR, CONV, SHORTCUT, NORM = "attn2.to_k", "conv1", "conv_shortcut", "norm2"

# name → (module of lycoris, class, arguments, endings of the modules it is tried on)
CASES = {
    "lora": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2}, (LINEAR, "proj_in", "ff.net.0.proj")),
    "lora-alpha-0": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 0}, (LINEAR,)),
    "locon": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 1}, (CONV, SHORTCUT)),
    "locon-tucker": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 1, "use_tucker": True}, (CONV,)),
    "dora": ("locon", "LoConModule", {"lora_dim": 4, "alpha": 2, "weight_decompose": True}, (LINEAR, CONV)),
    "dora-in": (
        "locon",
        "LoConModule",
        {"lora_dim": 4, "alpha": 2, "weight_decompose": True, "wd_on_out": False},
        (LINEAR, CONV),
    ),
    "loha": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 2}, (LINEAR, CONV, SHORTCUT)),
    "loha-tucker": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 2, "use_tucker": True}, (CONV,)),
    "loha-dora": ("loha", "LohaModule", {"lora_dim": 4, "alpha": 2, "weight_decompose": True}, (LINEAR, CONV)),
    "lokr-whole": ("lokr", "LokrModule", {"lora_dim": 999, "alpha": 2, "factor": 4}, (LINEAR, CONV, SHORTCUT)),
    "lokr-half": ("lokr", "LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 2}, (LINEAR, CONV)),
    "lokr-both": (
        "lokr",
        "LokrModule",
        {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True},
        (LINEAR, CONV),
    ),
    "lokr-tucker": ("lokr", "LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 2, "use_tucker": True}, (CONV,)),
    "lokr-dora": ("lokr", "LokrModule", {"lora_dim": 2, "alpha": 1, "factor": 2, "weight_decompose": True}, (LINEAR,)),
    "glora": ("glora", "GLoRAModule", {"lora_dim": 4, "alpha": 2}, (LINEAR, CONV, SHORTCUT)),
    "oft": ("diag_oft", "DiagOFTModule", {"lora_dim": 4}, (LINEAR, CONV)),
    "oft-bound": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "constraint": 0.001}, (LINEAR,)),
    "oft-rescaled": ("diag_oft", "DiagOFTModule", {"lora_dim": 4, "rescaled": True}, (LINEAR, CONV)),
    "boft": ("boft", "ButterflyOFTModule", {"lora_dim": 4}, (LINEAR, CONV)),
    "boft-bound-rescaled": (
        "boft",
        "ButterflyOFTModule",
        {"lora_dim": 4, "constraint": 0.001, "rescaled": True},
        (LINEAR,),
    ),
    "ia3": ("ia3", "IA3Module", {}, (LINEAR, CONV)),
    "ia3-in": ("ia3", "IA3Module", {"train_on_input": True}, (LINEAR, CONV)),
    "full": ("full", "FullModule", {}, (LINEAR, "proj_in", CONV)),
    "norm": ("norms", "NormModule", {}, (NORM,)),
}
ADDITIVE = ("lora", "locon", "locon-tucker", "loha", "loha-tucker", "lokr-half", "lokr-tucker", "glora", "ia3", "full")


def kohya_name(family: str, module: str, ldm: dict[str, str]) -> str:
    """SD 1.x is trained on diffusers' UNet, SDXL on the original one."""
    return "lora_unet_" + (ldm[module] if family == "sdxl" else module).replace(".", "_")


def oracle(case: str, name: str, module: nn.Module, seed: int, scale: float) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """A lycoris module with random values: its tensors as in a file, and the weight and bias its forward acts with."""
    where, cls, arguments, _ = CASES[case]
    made = getattr(importlib.import_module(f"lycoris.modules.{where}"), cls)(name, module, scale, **arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(parameter * (1 + drawn) if key in ("dora_scale", "rescale") else drawn)
        if cls == "FullModule":
            stored = {"diff": made.weight, **({"diff_b": made.bias} if made.bias is not None else {})}
        else:
            stored = made.custom_state_dict() or made.state_dict()
        weight, bias = acting_weight(made, module)
    return {f"{name}.{key}": value.detach().clone() for key, value in stored.items()}, weight, bias


def acting_weight(made: nn.Module, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a module multiplies with, read off its outputs: one input at a time."""
    shape = module.weight.shape
    if len(shape) == 1:  # a norm: y = n(x) · w + b, at n(x) = what weight 1 and bias 0 make of x
        is_layer = isinstance(module, nn.LayerNorm)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, shape[0], *([] if is_layer else [4, 4]), generator=generator)
        functional = nn.functional
        plain = functional.layer_norm(x, shape) if is_layer else functional.group_norm(x, module.num_groups)
        out = made(x)
        axis = -1 if is_layer else 1
        n, y = (t.transpose(axis, -1).reshape(-1, shape[0]).double() for t in (plain, out))
        w = ((n - n.mean(0)) * (y - y.mean(0))).sum(0) / (n - n.mean(0)).square().sum(0)
        return w.float(), (y.mean(0) - w * n.mean(0)).float()
    if len(shape) == 2:
        zero = made(torch.zeros(1, shape[1]))
        return (made(torch.eye(shape[1])) - zero).T, zero[0]
    kernel = shape[2]
    basis = torch.eye(shape[1] * kernel * kernel).reshape(-1, shape[1], kernel, kernel)
    middle = kernel // 2
    zero = made(torch.zeros(1, *basis.shape[1:]))[0, :, middle, middle]
    return (made(basis)[:, :, middle, middle] - zero).T.reshape(shape), zero


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[nn.Module, Originals]]:
    unets = {family: tiny_unet(family) for family in FAMILIES}
    return {family: (unet, Originals({"unet": unet})) for family, unet in unets.items()}


def try_case(models, family: str, case: str, scale: float, tmp_path) -> float:
    """The largest difference between a weight merged by us and the one that the oracle acts with."""
    unet, base = models[family]
    modules = dict(unet.named_modules())
    ldm = ldm_names(unet)
    tensors, expected = {}, {}
    for ending in CASES[case][3]:
        module = next(name for name in modules if name.endswith(f".{ending}"))
        name = kohya_name(family, module, ldm)
        stored, weight, bias = oracle(case, name, modules[module], len(expected), scale)
        tensors |= stored
        expected[module] = weight, bias
    sha256 = write_safetensors(tmp_path / "made.safetensors", tensors)

    [coverage] = apply({"unet": unet}, base, [Adapter(tmp_path / "made.safetensors", sha256, unet_scale=scale)])

    assert len(coverage.matched) == len(expected)
    worst = 0.0
    for module, (weight, bias) in expected.items():
        pairs = [(modules[module].weight, weight)]
        if modules[module].bias is not None:
            pairs.append((modules[module].bias, bias))
        worst = max(worst, *(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs))
    restore({"unet": unet}, base, [coverage])
    return worst


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)  # lycoris comments on every module
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_a_merged_weight_is_the_one_that_lycoris_acts_with(models, family, case, tmp_path):
    assert try_case(models, family, case, 1.0, tmp_path) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ADDITIVE)
def test_a_scale_means_what_it_means_to_lycoris(models, family, case, tmp_path):
    assert try_case(models, family, case, 0.7, tmp_path) < 1e-6
