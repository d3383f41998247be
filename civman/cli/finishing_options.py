"""Options of `civman render` for what happens to a finished image."""

from typing import Annotated

import typer

from civman.cli import completion

UpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--upscale", metavar="REF[:SCALE|:WxH]", autocompletion=completion.upscalers,
        help="Enlarge the finished image with an upscaler: a ref, a name that A1111 writes, lanczos or nearest.",
    ),
]  # fmt: skip
