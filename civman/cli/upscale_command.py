"""The command `civman upscale`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.options import (
    DeviceOpt,
    FormatOpt,
    NoMetadataOpt,
    OnOpt,
    QualityOpt,
    ResumeOpt,
    StripPromptOpt,
    output_options,
)
from civman.cli.output import Result, clean, counted
from civman.cli.session import Session, command
from civman.rendering.upscale_values import upscaled_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.planning.plan_upscale import PlannedUpscale
    from civman.rendering.upscale import SavedUpscale


@command()
def upscale(
    session: Session,
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Image files, or folders of images.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="REF", autocompletion=completion.upscalers, show_default=False,
            help='The upscaler: a ref, its name in A1111 ("R-ESRGAN 4x+"), lanczos or nearest. '
            "`civman list --type Upscaler` lists yours.",
        ),
    ],
    scale: Annotated[
        float | None, typer.Option("--scale", help="Factor for width and height.", show_default="the model's")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH",
            help="Final size in pixels: enlarge to cover it and crop; 0 for one side keeps the aspect ratio.",
        ),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS[:OVERLAP]",
            help="Size and overlap of the tiles that the model processes; 0: the whole image at once.",
            show_default="192:8",
        ),
    ] = None,
    device: DeviceOpt = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Number of CPU threads.", show_default="torch's")
    ] = None,
    on: OnOpt = None,
    resume: ResumeOpt = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output file or folder.", show_default="the library's renders folder"),
    ] = None,
    format: FormatOpt = None,  # noqa: A002  # the option's name
    quality: QualityOpt = None,
    no_metadata: NoMetadataOpt = False,
    strip_prompt: StripPromptOpt = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the final sizes, but compute nothing.")
    ] = False,
) -> Result:  # fmt: skip
    """Enlarge images with an upscaler model of the library (ESRGAN, Real-ESRGAN, SwinIR), as A1111 does.

    A model that enlarges too little runs up to three times; the result is then resized to the final size. Transparency
    is kept: the alpha channel is enlarged separately, with the same upscaler. Each result contains its recipe, so that
    `civman replay` can make it again; the library keeps a copy of the source for this. Never uses the network.
    """
    from civman.domain.recipes.enlargement import OVERLAP, TILE, UpscaleRequest, tiles_from
    from civman.domain.recipes.machine import Machine

    options = output_options(format, quality, no_metadata=no_metadata, strip_prompt=strip_prompt)
    tile_side, overlap = tiles_from(tile) if tile is not None else (TILE, OVERLAP)
    request = UpscaleRequest(model, scale, size, tile_side, overlap)
    upscaling = session.library.upscaling
    with session.reading() as on_event:
        plans = upscaling.plan(pictures, request, on_event=on_event)
    for notice in dict.fromkeys(notice for plan in plans for notice in plan.notices):
        session.output.notice(notice)
    if dry_run:
        return Result(
            "upscale_plan", [plan_value(plan) for plan in plans], human=lambda console: _print_plans(console, plans),
            ids=(plan.recipe.sha256 for plan in plans),
        )  # fmt: skip
    with session.upscaling(len(plans)) as on_event:
        made = upscaling.run(
            plans, output=output, options=options, machine=Machine(device, threads=threads), on=on, resume=resume,
            on_event=on_event,
        )  # fmt: skip
    return upscaled_result(made)


def plan_value(plan: "PlannedUpscale") -> dict[str, object]:
    """Convert the plan of an upscale to a JSON object."""
    width, height = plan.recipe.enlargement.final_size
    return {
        "picture": plan.picture, "from": list(plan.size), "to": [width, height], "recipe": plan.recipe,
        "recipe_sha256": plan.recipe.sha256, "model": plan.model, "notices": plan.notices,
    }  # fmt: skip


def upscaled_result(made: "Sequence[SavedUpscale]") -> Result:
    """Build the result of a command that upscaled images."""

    def human(console: "Console") -> None:
        for each in made:
            width, height = each.record.recipe.enlargement.final_size
            console.print(f"{clean(str(each.path))}  (picture:{each.id}, {width}x{height})", soft_wrap=True)

    return Result("upscale", [upscaled_value(each) for each in made], human=human, ids=(each.path for each in made))


def _print_plans(console: "Console", plans: "Sequence[PlannedUpscale]") -> None:
    for plan in plans:
        (width, height), (from_width, from_height) = plan.recipe.enlargement.final_size, plan.size
        by = clean(plan.model.name) if plan.model is not None else plan.recipe.enlargement.method
        console.print(
            f"{clean(str(plan.picture))}: {from_width}x{from_height} to {width}x{height} with {by}", soft_wrap=True
        )
    console.print(f"{counted(len(plans), 'image')}; nothing was computed (--dry-run)", style="dim")
