"""Calls of the UNet as values: a generator that samples an image yields each call and is sent its output.

Several images can thus be sampled side by side: the runner collects one call from each generator and answers all of
them with one call of the UNet.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from civman.diffusion.control_additions import NOTHING_ADDED, Additions
from civman.diffusion.token_merging import merging

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class UnetCall:
    """One call of the UNet for a batch of B images and k prompts.

    `inputs`: (B, channels, h, w) in the UNet's dtype; `time`: (), float32; `contexts`: (k·B, tokens, width), all images
    with the first prompt, then all with the second one; `added`: SDXL's further inputs, (k·B, width) each.
    """

    inputs: Tensor
    time: Tensor
    contexts: Tensor
    added: Mapping[str, Tensor]
    prompts: int
    """k, the number of prompts."""
    token_merging: float = 0.0
    controlled: Additions = NOTHING_ADDED
    """What control models add inside the UNet."""


Calls = Generator[UnetCall, Tensor, T]
"""Computes something with the UNet: yields calls, is sent the answers (k·B, 4, h, w) float32, and returns T."""


def run(calls: Calls[T], unet: Any) -> T:
    """Answer all calls with the UNet, one by one, and return the result."""
    try:
        call = next(calls)
        while True:
            call = calls.send(answer(call, unet))
    except StopIteration as stop:
        result: T = stop.value
        return result


def answer(call: UnetCall, unet: Any) -> Tensor:
    """Call the UNet. Returns (k·B, 4, h, w) float32."""
    more: dict[str, Any] = {"added_cond_kwargs": dict(call.added)} if call.added else {}
    if call.controlled.residuals:
        *skips, middle = call.controlled.residuals
        more |= {"down_block_additional_residuals": tuple(skips), "mid_block_additional_residual": middle}
    if call.controlled.features:
        more["down_intrablock_additional_residuals"] = list(call.controlled.features)
    with merging(unet, call.token_merging, (call.inputs.shape[-2], call.inputs.shape[-1])):
        made: Tensor = unet(
            call.inputs.repeat(call.prompts, 1, 1, 1), call.time, encoder_hidden_states=call.contexts,
            return_dict=False, **more,
        )[0]  # fmt: skip
    return made.to(torch.float32)
