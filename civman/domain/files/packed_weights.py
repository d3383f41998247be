"""Determines how to unpack each packed weight of a file, and which tensors the file has after unpacking.

A packed weight is stored with fewer bits and some helper tensors: 8-bit floats or integers with a scale, or 4-bit codes
with a table. `packed_weights` describes how each packed weight is stored; `plain_tensors` lists the tensors after
unpacking. The arithmetic is in `civman.diffusion.dequantise`.

Source: the tensors and the JSON settings that ComfyUI and bitsandbytes write.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from civman.domain.files.gguf_types import BLOCKS
from civman.domain.files.header import Header
from civman.domain.files.header_text import Tensor, short
from civman.domain.files.weight_forms import INPUT_SCALES, MARKER, Quantisation, WeightForm, scale_names, weight_form
from civman.errors import CannotRender, Cause, InvalidModelFile

Shape = tuple[int, ...]
Read = Callable[[str], bytes]
"""A function that reads the bytes of a small tensor, by the tensor's name."""

_QUANT_STATE = ".quant_state.bitsandbytes__"
_FLOATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""Maps ComfyUI's names of formats to the data types of the stored numbers."""
_INT8 = "int8_tensorwise"
_MAX_JSON_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Packed:
    """How one weight is stored, and the shape of the unpacked weight.

    If `scale` is not empty, the stored numbers are multiplied by the tensor of that name; `rotation` is the size of the
    groups of inputs that were rotated before quantisation, 0 if there was no rotation. If `table` is not empty, each
    byte contains two indices into that tensor, the first one in the upper four bits, and each block of `block` weights
    is multiplied by its element of `absmax`. If `absmax` is itself packed in the same way, `nested_table`,
    `nested_absmax`, `nested_block` and `nested_offset` describe how.
    """

    shape: Shape
    dtype: str = ""
    """The data type of the stored bytes; "" means the type that the header states."""
    scale: str = ""
    rotation: int = 0
    table: str = ""
    absmax: str = ""
    block: int = 0
    nested_table: str = ""
    nested_absmax: str = ""
    nested_block: int = 0
    nested_offset: float = 0.0
    helpers: tuple[str, ...] = field(default=(), repr=False)
    """The names of all tensors that are only needed to unpack this weight."""


def packed_weights(header: Header, read: Read, file: str) -> dict[str, Packed]:
    """Map the name of every packed weight in a file to how it is stored. `file`: the file's name, for messages.

    Raises: CannotRender (`quantised-weights`): civman cannot convert the format back into numbers; the message names
        the format. InvalidModelFile: the helper tensors do not belong together.
    """
    tensors, form = header.tensors, weight_form(header.tensors)
    if form.quantisation is None and form.is_computable:
        return {}
    said = _stated_formats(header.metadata)
    found: dict[str, Packed] = {}
    try:
        for weight, scale in scale_names(tensors).items():
            found[weight] = _scaled(weight, scale, tensors, said, read)
        for name in tensors:
            if _QUANT_STATE in name:
                weight = name.partition(_QUANT_STATE)[0]
                found[weight] = _four_bit(weight, name, tensors, read)
    except _UnknownFormError as unknown:
        raise _refusal(str(unknown), file) from unknown
    if not found or form.quantisation in _WITHOUT_SCALES:
        require_computable(form, file)
    return found


_WITHOUT_SCALES = (Quantisation.SVDQUANT, Quantisation.PACKED_INT4, Quantisation.INT8_BITSANDBYTES)
"""Packed formats without scale tensors. `packed_weights` looks for scale tensors, so it must refuse them separately."""


class _UnknownFormError(ValueError):
    """A layer is packed in a format that civman cannot unpack; the message is the format's name."""


def plain_tensors(tensors: Mapping[str, Tensor], packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """List the tensors as the model uses them: packed weights with their unpacked shapes, and no helper tensors."""
    if not packed:
        return dict(tensors)
    hidden = {name for each in packed.values() for name in each.helpers}
    return {
        name: tensor._replace(shape=packed[name].shape) if name in packed else tensor
        for name, tensor in tensors.items()
        if name not in hidden and not name.endswith(MARKER)
    }


def is_packed_type(dtype: str) -> bool:
    """Whether numbers of this type are packed in blocks, as in GGUF."""
    return BLOCKS.get(dtype, (1, 0))[0] > 1


def _stated_formats(metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Parse ComfyUI's list of quantised layers in the header. Returns the settings of each module by its name."""
    text = metadata.get("_quantization_metadata", "")
    if not text:
        return {}
    try:
        layers = json.loads(text)["layers"]
        return {str(name): dict(settings) for name, settings in layers.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidModelFile("the file's list of quantised layers cannot be read") from error


def _scaled(
    weight: str, scale: str, tensors: Mapping[str, Tensor], said: Mapping[str, Mapping[str, Any]], read: Read
) -> Packed:
    module = weight.removesuffix(".weight")
    note = f"{module}.comfy_quant"
    settings = said.get(module, {})
    if note in tensors:
        settings = {**settings, **_json(note, tensors, read)}
    form = str(settings.get("format", ""))
    stored = tensors[weight]
    dtype, rotation = "", 0
    if form in _FLOATS:
        dtype = _FLOATS[form]
        if stored.dtype not in (dtype, "U8") and stored.dtype.startswith("F8"):
            raise InvalidModelFile(f"`{short(weight)}` has the type {stored.dtype}, but its settings state {form}")
        dtype = dtype if stored.dtype == "U8" else ""
    elif form == _INT8:
        rotation = _rotation(weight, stored, settings)
    elif form:
        _refuse(form)
    elif stored.dtype in ("I8", "U8"):
        _refuse("int8 in an unstated format" if stored.dtype == "I8" else "nvfp4")
    _require_scale(weight, scale, stored.shape, tensors)
    helpers = (scale, *(f"{module}{ending}" for ending in INPUT_SCALES if f"{module}{ending}" in tensors))
    return Packed(stored.shape, dtype=dtype, scale=scale, rotation=rotation, helpers=helpers)


def _require_scale(weight: str, scale: str, shape: Shape, tensors: Mapping[str, Tensor]) -> None:
    count = math.prod(tensors[scale].shape)
    if count not in (1, shape[0] if shape else 1):
        raise InvalidModelFile(
            f"`{short(scale)}` has shape {list(tensors[scale].shape)}, which does not fit a weight of shape "
            f"{list(shape)}",
            tensor=scale,
        )
    if tensors[scale].dtype not in ("F64", "F32", "F16", "BF16"):
        scale_type = tensors[scale].dtype
        _refuse("mxfp8" if scale_type == "F8_E8M0" else f"numbers with scales of type {scale_type}")
    if f"{weight}_scale_2" in tensors:
        _refuse("nvfp4")


def _rotation(weight: str, stored: Tensor, settings: Mapping[str, Any]) -> int:
    if stored.dtype != "I8":
        raise InvalidModelFile(f"`{short(weight)}` has the type {stored.dtype}, but its settings state {_INT8}")
    if not settings.get("convrot"):
        return 0
    group = settings.get("convrot_groupsize", 256)
    width = stored.shape[1] if len(stored.shape) == 2 else 0
    # the group size must be a power of four that divides the number of inputs
    is_size = isinstance(group, int) and group > 1 and group & (group - 1) == 0 and group.bit_length() % 2 == 1
    if not is_size or not width or width % group:
        raise InvalidModelFile(
            f"`{short(weight)}` of shape {list(stored.shape)} cannot be rotated in groups of {group}"
        )
    return int(group)


_NESTED = ("nested_absmax", "nested_quant_map")


def _four_bit(weight: str, state: str, tensors: Mapping[str, Tensor], read: Read) -> Packed:
    settings = _json(state, tensors, read)
    form = str(settings.get("quant_type", ""))
    if form not in ("nf4", "fp4"):
        _refuse(f"{form or 'an unnamed format'} of bitsandbytes")
    try:
        shape = tuple(int(size) for size in settings["shape"])
        block = int(settings["blocksize"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelFile(f"`{short(state)}` does not state the shape of its weight") from error
    names = {part: f"{weight}.{part}" for part in ("absmax", "quant_map", *_NESTED)}
    held = {part: tensors[name] for part, name in names.items() if name in tensors}
    count, is_nested = math.prod(shape), "nested_absmax" in held
    blocks = -(-count // block) if block > 0 else 0
    sizes = {"absmax": blocks, "quant_map": 16}
    if is_nested:
        sizes |= {"nested_absmax": -(-blocks // max(int(settings.get("nested_blocksize", 0)), 1)),
                  "nested_quant_map": 256}  # fmt: skip
    wrong = [names[part] for part, size in sizes.items() if part not in held or math.prod(held[part].shape) != size]
    if block <= 0 or min(shape, default=0) <= 0 or weight not in tensors or tensors[weight].dtype != "U8" or wrong:
        which = wrong[0] if wrong else weight
        raise InvalidModelFile(f"`{short(which)}` is missing or does not fit a weight of shape {list(shape)}")
    if math.prod(tensors[weight].shape) != (count + 1) // 2:
        raise InvalidModelFile(
            f"the number of 4-bit codes in `{short(weight)}` does not fit a weight of shape {list(shape)}"
        )
    return Packed(
        shape, table=names["quant_map"], absmax=names["absmax"], block=block,
        nested_table=names["nested_quant_map"] if is_nested else "",
        nested_absmax=names["nested_absmax"] if is_nested else "",
        nested_block=int(settings.get("nested_blocksize", 0)) if is_nested else 0,
        nested_offset=float(settings.get("nested_offset", 0.0)) if is_nested else 0.0,
        helpers=(state, *(names[part] for part in held)),
    )  # fmt: skip


def _json(name: str, tensors: Mapping[str, Tensor], read: Read) -> dict[str, Any]:
    """Parse the JSON settings that a tensor of bytes contains."""
    tensor = tensors[name]
    if tensor.dtype != "U8" or tensor.end - tensor.start > _MAX_JSON_BYTES:
        raise InvalidModelFile(f"the tensor `{short(name)}` should contain JSON settings, but does not")
    try:
        found = json.loads(read(name).decode("utf-8").rstrip("\0 "))
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"the settings in `{short(name)}` cannot be read") from error
    if not isinstance(found, dict):
        raise InvalidModelFile(f"the settings in `{short(name)}` cannot be read")
    return found


def require_computable(form: WeightForm, file: str) -> None:
    """Check that civman can compute with weights stored in this way. Raises: CannotRender (`quantised-weights`)."""
    if not form.is_computable:
        raise _refusal(form.words, file)


def _refuse(form: str) -> NoReturn:
    raise _UnknownFormError(form)


def _refusal(form: str, file: str) -> CannotRender:
    return CannotRender(
        f"the weights in `{file}` are stored as {short(form)}, which civman cannot compute with",
        hint="choose a file of this version in fp16, bf16, fp8 or as GGUF",
        code=Cause.QUANTISED_WEIGHTS,
        file=file,
        form=short(form),
    )
