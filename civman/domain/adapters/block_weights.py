"""Block weights: a factor for each block of the UNet, which multiplies an adapter's changes to that block.

Block weights are lists of 12, 17, 20 or 26 numbers, or presets of A1111's extension. The first number is for the text
encoders. Blocks that are missing in a shorter list get 0; layers outside the blocks keep the adapter's scale.

Source: hako-mikan/sd-webui-lora-block-weight (the rule, not its code).
"""

import math
import re
from typing import Final

from civman.errors import Cause, UsageError


def _names(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[str, ...]:
    return ("BASE", *(f"IN{n:02}" for n in inputs), "M00", *(f"OUT{n:02}" for n in outputs))


LAYOUTS: Final = {
    12: _names((4, 5, 7, 8), tuple(range(6))),
    17: _names((1, 2, 4, 5, 7, 8), tuple(range(3, 12))),
    20: _names(tuple(range(9)), tuple(range(9))),
    26: _names(tuple(range(12)), tuple(range(12))),
}
"""Maps the number of block weights to the names of the blocks.

Lists of 12 and 20 numbers are for SDXL, of 17 and 26 for SD 1; those of 12 and 17 cover only blocks with attention.
"""
PRESETS: Final = {
    "NONE": "0" + ",0" * 16, "ALL": "1" + ",1" * 16, "INS": "1,1,1,1" + ",0" * 13, "IND": "1,0,0,0,1,1,1" + ",0" * 10,
    "INALL": "1,1,1,1,1,1,1" + ",0" * 10, "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1" + ",0" * 5,
    "OUTD": "1" + ",0" * 7 + ",1" * 4 + ",0" * 5, "OUTS": "1" + ",0" * 11 + ",1" * 5,
    "OUTALL": "1" + ",0" * 7 + ",1" * 9, "ALL0.5": "0.5" + ",0.5" * 16,
}  # fmt: skip
"""The presets that come with the extension sd-webui-lora-block-weight, whose users may define more in a file."""
_DOWN = re.compile(r"down_blocks\.(\d+)\.(?:(?:resnets|attentions)\.(\d+)|downsamplers)")
_UP = re.compile(r"up_blocks\.(\d+)\.(?:(?:resnets|attentions)\.(\d+)|upsamplers)")
_NUMBERED = re.compile(r"([a-z_.]+?\.\d+)\.")
_NAME_AND_NUMBER = re.compile(r"(.*?)(\d*)", re.DOTALL)
_OTHER: Final = "OTHER"
_LAYERS: Final = 3
"""The number of blocks per level in the original layout: two with ResNet and attention, and one that changes the size.
"""


def blocks_of(text: str) -> str:
    """Convert block weights to the canonical form: numbers separated by commas. Raises: UsageError (`bad-scale`)."""
    words = PRESETS.get(text.strip().upper(), text)
    try:
        numbers = [float(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in LAYOUTS or not all(math.isfinite(number) and abs(number) <= 100 for number in numbers):
        raise UsageError(
            f"`{text[:60]}` is neither a preset nor a list of {', '.join(map(str, LAYOUTS))} block weights",
            hint=f"the presets are {', '.join(PRESETS)}", code=Cause.BAD_SCALE,
        )  # fmt: skip
    return ",".join(f"{number:g}" for number in numbers)


def factor(blocks: str, component: str, parameter: str) -> float:
    """Return the factor for a parameter of diffusers' model ("unet" or a text encoder); 1 without block weights."""
    if not blocks:
        return 1.0
    numbers = [float(word) for word in blocks.split(",")]
    named = dict(zip(LAYOUTS[len(numbers)], numbers, strict=True))
    if component != "unet":
        return named["BASE"]
    block = _block(parameter)
    return 1.0 if block is None else named.get(block, 0.0)


def block_name(component: str, parameter: str) -> str:
    """Return the name that block weights use for the block of a parameter of diffusers' model.

    All text encoders are "BASE", and a UNet's layers outside all blocks are "OTHER". A transformer's blocks have the
    same names as in the model, such as "transformer_blocks.3".
    """
    if component.startswith("text_encoder"):
        return "BASE"
    if component == "unet":
        return _block(parameter) or _OTHER
    numbered = _NUMBERED.match(parameter)
    return numbered[1] if numbered else _OTHER


def block_order(block: str) -> tuple[int, str, int]:
    """Return a key that sorts blocks in the UNet's order of evaluation: BASE, IN, M, OUT, then all others."""
    name, number = _NAME_AND_NUMBER.fullmatch(block).groups()  # type: ignore[union-attr]  # it matches any text
    ranks = {"BASE": 0, "IN": 1, "M": 2, "OUT": 3, _OTHER: 5}
    return ranks.get(name, 4), name, int(number or 0)


def _block(parameter: str) -> str | None:
    """Return the name of a parameter's block in the original layout; None for layers before and after all blocks."""
    if parameter.startswith("conv_in."):
        return "IN00"
    if parameter.startswith("mid_block."):
        return "M00"
    if match := _DOWN.match(parameter):
        return f"IN{int(match[1]) * _LAYERS + (int(match[2]) + 1 if match[2] else _LAYERS):02}"
    if match := _UP.match(parameter):
        return f"OUT{int(match[1]) * _LAYERS + (int(match[2]) if match[2] else _LAYERS - 1):02}"
    return None
