"""Options of `civman render` to sample by the rules of other programs, and for FreeU and SDXL's size conditioning."""

from typing import Annotated

import typer

SamplingRulesOpt = Annotated[
    str | None,
    typer.Option(
        "--sampling-rules",
        help="The program whose noise levels and timesteps to use: a1111 or comfyui.",
        show_default="a1111",
    ),
]
SigmasOpt = Annotated[
    str | None,
    typer.Option(
        "--sigmas",
        metavar="N,N,…",
        help="Noise levels (sigmas) of the first pass, from high to low, instead of a schedule.",
    ),
]
StepRngOpt = Annotated[
    str | None,
    typer.Option(
        "--step-rng", metavar="NAME",
        help="A separate random generator for the noise that the steps add; accepts the same values as --rng.",
        show_default="the generator of --rng",
    ),
]  # fmt: skip
NoiseSliceOpt = Annotated[
    str | None,
    typer.Option(
        "--noise-slice", metavar="N/COUNT",
        help="Use the noise that the N-th image of a batch of COUNT images has in ComfyUI.",
    ),
]  # fmt: skip
FreeUOpt = Annotated[
    str | None,
    typer.Option(
        "--freeu",
        metavar="VERSION[,B1,B2,S1,S2]",
        help="Apply FreeU, version v1 or v2, with its factors, such as v2,1.3,1.4,0.9,0.2.",
    ),
]
ToldSizesOpt = Annotated[
    str | None,
    typer.Option(
        "--told-sizes", metavar="WxH+X+Y,WxH",
        help="SDXL's size conditioning: original size, left and top crop, target size, e.g. 4096x4096+0+0,1024x1024.",
        show_default="the image's size",
    ),
]  # fmt: skip
RescaleVelocityOpt = Annotated[
    bool,
    typer.Option(
        "--cfg-rescale-v",
        help="Apply --cfg-rescale to the velocity (v), as ComfyUI does, even if the model predicts noise.",
    ),
]
JoinPromptOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--join-prompt", metavar="HOW:TEXT",
        help="Join another text to the encoded prompt: concat:TEXT, combine:TEXT, or average=0.7:TEXT, "
        "which keeps 70% of the prompt (repeatable).",
    ),
]  # fmt: skip
JoinNegativeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--join-negative",
        metavar="HOW:TEXT",
        help="Join another text to the encoded negative prompt: concat:TEXT or average=0.7:TEXT.",
    ),
]
OddSizesOpt = Annotated[
    str | None,
    typer.Option(
        "--odd-sizes",
        help="How to handle sizes that are not multiples of 64: forge (also ComfyUI and diffusers) or a1111.",
        show_default="forge",
    ),
]
