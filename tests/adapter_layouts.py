"""Adapters as files in the wild have them, written down a second time: names, tensors, and what each makes of a weight.

Nothing here is the product's: the layouts are from the trainers' own code, the formulas from the papers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

R = 2


class Made(NamedTuple):
    """Tensors by their endings, and the weight and bias that a model with the adapter computes with."""

    tensors: dict[str, Tensor]
    weight: Tensor
    bias: Tensor | None = None
    """None: the bias is left as it is."""


def draw(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator) * 0.3


def _factors(w: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(up, down, their product in the weight's shape)."""
    n = draw(seed)
    up = n(w.shape[0], R, *(1,) * (w.ndim - 2))
    down = n(R, *w.shape[1:])
    return up, down, (up.flatten(1) @ down.flatten(1)).reshape(w.shape)


def lora(down_end: str, up_end: str, *, alpha: float | None = 1.0) -> Callable[[Tensor, Tensor | None, int], Made]:
    def make(w: Tensor, _b: Tensor | None, seed: int) -> Made:
        up, down, product = _factors(w, seed)
        tensors = {down_end: down, up_end: up}
        if alpha is not None:
            tensors["alpha"] = torch.tensor(alpha)
        return Made(tensors, w + product * (1.0 if alpha is None else alpha / R))

    return make


def lora_with_bias(w: Tensor, b: Tensor | None, seed: int) -> Made:
    assert b is not None
    up, down, product = _factors(w, seed)
    extra = draw(seed + 7)(w.shape[0])
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "lora_up.bias": extra, "alpha": torch.tensor(1.0)}
    return Made(tensors, w + product / R, b + extra / R)


def tucker(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    up, down, mid = n(w.shape[0], R, 1, 1), n(R, w.shape[1], 1, 1), n(R, R, *w.shape[2:])
    change = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return Made({"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}, w + change)


def dora(axis: int) -> Callable[[Tensor, Tensor | None, int], Made]:
    def make(w: Tensor, _b: Tensor | None, seed: int) -> Made:
        up, down, product = _factors(w, seed)
        turned = w + product / R
        others = tuple(dim for dim in range(w.ndim) if dim != axis)
        length = turned.pow(2).sum(others, keepdim=True).sqrt()
        magnitude = length * (1.2 + draw(seed + 5)(*length.shape) * 0.1)
        stored = magnitude if axis == 0 or w.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
        tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0), "dora_scale": stored}
        return Made(tensors, turned / length * magnitude)

    return make


def peft_dora(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    up, down, product = _factors(w, seed)
    turned = w + product
    length = turned.flatten(1).norm(dim=1)
    magnitude = length * 1.3
    made = turned * (magnitude / length).reshape(-1, *(1,) * (w.ndim - 1))
    names = {"lora_A.style.weight": down, "lora_B.style.weight": up, "lora_magnitude_vector.style.weight": magnitude}
    return Made(names, made)


def loha(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    columns = w.flatten(1).shape[1]
    a, b, c, d = n(w.shape[0], R), n(R, columns), n(w.shape[0], R), n(R, columns)
    names = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(3.0)}
    return Made(names, w + ((a @ b) * (c @ d)).reshape(w.shape) * (3.0 / R))


def loha_tucker(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    names, product = {}, torch.ones(())
    for half in ("1", "2"):
        core, a, b = n(R, R, *w.shape[2:]), n(R, w.shape[0]), n(R, w.shape[1])
        names |= {f"hada_t{half}": core, f"hada_w{half}_a": a, f"hada_w{half}_b": b}
        product = product * torch.einsum("rskl,ro,si->oikl", core, a, b)
    return Made(names, w + product)


def lokr_whole(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    first, second = n(2, 2), n(w.shape[0] // 2, w.shape[1] // 2, *w.shape[2:])
    return Made({"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(9.0)}, w + _kron(first, second))


def lokr_thin(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    a, b, second = n(4, R), n(R, 2), n(w.shape[0] // 4, w.shape[1] // 2, *w.shape[2:])
    names = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2": second, "alpha": torch.tensor(1.0)}
    return Made(names, w + _kron(a @ b, second) / R)


def lokr_tucker(name: str) -> Callable[[Tensor, Tensor | None, int], Made]:
    """`lokr_t2` on the second factor, or `lokr_t1` on the first."""

    def make(w: Tensor, _b: Tensor | None, seed: int) -> Made:
        n = draw(seed)
        core, a, b = n(R, R, *w.shape[2:]), n(R, w.shape[0] // 2), n(R, w.shape[1] // 2)
        thin, whole = torch.einsum("rskl,ro,si->oikl", core, a, b), n(2, 2)
        one, other = ("w2", "w1") if name == "lokr_t2" else ("w1", "w2")
        names = {name: core, f"lokr_{one}_a": a, f"lokr_{one}_b": b, f"lokr_{other}": whole}
        pair = (whole, thin) if one == "w2" else (thin, whole)
        return Made(names, w + _kron(*pair))

    return make


def _kron(first: Tensor, second: Tensor) -> Tensor:
    """By the definition: entry (i·p + k, j·q + l) is first[i, j] · second[k, l], for each place of the kernel."""
    kernel = first.shape[2:] or second.shape[2:]
    first, second = (each.reshape(*each.shape[:2], *(each.shape[2:] or (1,) * len(kernel))) for each in (first, second))
    made = torch.einsum("ij...,kl...->ikjl...", first, second)
    return made.reshape(first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *kernel)


def oft(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    blocks = draw(seed)(w.shape[0] // 4, 4, 4)
    return Made({"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, _turned(w, _cayley(blocks)))


def oft_early(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    blocks = torch.eye(4) + draw(seed)(w.shape[0] // 4, 4, 4) * 0.2
    return Made({"oft_diag": blocks, "alpha": torch.tensor(4.0)}, _turned(w, blocks))


def _cayley(blocks: Tensor) -> Tensor:
    skew, eye = blocks - blocks.transpose(1, 2), torch.eye(blocks.shape[-1])
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def _turned(w: Tensor, turns: Tensor) -> Tensor:
    return (torch.block_diag(*turns).T @ w.flatten(1)).reshape(w.shape)


def glora(*, swapped: bool) -> Callable[[Tensor, Tensor | None, int], Made]:
    def make(w: Tensor, _b: Tensor | None, seed: int) -> Made:
        n = draw(seed)
        out, into = w.shape[:2]
        a1, a2, b1, b2 = n(into, R), n(R, into), n(out, R), n(R, into)
        pairs = (a2, a1, b2, b1) if swapped else (a1, a2, b1, b2)
        names = {f"{name}.weight": each for name, each in zip(("a1", "a2", "b1", "b2"), pairs, strict=True)}
        return Made(names, w + w @ a1 @ a2 + b1 @ b2)

    return make


def ia3(*, on_input: bool) -> Callable[[Tensor, Tensor | None, int], Made]:
    def make(w: Tensor, _b: Tensor | None, seed: int) -> Made:
        axis = int(on_input)
        factor = draw(seed)(w.shape[axis])
        shape = [-1 if dim == axis else 1 for dim in range(w.ndim)]
        return Made({"weight": factor, "on_input": torch.tensor(on_input)}, w * (1 + factor.reshape(shape)))

    return make


def peft_ia3(ending: str, *, on_input: bool) -> Callable[[Tensor, Tensor | None, int], Made]:
    """PEFT's factors replace 1; on the outputs they multiply the bias too."""

    def make(w: Tensor, b: Tensor | None, seed: int) -> Made:
        factor = 1 + draw(seed)(w.shape[1] if on_input else w.shape[0])
        stored = factor[None] if on_input else factor[:, None]
        return Made({ending: stored}, w * stored, None if on_input or b is None else b * factor)

    return make


def full(w: Tensor, b: Tensor | None, seed: int) -> Made:
    n = draw(seed)
    change = n(*w.shape)
    if b is None:
        return Made({"diff": change}, w + change)
    return Made({"diff": change, "diff_b": (of_bias := n(*b.shape))}, w + change, b + of_bias)


def only_bias(w: Tensor, b: Tensor | None, seed: int) -> Made:
    assert b is not None
    change = draw(seed)(*b.shape)
    return Made({"diff_b": change}, w, b + change)


def set_weight(w: Tensor, _b: Tensor | None, seed: int) -> Made:
    value = draw(seed)(*w.shape)
    return Made({"set_weight": value}, value)


def norm(w: Tensor, b: Tensor | None, seed: int) -> Made:
    assert b is not None
    n = draw(seed)
    of_weight, of_bias = n(*w.shape), n(*b.shape)
    return Made({"w_norm": of_weight, "b_norm": of_bias}, w + of_weight, b + of_bias)


Make = Callable[[Tensor, Tensor | None, int], Made]
KINDS: dict[str, tuple[Make, str]] = {
    "kohya": (lora("lora_down.weight", "lora_up.weight"), "any"),
    "kohya, no alpha": (lora("lora_down.weight", "lora_up.weight", alpha=None), "any"),
    "bare lora_down": (lora("lora_down", "lora_up"), "any"),
    "peft": (lora("lora_A.weight", "lora_B.weight", alpha=None), "any"),
    "peft, default": (lora("lora_A.default.weight", "lora_B.default.weight", alpha=None), "any"),
    "peft, a name": (lora("lora_A.my_style.weight", "lora_B.my_style.weight", alpha=None), "any"),
    "bare lora_A": (lora("lora_A", "lora_B", alpha=None), "any"),
    "diffusers": (lora("lora.down.weight", "lora.up.weight"), "any"),
    "diffusers, text": (lora("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), "any"),
    "lora with a bias": (lora_with_bias, "biased"),
    "locon, tucker": (tucker, "conv"),
    "dora, out": (dora(0), "any"),
    "dora, in": (dora(1), "any"),
    "peft, dora": (peft_dora, "any"),
    "loha": (loha, "any"),
    "loha, tucker": (loha_tucker, "conv"),
    "lokr, whole": (lokr_whole, "any"),
    "lokr, thin": (lokr_thin, "any"),
    "lokr, tucker": (lokr_tucker("lokr_t2"), "conv"),
    "lokr, tucker first": (lokr_tucker("lokr_t1"), "conv"),
    "oft": (oft, "any"),
    "oft, early": (oft_early, "any"),
    "glora": (glora(swapped=False), "linear"),
    "glora, early": (glora(swapped=True), "linear"),
    "ia3, out": (ia3(on_input=False), "any"),
    "ia3, in": (ia3(on_input=True), "any"),
    "ia3, peft": (peft_ia3("ia3_l", on_input=False), "linear"),
    "ia3, peft, a name": (peft_ia3("ia3_l.style", on_input=False), "linear"),
    "ia3, peft, in": (peft_ia3("ia3_l", on_input=True), "linear"),
    "peft, a number": (lora("lora_A.0.weight", "lora_B.0.weight", alpha=None), "any"),
    "full": (full, "any"),
    "only bias": (only_bias, "biased"),
    "set": (set_weight, "any"),
    "norm": (norm, "norm"),
}
"""Kind → how it is made, and the modules that it is made for."""


def _flat(unet: str, *texts: str, original: bool = False, inner: str = "text_model_") -> Callable[..., str | None]:
    def name(component: int, module: str, ldm: str) -> str | None:
        if component == 0:
            return unet + (ldm if original else module).replace(".", "_")
        return texts[component - 1] + inner + module.replace(".", "_") if texts else None

    return name


def _dotted(unet: str, *texts: str, original: bool = False, inner: str = "text_model.") -> Callable[..., str | None]:
    def name(component: int, module: str, ldm: str) -> str | None:
        if component == 0:
            return unet + (ldm if original else module)
        return texts[component - 1] + inner + module if texts else None

    return name


CONTAINERS: dict[str, Callable[[int, str, str], str | None]] = {
    "kohya": _flat("lora_unet_", "lora_te1_", "lora_te2_"),
    "kohya, original": _flat("lora_unet_", "lora_te1_", "lora_te2_", original=True),
    "kohya, one encoder": _flat("lora_unet_", "lora_te_", "lora_te2_"),
    "oft": _flat("oft_unet_", "oft_te1_", "oft_te2_"),
    "lycoris": _flat("lycoris_", "lycoris_text_encoder_", "lycoris_text_encoder_2_"),
    "onetrainer, dotted": _dotted("unet.", "text_encoder_1.", "text_encoder_2."),
    "diffusers": _dotted("unet.", "text_encoder.", "text_encoder_2."),
    "diffusers, no text_model": _dotted("unet.", "text_encoder.", "text_encoder_2.", inner=""),
    "bare": _dotted("", "text_encoder.", "text_encoder_2."),
    "peft": _dotted("base_model.model.", "base_model.model.text_encoder.", "base_model.model.text_encoder_2."),
    "peft, in a unet": _dotted("unet.base_model.model.", "text_encoder.base_model.model.",
                               "text_encoder_2.base_model.model."),
    "ai-toolkit": _dotted("diffusion_model."),
    "comfyui": _dotted("diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.",
                       original=True),
    "comfyui, short": _dotted("diffusion_model.", "clip_l.transformer.", "clip_g.transformer.", original=True),
    "checkpoint's": _dotted("model.diffusion_model.", original=True),
    "doubled": _dotted("unet.unet.", "text_encoder.text_encoder.", "text_encoder_2.text_encoder_2."),
    "doubled, flat": _flat("lora_unet_lora_unet_", "lora_te1_lora_te1_", "lora_te2_lora_te2_"),
    "doubled, text_model": _flat("lora_unet_unet_", "lora_te1_", "lora_te2_", inner="text_model_text_model_"),
}  # fmt: skip
"""Container → name in the file of a module: (0 for the UNet, else the text encoder's number; module; original name)."""
