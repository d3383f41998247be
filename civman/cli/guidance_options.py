"""Options of `civman render` for guidance (CFG) and token merging."""

from typing import Annotated

import typer

TokenMergingOpt = Annotated[
    float | None,
    typer.Option(help="Fraction of the image tokens to merge in self-attention, 0 to 0.89 (ToMe).", show_default="0"),
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
    typer.Option(
        help="Noise level (sigma) below which every second step skips the negative prompt (NGMS).", show_default="0"
    ),
]
NgmsAllOpt = Annotated[
    bool,
    typer.Option(
        "--ngms-all",
        help="With --ngms: below its noise level, skip the negative prompt in every step instead of every second one.",
    ),
]
SkipEarlyCfgOpt = Annotated[
    float | None,
    typer.Option(
        help="Fraction of the steps, counted from the first, that run without guidance, 0 to 1.", show_default="0"
    ),
]
