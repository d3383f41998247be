"""The tensors that control models add to a UNet, and computations that all kinds of control models share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from civman.diffusion.pixels import Pixels
from civman.diffusion.uploads import sent
from civman.domain.recipes.control import ControlUse


@dataclass(frozen=True, slots=True, eq=False)
class Additions:
    """The tensors that control models add inside the UNet, each (k·B, channels, h, w) for k prompts and B images.

    `residuals`, from ControlNets: one for each skip connection, then one for the middle block's output. `features`,
    from T2I-Adapters: one for each level of the UNet's first half.
    """

    residuals: tuple[Tensor, ...] = ()
    features: tuple[Tensor, ...] = ()


NOTHING_ADDED = Additions()


class ActiveControl(Protocol):
    """A control model during one pass, with its control image at the size of the pass."""

    def at(self, step: int, steps: int) -> "ActiveControl | None":
        """Return this control with only the images that act in step `step` (counted from 0); None if none acts."""
        ...

    def additions(
        self, latents: Tensor, time: Tensor, contexts: Tensor, added: Mapping[str, Any], positive: Sequence[bool]
    ) -> Additions:
        """Compute what the control model adds to the UNet in one call.

        `latents` (k·B, 4, h, w) and `contexts` (k·B, tokens, width) are the UNet's inputs for k prompts and B images.
        `positive` contains a bool for each prompt: True for a positive prompt, False for a negative one.
        """
        ...


def marked(outputs: Sequence[Tensor], use: ControlUse, positive: Sequence[bool]) -> tuple[Tensor, ...]:
    """Set the outputs (k·B, channels, h, w) for negative prompts to 0 if the control acts only on positive prompts."""
    if use.mode != "control" and not use.pools:
        return tuple(outputs)
    each = len(outputs[0]) // len(positive)
    marks = sent(torch.tensor([float(one) for one in positive for _ in range(each)]), outputs[0].device)
    return tuple(output * marks.to(output.dtype).reshape(-1, 1, 1, 1) for output in outputs)


def control_tensor(pixels: Pixels, size: tuple[int, int], mode: str, device: torch.device) -> Tensor:
    """Resize a control image (H, W, 3) uint8 to `size` (width, height); return it as (1, 3, H, W) in 0 … 1."""
    from PIL import Image

    from civman.diffusion.start_picture import fitted

    image = Image.fromarray(pixels)
    if image.size != size:
        image = _padded(image, size) if mode == "resize and pad" else fitted(image, size, mode)
    values = torch.from_numpy(np.array(image)).to(torch.float32) / 255
    return sent(values.permute(2, 0, 1)[None], device)


def _padded(image: Any, size: tuple[int, int]) -> Any:
    """Resize a Pillow image to fit inside `size`, and pad it with the median colour of its border.

    Source: A1111's ControlNet extension, "Resize and Fill" (the rule).
    """
    from PIL import Image

    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = Image.new("RGB", size, tuple(int(value) for value in np.median(border, axis=0)))
    factor = min(size[0] / image.width, size[1] / image.height)
    inner = image.resize(tuple(max(1, round(side * factor)) for side in image.size), Image.Resampling.LANCZOS)
    ground.paste(inner, (max(0, (size[0] - inner.width) // 2), max(0, (size[1] - inner.height) // 2)))
    return ground


def total(found: Sequence[Additions], dtype: torch.dtype) -> Additions:
    """Sum what several control models add to the UNet, in the UNet's dtype."""
    return Additions(_sums([each.residuals for each in found], dtype), _sums([each.features for each in found], dtype))


def _sums(outputs: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    given = [each for each in outputs if each]
    return tuple(sum(same[1:], start=same[0]).to(dtype) for same in zip(*given, strict=True))
