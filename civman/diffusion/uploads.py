"""Copy tensors from the CPU to the device that computes, without either of them waiting for the other.

A copy to a CUDA device from ordinary memory waits for everything that the device has been asked to do before. A copy
from pinned memory is queued behind that work instead, and the CPU goes on. Torch reuses pinned memory only after the
copies from it have been made.
"""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on `device`, with its dtype and values; the tensor itself if it is there already."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
