"""Creates pickles as torch.save writes them, without torch and with the same bytes on every machine."""

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping

from civman.demo.demo_weights import packaged

_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def harmless_pickle() -> bytes:
    """Create a `.ckpt` in PyTorch's zip format that contains an empty state dictionary and no code."""
    return _archive(pickle.dumps({"state_dict": {}}, protocol=2), bytes(65536))


def word_as_pickle(name: str, token: int) -> bytes:
    """Create a textual inversion as A1111 saves it: a pickle with the packaged checkpoint's vector for a token."""
    data = packaged("tiny-shapes.safetensors")
    body = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:body])[_TABLE]
    width = table["shape"][1]
    at = body + table["data_offsets"][0] + token * width * 2
    vector = struct.pack(f"<{width}f", *struct.unpack(f"<{width}e", data[at : at + width * 2]))
    return _archive(_embedding(name, (1, width)), vector)


def _embedding(name: str, shape: tuple[int, int]) -> bytes:
    """Create the pickle of a textual inversion whose only tensor has type float32 and uses the storage named `0`."""
    storage = _tuple(
        _text("storage"), _global("torch", "FloatStorage"), _text("0"), _text("cpu"), _integer(math.prod(shape))
    )
    tensor = _call(
        _global("torch._utils", "_rebuild_tensor_v2"), storage + b"Q", _integer(0), _tuple(*map(_integer, shape)),
        _tuple(_integer(shape[1]), _integer(1)), b"\x89", _call(_global("collections", "OrderedDict")),
    )  # fmt: skip
    facts = _dict({
        "string_to_token": _dict({"*": _integer(265)}), "string_to_param": _dict({"*": tensor}), "name": _text(name),
        "step": _integer(0), "sd_checkpoint": b"N", "sd_checkpoint_name": b"N",
    })  # fmt: skip
    return b"\x80\x02" + facts + b"."


def _archive(data: bytes, storage: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("archive/data.pkl", data), ("archive/version", b"3\n"), ("archive/data/0", storage),
        ):  # fmt: skip
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + _tuple(*arguments) + b"R"


def _dict(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(_text(key) + value for key, value in items.items()) + b"u"
