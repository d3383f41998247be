"""ESRGAN's and Real-ESRGAN's networks as torch modules, as their papers and published code lay them out, and files of
them in each layout of names. Nothing here is civman's."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Dense(nn.Module):
    def __init__(self, width: int, growth: int, plus: bool = False) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(width, growth, 1, bias=False) if plus else None
        for number in range(1, 6):
            setattr(
                self,
                f"conv{number}",
                nn.Conv2d(width + (number - 1) * growth, growth if number < 5 else width, 3, 1, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        act = nn.LeakyReLU(0.2)
        x1 = act(self.conv1(x))
        x2 = act(self.conv2(torch.cat((x, x1), 1)))
        if self.conv1x1 is not None:
            x2 = x2 + self.conv1x1(x)
        x3 = act(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = act(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        if self.conv1x1 is not None:
            x4 = x4 + x2
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class Residual(nn.Module):
    def __init__(self, width: int, growth: int, plus: bool = False) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(width, growth, plus) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class Esrgan(nn.Module):
    def __init__(
        self, rises: int = 2, folded: int = 1, width: int = 6, growth: int = 3, blocks: int = 2, plus: bool = False
    ) -> None:
        super().__init__()
        self.rises, self.folded = rises, folded
        self.conv_first = nn.Conv2d(3 * folded**2, width, 3, 1, 1)
        self.body = nn.Sequential(*[Residual(width, growth, plus) for _ in range(blocks)])
        self.conv_body = nn.Conv2d(width, width, 3, 1, 1)
        for number in range(1, rises + 1):
            setattr(self, f"conv_up{number}", nn.Conv2d(width, width, 3, 1, 1))
        self.conv_hr, self.conv_last = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        act, larger = nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2, mode="nearest")
        x = nn.PixelUnshuffle(self.folded)(x)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for number in range(1, self.rises + 1):
            x = act(getattr(self, f"conv_up{number}")(larger(x)))
        return self.conv_last(act(self.conv_hr(x)))


class Compact(nn.Module):
    def __init__(self, scale: int = 4, width: int = 6, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1), nn.PReLU(width)]
        for _ in range(layers):
            parts += [nn.Conv2d(width, width, 3, 1, 1), nn.PReLU(width)]
        self.body, self.scale = nn.ModuleList([*parts, nn.Conv2d(width, 3 * scale**2, 3, 1, 1)]), scale

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for layer in self.body:
            inner = layer(inner)
        return nn.PixelShuffle(self.scale)(inner) + nn.Upsample(scale_factor=self.scale, mode="nearest")(x)


def seeded(model: nn.Module, seed: int = 5) -> nn.Module:
    """The module with larger weights than usual, so that every part of it shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1)
    return model.eval()


def first_layout(tensors: Mapping[str, Tensor], blocks: int = 2, rises: int = 2) -> dict[str, Tensor]:
    """The names of the first ESRGAN: numbered layers, an activation after each of them but the last."""
    numbers = {"conv_first": 0, **{f"conv_up{n}": 3 * n for n in range(1, rises + 1)}}
    numbers |= {"conv_hr": 3 * rises + 2, "conv_last": 3 * rises + 4}
    found = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "body":
            block, dense, conv, kind = rest.split(".")
            found[f"model.1.sub.{block}.{dense.upper()}.{conv}{'' if conv == 'conv1x1' else '.0'}.{kind}"] = tensor
        elif part == "conv_body":
            found[f"model.1.sub.{blocks}.{rest}"] = tensor
        else:
            found[f"model.{numbers[part]}.{rest}"] = tensor
    return found


def second_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of BasicSR's first version."""
    words = {"body": "RRDB_trunk", "conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up1": "upconv1",
             "conv_up2": "upconv2", "conv_up3": "upconv3"}  # fmt: skip
    found = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        found[f"{words.get(part, part)}.{rest.replace('rdb', 'RDB')}"] = tensor
    return found


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def expected_tiles(pixels: np.ndarray, network: torch.nn.Module, scale: int) -> np.ndarray:
    """A1111's grid, with arrays in the place of Pillow: 192 pixels, 8 of them shared, blue first, blended linearly."""
    height, width = pixels.shape[:2]

    def starts(length: int) -> list[int]:
        count = int(np.ceil((length - 8) / 184))
        return [length - 192 if i == count - 1 else int(i * (length - 192) / (count - 1)) for i in range(count)]

    padded = np.zeros((height + 400, width + 400, 3), np.uint8)
    padded[200 : 200 + height, 200 : 200 + width] = pixels
    whole = np.zeros(((height + 400) * scale, (width + 400) * scale, 3))
    for y in starts(height):
        row = np.zeros((192 * scale, whole.shape[1], 3))
        for x in starts(width):
            tile = padded[200 + y : 392 + y, 200 + x : 392 + x, ::-1]
            with torch.no_grad():
                out = network(torch.from_numpy(tile.copy()).permute(2, 0, 1)[None].float() / 255)[0]
            out = np.round(np.clip(out.permute(1, 2, 0).numpy(), 0, 1) * 255)[:, :, ::-1]
            weights = np.ones(192 * scale)
            if x != 0:
                weights[: 8 * scale] = np.floor(np.arange(8 * scale) * 255 / (8 * scale)) / 255
            place = slice((200 + x) * scale, (392 + x) * scale)
            row[:, place] = out * weights[None, :, None] + row[:, place] * (1 - weights[None, :, None])
        weights = np.ones(192 * scale)
        if y != 0:
            weights[: 8 * scale] = np.floor(np.arange(8 * scale) * 255 / (8 * scale)) / 255
        place = slice((200 + y) * scale, (392 + y) * scale)
        whole[place] = row * weights[:, None, None] + whole[place] * (1 - weights[:, None, None])
    return whole[200 * scale : (200 + height) * scale, 200 * scale : (200 + width) * scale]
