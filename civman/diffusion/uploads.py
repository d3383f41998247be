"""Copies tensors from the CPU to the computing device without making the CPU wait.

A copy from ordinary memory to a CUDA device waits for all work that the device has been given before. A copy from
pinned memory is queued behind that work instead, and the CPU continues. Torch reuses pinned memory only after the
copies from it have finished.
"""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without changing dtype or values; a tensor that is already on it is returned."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
