"""Options of `civman render` for restoring faces, redrawing details, and enlarging the finished or the input image."""

from typing import Annotated

import typer

from civman.cli import completion

FaceRestorationOpt = Annotated[
    str | None,
    typer.Option(
        "--face-restoration", metavar="gfpgan|codeformer[:WEIGHT]",
        help="Restore faces with a model from the library. WEIGHT: how closely CodeFormer follows the original face, "
        "0 to 1; default: 0.5.",
    ),
]  # fmt: skip
DetailOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--detail", metavar="REGION[:NAME=VALUE,…]",
        help="Render a region of the finished image again at a higher resolution, as ADetailer does: face, a box "
        "X,Y,W,H or a mask file (repeatable). Settings: strength, blur, dilate, x, y, padding, whole, size, steps, "
        "cfg, sampler, schedule, noise.",
    ),
]  # fmt: skip
DetailPromptOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--detail-prompt", metavar="TEXT",
        help="Prompt of each --detail, in order. [SEP] separates the prompts of several faces; [PROMPT] "
                "inserts the image's prompt.",
        show_default="the image's",
    ),
]  # fmt: skip
DetailNegativeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--detail-negative", metavar="TEXT", help="Negative prompt of each --detail, in order.",
        show_default="the image's",
    ),
]  # fmt: skip
DetailStrengthOpt = Annotated[
    float | None,
    typer.Option(help="Denoising strength of each --detail that does not set its own.", show_default="0.4"),
]
UpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--upscale", metavar="REF[:SCALE|:WxH]", autocompletion=completion.upscalers,
        help="Enlarge the finished image with an upscaler: a ref, A1111's name for an upscaler, lanczos or"
        " nearest.",
    ),
]  # fmt: skip
TiledUpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--tiled-upscale", metavar="REF[:SCALE|:WxH]", autocompletion=completion.upscalers,
        help="Enlarge --init with an upscaler (or none), then redraw it in tiles of --size, like A1111's "
        "script SD upscale.",
    ),
]  # fmt: skip
TileOverlapOpt = Annotated[
    int | None,
    typer.Option(help="Width in pixels by which neighbouring tiles of --tiled-upscale overlap.", show_default="64"),
]
TileBatchOpt = Annotated[
    int | None,
    typer.Option(
        help="The batch size that A1111 used for the tiles; it determines the seeds of the tiles.", show_default="1"
    ),
]
UltimateUpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--ultimate-upscale", metavar="REF[,NAME=VALUE…]", autocompletion=completion.upscalers,
        help="Enlarge --init with an upscaler, such as lanczos:2, then redraw it tile by tile like the "
        "script Ultimate SD upscale. Settings: tile=768x512, padding=32, redraw=chess, "
        "seams=half-tile …",
    ),
]  # fmt: skip
InitUpscaleOpt = Annotated[
    str | None,
    typer.Option(
        "--init-upscale", metavar="REF[:SCALE|:WxH]", autocompletion=completion.upscalers,
        help="Enlarge --init with an upscaler before image-to-image rendering.",
    ),
]  # fmt: skip
TiledDiffusionOpt = Annotated[
    str | None,
    typer.Option(
        "--tiled-diffusion", metavar="METHOD[,NAME=VALUE…]",
        help="Compute the first pass in overlapping tiles and average them, like the extension Tiled "
        "Diffusion. METHOD: multidiffusion or mixture. Settings: tile=96x96 and overlap=48, in units "
        "of 8 pixels.",
    ),
]  # fmt: skip
