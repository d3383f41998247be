"""How a file stores its weights: the precision of each part of the model, and the kind of quantisation.

This module recognises the formats by tensor names and types alone, and knows which of them civman can compute with. The
weights themselves are read in `civman.diffusion.mapped_weights`, which also applies the scales of 8-bit floats.

Source: the tensor names that ComfyUI (8-bit floats with scales), bitsandbytes, nunchaku, GPTQ and AWQ write.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from civman.domain.files.gguf_types import BLOCKS, UNREADABLE
from civman.domain.files.header_text import Tensor
from civman.domain.files.tokenizer_files import TENSORS as TOKENIZERS

SCALES = (".scale_weight", ".weight_scale")
"""Endings of the names of scale tensors, which multiply their module's weight: ComfyUI's former and current names."""
INPUT_SCALES = (".scale_input", ".input_scale", ".comfy_quant")
"""Endings of the names of tensors that are only needed for an 8-bit matrix product, not for computing in 16 or 32 bits.
"""
MARKER = "scaled_fp8"
"""The name, without prefix, of the empty tensor that marks weights with scales in ComfyUI's older files."""


class Quantisation(StrEnum):
    """How weights are packed into fewer bits."""

    FP8_SCALED = "fp8 with scales"
    INT8_SCALED = "int8 with scales"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"
    NF4 = "nf4 (bitsandbytes)"
    INT8_BITSANDBYTES = "int8 (bitsandbytes)"
    SVDQUANT = "svdquant (nunchaku)"
    PACKED_INT4 = "packed int4 (GPTQ or AWQ)"

    @property
    def is_computable(self) -> bool:
        """Whether civman can unpack weights packed in this way. A file may still be refused because of its settings."""
        return self in (Quantisation.FP8_SCALED, Quantisation.INT8_SCALED, Quantisation.NF4)


@dataclass(frozen=True, slots=True)
class WeightForm:
    """How a file stores its weights.

    `parts` contains (part, precision) for each part that has weights, such as ("UNet", "fp8"). `quantisation` is the
    kind of packing, or None if the weights are plain numbers.
    """

    parts: tuple[tuple[str, str], ...] = ()
    quantisation: Quantisation | None = None

    @property
    def is_computable(self) -> bool:
        """Whether civman can convert the stored weights back into numbers."""
        if self.quantisation is not None:
            return self.quantisation.is_computable
        odd = ("int8", "int32", "fp4", *UNREADABLE)
        return not any(number in said.split(" and ") for _, said in self.parts for number in odd)

    @property
    def words(self) -> str:
        """A description for users, such as "fp16" or "UNet fp8 with scales, rest fp16"; empty if nothing is known."""
        said = dict(self.parts)
        if self.quantisation is not None and self.quantisation is not Quantisation.FP8_SCALED:
            return str(self.quantisation)
        if len(set(said.values())) <= 1:
            return next(iter(said.values()), "")
        model = next(iter(said))
        others = {precision for part, precision in said.items() if part != model}
        if len(others) == 1:
            return f"{model} {said[model]}, rest {others.pop()}"
        return ", ".join(f"{part} {precision}" for part, precision in said.items())


_PRECISIONS = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "F8_E4M3FNUZ": "fp8", "F8_E5M2FNUZ": "fp8", "F8_E8M0": "fp8", "F4": "fp4", "I8": "int8", "U8": "int8",
    "I32": "int32",
    **{kind: kind for kind, (block, _) in BLOCKS.items() if block > 1},
}  # fmt: skip
_FP8 = frozenset(("F8_E4M3", "F8_E5M2"))
_PARTS = (
    ("VAE", ("first_stage_model.", "vae.")),
    ("text encoders", ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder")),
    ("", ("model_ema.",)),
)


def weight_form(tensors: Mapping[str, Tensor]) -> WeightForm:
    """Determine how these tensors' weights are stored."""
    found = _quantisation(tensors)
    precisions = {_PRECISIONS.get(dtype) for dtype in {tensor.dtype for tensor in tensors.values()}} - {None}
    # most files have a single precision, so their tensors need not be sorted into parts
    if len(precisions) == 1 and found is None:
        return WeightForm((("model", str(precisions.pop())),)) if _has_weights(tensors) else WeightForm()
    counts: dict[str, dict[str, int]] = {}
    scaled: set[str] = set()
    for name, tensor in tensors.items():
        part = _part_of(name)
        if found is Quantisation.FP8_SCALED and name.endswith(SCALES):
            scaled.add(part)
        precision = _PRECISIONS.get(tensor.dtype)
        if precision is not None and tensor.shape and part:
            row = counts.setdefault(part, {})
            row[precision] = row.get(precision, 0) + math.prod(tensor.shape)
    if counts.keys() & {"UNet", "transformer"}:
        # tensors outside all parts, such as the noise schedule, are not weights
        counts.pop("model", None)
    order = ("UNet", "transformer", "model", "text encoders", "VAE")
    parts = []
    for part in sorted(counts, key=order.index):
        most = _most(counts[part])
        if most:
            parts.append((part, f"{most} with scales" if part in scaled and "fp8" in most else most))
    return WeightForm(tuple(parts), found)


def _has_weights(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.shape and tensor.dtype in _PRECISIONS and _part_of(name) for name, tensor in tensors.items())


def scale_names(tensors: Iterable[str]) -> dict[str, str]:
    """Map each weight that has a scale to the name of its scale tensor."""
    names = tensors.keys() if isinstance(tensors, Mapping) else set(tensors)
    found: dict[str, str] = {}
    if not any(ending in "\n".join(names) for ending in SCALES):
        return found
    for name in names:
        if not name.endswith(SCALES):  # test for all endings at once, because most names have none of them
            continue
        for ending in SCALES:
            if name.endswith(ending) and (weight := f"{name.removesuffix(ending)}.weight") in names:
                found[weight] = name
    return found


def _quantisation(tensors: Mapping[str, Tensor]) -> Quantisation | None:
    endings = {ending: kind for kind, marks in _MARKS for ending in marks}
    text = "\n".join(tensors)
    seen = any(mark in text for mark in (".quant_state.bitsandbytes__", *endings))
    for name in tensors if seen else ():
        if ".quant_state.bitsandbytes__" in name:
            return Quantisation.NF4
        tail = name.rpartition(".")[2]
        if tail in endings:
            return endings[tail]
    scales = scale_names(tensors)
    types = {tensors[weight].dtype for weight in scales}
    if any(tensors[scale].dtype == "F8_E8M0" for scale in scales.values()):
        return Quantisation.MXFP8
    if types & {"U8", "F4"}:
        return Quantisation.NVFP4
    if "I8" in types:
        return Quantisation.INT8_SCALED
    return Quantisation.FP8_SCALED if types else None


_MARKS = (
    (Quantisation.SVDQUANT, ("wscales", "smooth_factor", "proj_down")),
    (Quantisation.PACKED_INT4, ("qzeros", "g_idx")),
    (Quantisation.INT8_BITSANDBYTES, ("SCB",)),
    (Quantisation.NVFP4, ("weight_scale_2",)),
)
"""Maps each kind of packing to the last components of tensor names that only this kind has."""


def _part_of(name: str) -> str:
    """Return the part of a model that a tensor belongs to; empty if it contains a tokenizer instead of weights."""
    if name.endswith(TOKENIZERS):
        return ""
    for part, prefixes in _PARTS:
        if name.startswith(prefixes):
            return part
    if name.startswith(("model.diffusion_model.input_blocks", "model.diffusion_model.output_blocks",
                        "model.diffusion_model.middle_block", "model.diffusion_model.out.", "unet.",
                        "model.diffusion_model.time_embed", "model.diffusion_model.label_emb")):  # fmt: skip
        return "UNet"
    return "transformer" if name.startswith(("model.diffusion_model.", "transformer.")) else "model"


def _most(counts: Mapping[str, int]) -> str:
    """Return the precision of at least nine tenths of a part's weights, or else the two most common precisions."""
    total = sum(counts.values())
    ordered = sorted(counts, key=lambda precision: (-counts[precision], precision))
    if not total:
        return ""
    first = ordered[0]
    return first if counts[first] * 10 >= total * 9 else " and ".join(ordered[:2])
