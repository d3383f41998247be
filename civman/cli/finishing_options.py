"""Options of `civman render` for what happens to a finished image."""

from typing import Annotated

import typer

from civman.cli import completion

FaceRestorationOpt = Annotated[
    str | None,
    typer.Option(
        "--face-restoration", metavar="gfpgan|codeformer[:WEIGHT]",
        help="Restore faces with a model from the library; WEIGHT (0.5): how closely CodeFormer keeps the face.",
    ),
]  # fmt: skip
UpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--upscale", metavar="REF[:SCALE|:WxH]", autocompletion=completion.upscalers,
        help="Enlarge the finished image with an upscaler: a ref, A1111's name for it, lanczos or nearest.",
    ),
]  # fmt: skip
