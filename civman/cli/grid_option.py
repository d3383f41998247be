"""The `--grid` option of `civman render` and `civman replay`, and how both commands print a grid."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.output import Result, clean
from civman.cli.picture_preview import AS_SET, Viewing, viewed
from civman.cli.plan_output import print_plans
from civman.cli.session import Session
from civman.planning.plan_values import plan_value, rendering_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from civman.domain.recipes.machine import Machine
    from civman.planning.grid_axes import Axis
    from civman.rendering.grid import Cell, DrawnGrid, Grid
    from civman.rendering.save_pictures import OutputOptions

_SHOWN = 40

GridOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--grid", metavar="FIELD=VALUES",
        help="Vary a field and make a contact sheet: seed=1..4, lora:REF=0,0.5,1, sampler=…, s/r=red,blue. Use "
        "the option twice for columns and rows.",
        show_default=False,
    ),
]  # fmt: skip


def axes_of(texts: list[str] | None) -> "Sequence[Axis]":
    """Parse the values of `--grid`; empty if the option is not given. Raises: UsageError (`bad-grid`)."""
    if not texts:
        return ()
    from civman.planning.grid_axes import axes_of  # the import takes 0.1 s, which --help can skip

    return axes_of(texts)


def has_prompts(axes: "Sequence[Axis]") -> bool:
    """Whether one of the axes varies the prompt."""
    return any(axis.field == "prompt" for axis in axes)


def draw_grid(
    session: Session, grid: "Grid", output: "Path | None", options: "OutputOptions", machine: "Machine", *,
    dry_run: bool = False, viewing: Viewing = AS_SET,
) -> Result:  # fmt: skip
    """Render a planned grid, or only show its plan if `dry_run` is True."""
    for notice in grid.notices:
        session.output.notice(notice)
    if dry_run:
        return Result(
            "grid_plan", {"axes": grid.axes, "cells": [_planned_value(cell) for cell in grid.cells]},
            human=lambda console: _print_plan(console, grid), ids=(cell.planned.recipe.sha256 for cell in grid.cells),
        )  # fmt: skip
    with session.drawing([cell.planned.recipe for cell in grid.cells], called="cell") as on_event:
        drawn = session.library.grids.draw(grid, output=output, options=options, machine=machine, on_event=on_event)
    result = Result(
        "grid", _value(drawn), human=lambda console: _print(console, drawn),
        ids=(*(each.path for each in drawn.pictures), drawn.path),
    )  # fmt: skip
    return viewed(session, result, [drawn.path], viewing)


def _place(cell: "Cell") -> dict[str, object]:
    return {"column": cell.column, "row": cell.row, "values": dict(cell.values)}


def _planned_value(cell: "Cell") -> dict[str, object]:
    return {**_place(cell), **plan_value(cell.planned)}


def _value(drawn: "DrawnGrid") -> dict[str, object]:
    cells = zip(drawn.grid.cells, drawn.pictures, strict=True)
    return {
        "axes": drawn.grid.axes,
        "sheet": drawn.path,
        "cells": [{**_place(cell), **rendering_value(made)} for cell, made in cells],
    }


def _print_plan(console: "Console", grid: "Grid") -> None:
    print_plans(console, [grid.cells[0].planned], among=[cell.planned for cell in grid.cells])
    console.print(f"{_words(grid)}; the plan of the first cell is above, and the recipes of all cells are:")
    for cell in grid.cells:
        console.print(f"  {clean(cell.name)}: recipe {cell.planned.recipe.sha256[:12]}", soft_wrap=True)


def _print(console: "Console", drawn: "DrawnGrid") -> None:
    console.print(clean(str(drawn.path)), soft_wrap=True)
    console.print(f"  {_words(drawn.grid)}, saved as these images:", style="dim")
    cells = list(zip(drawn.grid.cells, drawn.pictures, strict=True))
    for cell, made in cells[:_SHOWN]:
        console.print(f"  {clean(cell.name)}: picture:{made.id}, {clean(made.path.name)}", soft_wrap=True)
    if len(cells) > _SHOWN:
        console.print(f"  … and {len(cells) - _SHOWN} more images")
    for note in dict.fromkeys(note for _, made in cells for note in made.notes):
        console.print(f"  note: {clean(note)}", style="dim", soft_wrap=True)


def _words(grid: "Grid") -> str:
    sizes = " × ".join(str(len(axis.values)) for axis in grid.axes)
    names = ", ".join(f"{clean(axis.name)} {way}" for axis, way in zip(grid.axes, ("across", "down"), strict=False))
    return f"{sizes} cells ({names})"
