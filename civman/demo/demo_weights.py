"""Creates model files with real layouts and small seeded random values, or reads those packaged with civman.

The created bytes are the same on every machine.

Source: the safetensors format (eight bytes of little-endian header length, a JSON header, then the tensors).
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from importlib.resources import files

from civman.demo import model_layouts
from civman.demo.model_layouts import Shapes

_WIDTH_BYTES = {"F16": 2, "F32": 4, "I64": 8}
# Masks for the bytes of each value (little-endian): keep the sign, the mantissa and two bits of the exponent, and set
# the other bits of the exponent to fixed values. Every value is then between 2**-7 and 2**-3 in magnitude, and never
# infinite or NaN.
_KEEP = {"F16": b"\xff\x8f", "F32": b"\xff\xff\xff\x81"}
_PIN = {"F16": b"\x00\x20", "F32": b"\x00\x00\x00\x3c"}


def safetensors_bytes(
    shapes: Shapes, *, seed: str, dtype: str = "F16", metadata: Mapping[str, str] | None = None, alpha: float = 1.0
) -> bytes:
    """Create a safetensors file with these tensors, of type "F16" or "F32".

    The values are random numbers from `seed`, except that every tensor named `*.alpha` has the value `alpha`.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    fixed: list[tuple[int, bytes]] = []
    offset = 0
    for name, shape in shapes.items():
        kind = "I64" if name.endswith("position_ids") else dtype
        end = offset + math.prod(shape) * _WIDTH_BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        if kind == "I64":
            fixed.append((offset, struct.pack(f"<{shape[-1]}q", *range(shape[-1]))))
        elif name.endswith(".alpha"):
            fixed.append((offset, struct.pack("<e" if kind == "F16" else "<f", alpha)))
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = bytearray(_values(seed, dtype, offset))
    for start, data in fixed:
        body[start : start + len(data)] = data
    return struct.pack("<Q", len(text)) + text + bytes(body)


def sd1_checkpoint(seed: str, *, dtype: str = "F16") -> bytes:
    """Create an SD 1.5 checkpoint, about 7 MB in F16."""
    return safetensors_bytes(model_layouts.sd1_checkpoint(), seed=seed, dtype=dtype, metadata={"format": "pt"})


def sdxl_checkpoint(seed: str) -> bytes:
    """Create an SDXL 1.0 checkpoint in F16."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": seed,
        "modelspec.resolution": "1024x1024",
        "modelspec.prediction_type": "epsilon",
    }
    return safetensors_bytes(model_layouts.sdxl_checkpoint(), seed=seed, metadata=metadata)


def sd1_lora(seed: str, *, tags: Mapping[str, int], rank: int = 4) -> bytes:
    """Create a kohya LoRA for the U-Net and the text encoder that fits `sd1_checkpoint`.

    `tags`: how often each tag occurs in the LoRA's training data.
    """
    metadata = _kohya_metadata(seed, tags, rank, base="sd_v1", architecture="stable-diffusion-v1/lora")
    metadata |= {"ss_sd_model_name": "v1-5-pruned-emaonly.safetensors", "ss_resolution": "(512, 512)"}
    shapes = model_layouts.kohya_lora(model_layouts.sd1_checkpoint(), rank)
    return safetensors_bytes(shapes, seed=seed, metadata=metadata, alpha=rank / 2)


def sdxl_lora(seed: str, *, tags: Mapping[str, int], rank: int = 4) -> bytes:
    """Create a kohya LoRA for the U-Net and both text encoders that fits `sdxl_checkpoint`."""
    architecture = "stable-diffusion-xl-v1-base/lora"
    metadata = _kohya_metadata(seed, tags, rank, base="sdxl_base_v1-0", architecture=architecture)
    metadata |= {"ss_sd_model_name": "sd_xl_base_1.0.safetensors", "ss_resolution": "(1024, 1024)"}
    shapes = model_layouts.kohya_lora(model_layouts.sdxl_checkpoint(), rank)
    return safetensors_bytes(shapes, seed=seed, metadata=metadata, alpha=rank / 2)


def sd1_embedding(seed: str, *, vectors: int = 8) -> bytes:
    """Create a textual inversion for SD 1.x in F32."""
    return safetensors_bytes(model_layouts.sd1_embedding(vectors), seed=seed, dtype="F32")


def vae(seed: str) -> bytes:
    """Create a standalone VAE in F32."""
    return safetensors_bytes(model_layouts.vae(), seed=seed, dtype="F32", metadata={"format": "pt"})


def packaged(name: str) -> bytes:
    """Read a file from models/. training/README.md in the repository describes how these files were trained."""
    return files("civman.demo").joinpath("models", name).read_bytes()


def stronger(name: str, factor: float) -> bytes:
    """Multiply every alpha of a packaged F16 adapter by `factor`, so that the adapter's effect grows by this factor."""
    data = bytearray(packaged(name))
    body = 8 + int.from_bytes(data[:8], "little")
    for key, tensor in json.loads(data[8:body]).items():
        if key.endswith(".alpha"):
            at = body + tensor["data_offsets"][0]
            data[at : at + 2] = struct.pack("<e", struct.unpack("<e", data[at : at + 2])[0] * factor)
    return bytes(data)


def _values(seed: str, dtype: str, count_bytes: int) -> bytes:
    random = int.from_bytes(hashlib.shake_256(seed.encode()).digest(count_bytes), "little")
    # round up, because the byte count of `position_ids` need not be a multiple of the mask's length (the caller
    # overwrites the bytes of `position_ids` anyway)
    repeats = -(-count_bytes // len(_KEEP[dtype]))
    keep = int.from_bytes((_KEEP[dtype] * repeats)[:count_bytes], "little")
    pin = int.from_bytes((_PIN[dtype] * repeats)[:count_bytes], "little")
    return (random & keep | pin).to_bytes(count_bytes, "little")


def _kohya_metadata(seed: str, tags: Mapping[str, int], rank: int, *, base: str, architecture: str) -> dict[str, str]:
    name = seed.split("/")[0]
    return {
        "ss_base_model_version": base,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank / 2),
        "ss_output_name": name,
        "ss_num_train_images": str(sum(tags.values())),
        "ss_tag_frequency": json.dumps({f"10_{name}": dict(tags)}),
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.prediction_type": "epsilon",
    }
