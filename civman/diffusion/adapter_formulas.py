"""The formula of each adapter kind: computes the change of one weight from an adapter's tensors.

Which tensors a kind consists of, and whether their shapes fit the weight, is decided in
`civman.domain.adapters.adapter_kinds`.

Formulas: LoRA (Hu et al. 2021, 4.1), LoHa (Hyeon-Woo et al. 2022, FedPara, 2), LoKr (Yeh et al. 2024, LyCORIS, 3), OFT
(Qiu et al. 2023, 3), BOFT (Liu et al. 2024, 4), GLoRA (Chavan et al. 2023, eq. 9), IA3 (Liu et al. 2022, 3.3). As in
A1111, Forge and ComfyUI, a missing `alpha` counts as equal to the rank, and an `alpha` of 0 disables the change.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from civman.domain.adapters.adapter_kinds import glora_parts
from civman.domain.architecture import Adapter

Parts = Mapping[str, Tensor]


def strength(parts: Parts, rank: int) -> float:
    """Return alpha / rank, or 1 if the adapter has no alpha."""
    return float(parts["alpha"].reshape(-1)[0]) / rank if "alpha" in parts else 1.0


def _tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Multiply out a Tucker decomposition: core (r, r, kh, kw), up (out, r) and down (r, in) give (out, in, kh, kw)."""
    return torch.einsum("rs...,or,si->oi...", core, up, down)


def _lora(parts: Parts, _weight: Tensor) -> Tensor:
    up, down = parts["up"].flatten(1), parts["down"].flatten(1)
    delta = _tucker(parts["mid"], up, down) if "mid" in parts else up @ down
    return delta * strength(parts, parts["down"].shape[0])


def bias(parts: Parts, rank: int | None, base: Tensor) -> Tensor:
    """Compute the change of a module's bias; `base` is the bias without the adapter.

    Depending on the adapter, the change is stored in the file as a difference, is the bias of a LoRA's up layer times
    alpha / rank, or is computed from the factors by which PEFT's IA3 scales the layer's outputs.
    """
    if "ia3_l" in parts:
        return base * (parts["ia3_l"].reshape(-1) - 1)
    return parts["diff_b"] if "diff_b" in parts else parts["up_bias"] * strength(parts, rank or 1)


def _loha(parts: Parts, _weight: Tensor) -> Tensor:
    """Compute LoHa: the Hadamard product of two low-rank matrices."""

    def half(name: str, core: str) -> Tensor:
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        return _tucker(parts[core], a.T, b) if core in parts else a @ b.flatten(1)

    rank = parts["hada_w1_b"].shape[0]
    return half("hada_w1", "hada_t1") * half("hada_w2", "hada_t2") * strength(parts, rank)


def _lokr(parts: Parts, weight: Tensor) -> Tensor:
    """Compute LoKr: the Kronecker product of two factors, each of which is stored whole or as a low-rank product."""

    def factor(name: str, core: str) -> Tensor:
        if name in parts:
            return parts[name]
        a, b = parts[f"{name}_a"], parts[f"{name}_b"]
        if core in parts:
            return _tucker(parts[core], a.T, b)
        return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])

    kernel = weight.shape[2:]
    first, second = factor("lokr_w1", "lokr_t1"), factor("lokr_w2", "lokr_t2")
    ones = (1,) * len(kernel)
    first = first if first.ndim > 2 else first.reshape(*first.shape, *ones)
    wide = second.ndim > 2 or any(size != 1 for size in first.shape[2:])
    second = second if second.ndim > 2 else second.reshape(second.shape[0], -1, *(ones if wide else kernel))
    product = torch.kron(first.contiguous(), second.contiguous())
    thin = [parts[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts]
    # without a low-rank factor, there is no rank to divide alpha by
    return product * strength(parts, thin[0].shape[0]) if thin else product


# --- OFT and BOFT: rotations of the output rows


def _rotations(parts: Parts, rows: int) -> Tensor:
    """Return the rotation matrices of the blocks (…, b, b).

    Early LyCORIS files store the matrices directly (`oft_diag`). Later files store blocks from which the matrices are
    computed by the Cayley transform; if the file has an alpha, the norm of the blocks is first limited to alpha times
    the number of rows.
    """
    if "oft_diag" in parts:
        return parts["oft_diag"]
    blocks = parts["oft_blocks"]
    skew = blocks - blocks.mT
    bound = float(parts["alpha"].reshape(-1)[0]) * rows if "alpha" in parts else 0.0
    if bound > 0:
        length = torch.linalg.vector_norm(skew) + 1e-8
        skew = skew * torch.clamp(bound / length, max=1.0)
    eye = torch.eye(blocks.shape[-1], device=blocks.device)
    turn: Tensor = torch.linalg.solve(eye - skew, eye + skew, left=False)
    return turn


def _rescaled(rows: Tensor, parts: Parts, weight: Tensor) -> Tensor:
    rows = rows.reshape(weight.shape)
    if "rescale" in parts:
        rows = rows * parts["rescale"].reshape(-1, *(1,) * (weight.ndim - 1))
    return rows - weight


def _oft(parts: Parts, weight: Tensor) -> Tensor:
    turn = _rotations(parts, weight.shape[0])
    if turn.ndim == 4:
        return _boft(turn, parts, weight)
    blocks, size, _ = turn.shape
    return _rescaled(turn.mT @ weight.reshape(blocks, size, -1), parts, weight)


def _boft(turn: Tensor, parts: Parts, weight: Tensor) -> Tensor:
    """Compute BOFT, a product of several stages of block rotations.

    Stage i mixes rows that are 2^i · b/2 apart (b: the size of a block), so that after all stages each row depends on
    all other rows.
    """
    stages, blocks, size, _ = turn.shape
    rows = weight.flatten(1)
    columns = rows.shape[1]
    for stage in range(stages):
        reach = 2**stage * (size // 2)
        pairs = rows.reshape(-1, 2, reach, columns).transpose(1, 2).reshape(blocks, size, columns)
        turned = turn[stage] @ pairs
        rows = turned.reshape(-1, reach, 2, columns).transpose(1, 2).reshape(-1, columns)
    return _rescaled(rows, parts, weight)


# --- GLoRA, IA3, full differences


def _glora(parts: Parts, weight: Tensor) -> Tensor:
    names = glora_parts({name: tuple(part.shape) for name, part in parts.items()}, tuple(weight.shape))
    narrow, widen, out, inner = (parts[name].flatten(1) for name in names)
    through = torch.einsum("oi...,ir,rj->oj...", weight, narrow, widen)
    added = _tucker(parts["bm"], out, inner) if "bm" in parts else out @ inner
    return (through + added.reshape(weight.shape)) * strength(parts, widen.shape[0])


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    if "ia3_l" in parts:  # PEFT stores the factors themselves; LyCORIS stores their difference from 1
        factors = parts["ia3_l"]
        return weight * (factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2)) - 1)
    axis = 1 if bool(parts["on_input"].reshape(-1)[0]) else 0
    return weight * parts["factor"].reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])


def _whole(parts: Parts, weight: Tensor) -> Tensor:
    return parts["diff"] if "diff" in parts else parts["set_weight"].reshape(weight.shape) - weight


FORMULAS: Mapping[Adapter, Callable[[Parts, Tensor], Tensor]] = {
    Adapter.LORA: _lora, Adapter.DORA: _lora, Adapter.LOHA: _loha, Adapter.LOKR: _lokr, Adapter.OFT: _oft,
    Adapter.BOFT: _oft, Adapter.GLORA: _glora, Adapter.IA3: _ia3, Adapter.FULL: _whole,
}  # fmt: skip
"""Maps each adapter kind to the function that computes its change of a weight, before DoRA's magnitudes are applied."""
