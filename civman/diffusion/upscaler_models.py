"""Upscaler models: the ESRGAN architecture (RRDBNet) and Real-ESRGAN's compact architecture; also loads SwinIR.

Both architectures exist in several layouts of tensor names. RRDBNet models may also start with a pixel unshuffle, or
have shortcuts with 1x1 convolutions in their dense blocks. The scale and the layout are derived from the tensors.
Other architectures are refused.

Sources: Wang et al. 2018 (ESRGAN), Rakotonirina and Rasoanaivo 2020 (ESRGAN+, the shortcuts), Wang et al. 2021
(Real-ESRGAN).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from civman.diffusion.tensor_files import open_tensors
from civman.diffusion.upscaler_swinir import SwinIr, swinir
from civman.errors import CannotRender, Cause

_SLOPE: Final = 0.2
_DAMPING: Final = 0.2
_TRIAL: Final = 16
"""The side in pixels of the image on which a model is tested when it is loaded; SwinIR's windows are no larger."""
_WRAPPERS: Final = re.compile(r"^(params_ema|params|state_dict|module)\.")
_BLOCK: Final = re.compile(
    r"^(?:body|RRDB_trunk|model\.1\.sub)\.(\d+)\.(?:rdb|RDB)([123])\.conv(1x1|[1-5])(?:\.0)?\.(.*)$"
)
_OLDER_NAMES: Final = {"trunk_conv": "conv_body", "HRconv": "conv_hr"}


@dataclass(frozen=True, slots=True, eq=False)
class UpscalerModel:
    """A loaded upscaler: its kind ("esrgan" or "compact"), its scale factor, and its tensors.

    The tensors' names do not depend on the layout of the file.
    """

    kind: str
    scale: int
    tensors: Mapping[str, Tensor]
    blocks: int
    rises: int = 0
    folded: int = 1

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Enlarge (B, 3, H, W) in 0 … 1. The result may contain values outside this range."""
        return self._esrgan(pixels) if self.kind == "esrgan" else self._compact(pixels)

    def to(self, device: torch.device) -> "UpscalerModel":
        """Return the model on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return UpscalerModel(self.kind, self.scale, moved, self.blocks, self.rises, self.folded)

    def _conv(self, x: Tensor, name: str) -> Tensor:
        return functional.conv2d(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], padding=1)

    def _esrgan(self, x: Tensor) -> Tensor:
        if self.folded > 1:
            x = functional.pixel_unshuffle(x, self.folded)
        first = self._conv(x, "conv_first")
        inner = first
        for block in range(self.blocks):
            entered = inner
            for dense in (1, 2, 3):
                inner = self._dense(inner, f"body.{block}.rdb{dense}")
            inner = entered + inner * _DAMPING
        x = first + self._conv(inner, "conv_body")
        for rise in range(1, self.rises + 1):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(self._conv(x, f"conv_up{rise}"), _SLOPE)
        return self._conv(functional.leaky_relu(self._conv(x, "conv_hr"), _SLOPE), "conv_last")

    def _dense(self, x: Tensor, name: str) -> Tensor:
        """Apply five convolutions, each of which takes the input and the outputs of all previous ones.

        ESRGAN+ adds the input to the second output through a 1x1 convolution, and the second output to the fourth.
        """
        seen, shortcut = [x], self.tensors.get(f"{name}.conv1x1.weight")
        for number in range(1, 5):
            output = functional.leaky_relu(self._conv(torch.cat(seen, 1), f"{name}.conv{number}"), _SLOPE)
            if shortcut is not None and number % 2 == 0:
                output = output + (functional.conv2d(x, shortcut) if number == 2 else seen[2])
            seen.append(output)
        return x + self._conv(torch.cat(seen, 1), f"{name}.conv5") * _DAMPING

    def _compact(self, x: Tensor) -> Tensor:
        """Apply alternating convolutions and PReLUs, then a pixel shuffle, and add the enlarged input image."""
        inner = x
        for layer in range(self.blocks):
            inner = self._conv(inner, f"body.{layer}") if layer % 2 == 0 else functional.prelu(
                inner, self.tensors[f"body.{layer}.weight"]
            )  # fmt: skip
        large = functional.pixel_shuffle(inner, self.scale)
        return large + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


AnyUpscaler = UpscalerModel | SwinIr
"""A loaded upscaler of any kind that civman runs."""


def load_upscaler(path: Path) -> AnyUpscaler:
    """Load an upscaler from a safetensors file, which may be the copy of a pickle.

    Raises: CannotRender (`no-upscaler`): civman cannot run this kind of upscaler. InvalidModelFile, Refused: the file
    cannot be read.
    """
    with open_tensors(path) as file:
        tensors = {_WRAPPERS.sub("", name): file.get_tensor(name).float().clone() for name in file.keys()}  # noqa: SIM118
    try:
        made = _made(tensors)
        result = made(torch.zeros(1, 3, _TRIAL, _TRIAL)) if made else None
    except (KeyError, RuntimeError, ValueError) as error:
        raise _unknown(path, "the file's tensors do not fit together") from error
    if made is None or result is None or result.shape != (1, 3, _TRIAL * made.scale, _TRIAL * made.scale):
        raise _unknown(path, "the file's tensors are not those of ESRGAN, SwinIR or Real-ESRGAN's compact models")
    return made


def _made(tensors: Mapping[str, Tensor]) -> AnyUpscaler | None:
    if any(map(_BLOCK.match, tensors)):
        return _esrgan(tensors)
    return swinir(tensors) or _compact(tensors)


def _esrgan(tensors: Mapping[str, Tensor]) -> UpscalerModel | None:
    named = {}
    for name, tensor in tensors.items():
        block = _BLOCK.match(name)
        named[f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}" if block else _newer(name)] = tensor
    if any(name.startswith("model.") for name in named):
        named = _from_numbers(named)
    blocks = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("body."))
    rises = sum(f"conv_up{number}.weight" in named for number in (1, 2, 3))
    folded = {3: 1, 12: 2, 48: 4}[int(named["conv_first.weight"].shape[1])]
    return UpscalerModel("esrgan", 2**rises // folded, named, blocks, rises, folded)


def _newer(name: str) -> str:
    """Translate a tensor name from BasicSR's first layout to its later layout."""
    first, _, rest = name.partition(".")
    plain = re.sub(r"^upconv(\d)$", r"conv_up\1", _OLDER_NAMES.get(first, first))
    return f"{plain}.{rest}"


def _from_numbers(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors from ESRGAN's original layout, which numbers all layers, to BasicSR's later layout."""
    layers = sorted({int(name.split(".")[1]) for name in named if re.fullmatch(r"model\.\d+\.weight", name)})
    first, *rises, high, last = layers
    names = {first: "conv_first", high: "conv_hr", last: "conv_last"}
    names |= {layer: f"conv_up{number}" for number, layer in enumerate(rises, 1)}
    found = {}
    for name, tensor in named.items():
        if trunk := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", name):
            found[f"conv_body.{trunk[1]}"] = tensor
        elif layer := re.fullmatch(r"model\.(\d+)\.(weight|bias)", name):
            found[f"{names[int(layer[1])]}.{layer[2]}"] = tensor
        else:
            found[name] = tensor
    return found


def _compact(tensors: Mapping[str, Tensor]) -> UpscalerModel | None:
    layers = [int(name.split(".")[1]) for name in tensors if re.fullmatch(r"body\.\d+\.weight", name)]
    if not layers or not all(name.startswith("body.") for name in tensors):
        return None
    scale = round((tensors[f"body.{max(layers)}.weight"].shape[0] / 3) ** 0.5)
    return UpscalerModel("compact", scale, tensors, 1 + max(layers))


def _unknown(path: Path, why: str) -> CannotRender:
    return CannotRender(
        f"the upscaler `{path.name}` cannot be run: {why}",
        hint="use an ESRGAN, Real-ESRGAN, Real-ESRGAN compact or SwinIR model", code=Cause.NO_UPSCALER,
    )  # fmt: skip
