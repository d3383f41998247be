"""`GET /model-files/{id}/tensor-metadata`: the contents of a safetensors header, without a download."""

import json
from typing import Any

from civman.demo.demo_catalog import DemoFile
from civman.demo.download_endpoint import error
from civman.demo.http_messages import Answer


def tensor_metadata(file: DemoFile, *, is_summary: bool) -> Answer:
    """Build the response: counts and sizes and, unless `is_summary`, each tensor; 422 if the header cannot be read."""
    data = file.content.data
    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or end > len(data):
        return error(422, "Could not read tensor metadata")
    header: dict[str, Any] = json.loads(data[8:end])
    header.pop("__metadata__", None)
    tensors = [
        {"name": name, "shape": each["shape"], "dtype": each["dtype"],
         "sizeBytes": each["data_offsets"][1] - each["data_offsets"][0]}
        for name, each in header.items()
    ]  # fmt: skip
    counts: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        row = counts.setdefault(tensor["dtype"], {"dtype": tensor["dtype"], "count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += tensor["sizeBytes"]
    summary = {
        "format": file.format,
        "tensorCount": len(tensors),
        "totalTensorBytes": sum(tensor["sizeBytes"] for tensor in tensors),
        "dtypeCounts": list(counts.values()),
        "largestTensor": max(tensors, key=lambda tensor: int(tensor["sizeBytes"]), default=None),
        "vramEstimate": None,
    }
    return Answer.of_json(summary if is_summary else summary | {"tensors": tensors})
