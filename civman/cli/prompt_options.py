"""Options of `civman render` that decide which prompts are rendered: files of prompts, styles and wildcards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import RenderRequest
    from civman.planning.expand_prompts import Expansion

PromptsOpt = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Read prompts from a file: one per line, or lines with options such as `--prompt a boat "
        "--steps 30`, as in A1111. The model is loaded only once.",
    ),
]
StyleOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--style", metavar="NAME", help="Apply this style from the --styles file to the prompts (repeatable)."
    ),
]
StylesOpt = Annotated[
    Path | None, typer.Option("--styles", help="A file of styles in the format of A1111's styles.csv.")
]
DynamicOpt = Annotated[
    str | None,
    typer.Option(
        "--dynamic",
        metavar="random|all",
        help="Expand {red|green} and __wildcards__ in prompts: random (chosen anew for each image) or all "
        "(every combination).",
    ),
]
WildcardsOpt = Annotated[
    Path | None,
    typer.Option(
        "--wildcards", metavar="FOLDER", help="With --dynamic: the folder of wildcard files, such as colour.txt."
    ),
]
RequireOpt = Annotated[
    str | None,
    typer.Option(
        "--require",
        metavar="commercial",
        help="Refuse to render unless the licences of all files together permit selling the images.",
    ),
]


def requests_of(
    request: "RenderRequest", prompt: str | None, file: Path | None, expansion: "Expansion", *, has_grid_prompts: bool
) -> "list[RenderRequest]":
    """Make one request for each prompt on the command line or in a file, or for each expansion of it.

    `has_grid_prompts`: a grid varies the prompt, so no other prompt is required.

    Raises: UsageError: there is no prompt, there are two sources of prompts, or a prompt cannot be expanded.
    """
    from dataclasses import replace

    from civman.errors import UsageError
    from civman.planning.expand_prompts import expanded
    from civman.planning.prompt_lines import PromptLine, read_prompt_file
    from civman.planning.vary import variations

    if prompt is None and has_grid_prompts:
        lines = [PromptLine(request)]
    elif (prompt is None) == (file is None):
        raise UsageError(
            "pass either a prompt or a file of prompts (--prompts)",
            hint="pass the prompt after the checkpoint, or see `civman render --help`",
        )
    elif file is None:
        lines = [PromptLine(replace(request, prompt=prompt or ""))]
    else:
        lines = read_prompt_file(file, request)
    return [
        each
        for line in lines
        for wanted in expanded(line.request, replace(expansion, styles=(*expansion.styles, *line.styles)))
        for each in variations(wanted)
    ]
