"""Options of `civman render` for how strongly the prompts guide each step, and for merged tokens."""

from typing import Annotated

import typer

TokenMergingOpt = Annotated[
    float | None,
    typer.Option(help="Share of image tokens to merge in self-attention, 0 to 0.89 (ToMe).", show_default="0"),
]
ThresholdingOpt = Annotated[
    str | None,
    typer.Option(
        metavar="MIMIC[,NAME=VALUE…]",
        help='Dynamic thresholding: the CFG scale to mimic and further settings, such as "7,percentile=99.5".',
    ),
]
NgmsOpt = Annotated[
    float | None,
    typer.Option(help="Noise level below which every second step skips the negative prompt.", show_default="0"),
]
NgmsAllOpt = Annotated[
    bool, typer.Option("--ngms-all", help="With --ngms: skip the negative prompt in each of these steps.")
]
SkipEarlyCfgOpt = Annotated[
    float | None, typer.Option(help="Share of the first steps without guidance, 0 to 1.", show_default="0")
]
