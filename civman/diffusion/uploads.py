"""Copy tensors from the CPU to the device that computes, without either of them waiting for the other.

A copy from ordinary memory to a CUDA device waits for all work that the device has been given before. A copy from
pinned memory is queued behind that work instead, and the CPU goes on. Torch reuses pinned memory only after the copies
from it have finished.
"""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor as a tensor on `device` with the same dtype and values; if it is already there, return it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
