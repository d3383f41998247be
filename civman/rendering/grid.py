"""Grids of pictures along one or two axes: plans all cells before rendering any, and arranges them in a contact sheet.

A cell is a picture like any other, with its own recipe, file and row in the index.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Final

from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.file_names import MOST_BYTES, safe_name
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.scales import parse_scale_pair
from civman.errors import CivmanError, Interrupted, UsageError
from civman.index import Index
from civman.pictures import contact_sheet, image_text
from civman.planning.find_files import Finder
from civman.planning.grid_axes import ONE_PICTURE, REPLACE, WORDS, Axis, bad_grid, changes_of
from civman.planning.plan import Conditions, plan
from civman.planning.plan_types import MODEL_FIELDS, Planned, Rendering
from civman.planning.vary import Change, DigestOf, changed, field_of
from civman.rendering.save_pictures import EmbeddedMetadata, OutputOptions, Place, keep_new
from civman.system.path_rules import name_room

_FILES: Final = ("checkpoint", "vae")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a grid: its values on the axes, and the plan that results from them."""

    column: int
    row: int
    values: tuple[tuple[str, str], ...]
    planned: Planned

    @property
    def name(self) -> str:
        """The cell's values as text, such as "lora:678=0.5, seed=1"."""
        return ", ".join(f"{name}={value}" for name, value in self.values)


@dataclass(frozen=True, slots=True)
class Grid:
    """A planned grid. The values of the first axis are its columns, those of the second its rows.

    `cells` lists all cells, row by row.
    """

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]

    @property
    def contents(self) -> contact_sheet.Contents:
        """The description of the grid for the metadata of the contact sheet."""
        across = len(self.axes[0].values)
        digests = [str(cell.planned.recipe.sha256) for cell in self.cells]
        rows = tuple(tuple(digests[start : start + across]) for start in range(0, len(digests), across))
        return contact_sheet.Contents(tuple((axis.title, axis.values) for axis in self.axes), rows)

    @property
    def notices(self) -> tuple[str, ...]:
        """The distinct notices of all plans."""
        found = dict.fromkeys(notice for cell in self.cells for notice in cell.planned.notices)
        if any(axis.field in (*WORDS, REPLACE) for axis in self.axes):
            return tuple(found)
        prompts = {cell.planned.recipe.prompt for cell in self.cells}
        if len(prompts) > 1:
            words = (
                "trigger words were added only to cells that use their LoRA, so the cells have different prompts (see "
                "--trigger)"
            )
            return (*found, words)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class DrawnGrid:
    """A rendered grid: its pictures in the order of the cells, and the path of its contact sheet."""

    grid: Grid
    pictures: tuple[Rendering, ...]
    path: Path


def of_request(
    index: Index, request: RenderRequest, axes: Sequence[Axis], conditions: Conditions, *, on_event: OnEvent = ignore
) -> Grid:
    """Plan a grid. Each cell's plan is that of a separate request with the cell's values.

    Raises: UsageError (`bad-grid`, `bad-value`, `unknown-field`). The errors of `civman.planning.plan.plan`.
    """
    if request.count != 1 or (request.batch_size or 1) != 1:
        raise bad_grid(
            "each cell is exactly one picture: --count and --batch-size cannot be used with a grid",
            "to vary the seed, use --grid seed=1..4",
        )
    digest_of = _cached_digests(Finder(index, on_event))
    _require_different(axes, digest_of)
    if request.seed is None:  # use one random seed for all cells, so that they differ only in the values of the axes
        request = replace(request, seed=secrets.randbelow(2**32))
    fixed = [("schedule", request.schedule)] if request.schedule is not None else []

    def plan_cell(changes: Sequence[Change]) -> Planned:
        asked = request
        for name, text in changes:
            asked = changed(asked, name, text, digest_of)
            # setting the cell's sampler has reset the schedule, so set the requested schedule again
            if field_of(name) == "sampler":
                asked = replace(asked, schedule=dict(fixed).get("schedule"))
        planned = plan(index, asked, conditions, on_event=on_event)
        _require_scales(planned, changes, digest_of)
        return planned

    return _grid(axes, plan_cell, (request.prompt, request.negative_prompt))


def of_recipe(
    index: Index, recipe: Recipe, axes: Sequence[Axis], vary: Callable[[Sequence[Change]], Planned], *,
    seed: int | None = None, changes: Sequence[Change] = (),
) -> Grid:  # fmt: skip
    """Plan a grid whose cells are variations of a recipe.

    `changes` apply to all cells; `seed` is the original picture's seed.

    Raises: UsageError (`bad-grid`, `bad-value`, `unknown-field`). The errors of `civman.planning.vary.vary`.
    """
    _require_different(axes, _cached_digests(Finder(index, ignore)))
    single = [("count", "1"), ("batch_size", "1")]
    if seed is not None:
        single.append(("seed", str(seed)))
    said = {field_of(name): text for name, text in changes}
    if set(ONE_PICTURE) & said.keys():
        raise bad_grid("each cell is exactly one picture: count and batch_size cannot be set for a grid")
    prompts = (said.get("prompt", recipe.prompt), said.get("negative_prompt", recipe.negative_prompt))
    return _grid(axes, lambda more: vary([*single, *changes, *more]), prompts)


def drawing_order(cells: Iterable[Cell]) -> list[Cell]:
    """Sort the cells so that each model is loaded only once and adapters change as rarely as possible."""
    found = list(cells)
    models, adapters = [_model(cell) for cell in found], [cell.planned.recipe.loras for cell in found]
    return sorted(found, key=lambda cell: (models.index(_model(cell)), adapters.index(cell.planned.recipe.loras)))


def draw(
    index: Index, root: Path, grid: Grid, output: Path, options: OutputOptions, *, machine: Machine,
    clock: Callable[[], datetime], on_event: OnEvent = ignore,
) -> DrawnGrid:  # fmt: skip
    """Render all cells and then the contact sheet. Each cell is saved and recorded as soon as it is finished.

    `output`: a folder, or the file name of the sheet, which must be a PNG. After an error, finished cells are kept, but
    no sheet is made.

    Raises: Interrupted; CannotRender, Incompatible, StoreError, LibraryError.
    """
    name = output.name if output.suffix.lower() == ".png" and not output.is_dir() else None
    if name is None and output.suffix.lower() in image_text.SUFFIXES and not output.is_dir():
        raise UsageError(
            f"the contact sheet is a PNG, so it cannot be saved as `{output.name}`",
            hint="pass a folder as --output, and the format of the cells' pictures with --format",
        )
    place = Place(output.parent if name else output, options)
    order = drawing_order(grid.cells)
    from civman.rendering import (
        render_and_save,
    )  # this imports torch, which takes 2 s or more, so do it only after all checks that can refuse the grid

    made: list[Rendering] = []
    try:
        made = render_and_save.render(
            index, root, [cell.planned for cell in order], place, machine=machine, clock=clock, on_event=on_event
        )
        by_place = {(cell.row, cell.column): each for cell, each in zip(order, made, strict=True)}
        pictures = tuple(by_place[cell.row, cell.column] for cell in grid.cells)
        data = _sheet(grid, pictures, options.metadata)
        path = keep_new(place.folder, name or _name(grid, name_room(place.folder, MOST_BYTES)), data)
    except KeyboardInterrupt:
        error = Interrupted("stopped")
        _explain_unfinished(error, order, made, place)
        raise error from None
    except CivmanError as error:
        _explain_unfinished(error, order, made, place)
        raise
    return DrawnGrid(grid, pictures, path)


def labels(grid: Grid) -> tuple[contact_sheet.Labels, ...]:
    """The axis labels for the contact sheet, with the names of model files instead of refs."""
    found = []
    for position, axis in enumerate(grid.axes):
        values, title = axis.values, axis.title
        along = [cell for cell in grid.cells if (cell.row, cell.column)[position] == 0]
        if axis.field in _FILES:
            names = tuple(
                _file_name(cell.planned, axis.field) or value for cell, value in zip(along, values, strict=True)
            )
            values = names if len(set(names)) == len(names) else values
        elif axis.name.startswith("lora:"):
            title = _lora_title(axis, along)
        found.append(contact_sheet.Labels(title, values))
    return tuple(found)


def _grid(axes: Sequence[Axis], plan_cell: Callable[[Sequence[Change]], Planned], prompts: tuple[str, str]) -> Grid:
    across, down = axes[0], axes[1] if len(axes) > 1 else None
    plan_cell = _plan_once_for_all_seeds(plan_cell)
    cells = []
    for (row, below), (column, beside) in product(enumerate(down.values if down else [None]), enumerate(across.values)):
        values = [(across, beside)] + ([(down, below)] if down and below is not None else [])
        planned = plan_cell(list(changes_of(values, prompts)))
        cells.append(Cell(column, row, tuple((axis.title, value) for axis, value in values), planned))
    return Grid(tuple(axes), tuple(cells))


def _plan_once_for_all_seeds(plan_cell: Callable[[Sequence[Change]], Planned]) -> Callable[[Sequence[Change]], Planned]:
    """Wrap `plan_cell` so that cells that differ only in their seed share one planning run.

    Planning reads the header of every file, which takes 20 ms or more, and does not depend on the seed.
    """
    known: dict[tuple[Change, ...], Planned] = {}

    def planned(changes: Sequence[Change]) -> Planned:
        rest = tuple(change for change in changes if field_of(change[0]) != "seed")
        if rest not in known:
            known[rest] = plan_cell(changes)
        found, request = known[rest], RenderRequest("")
        for name, text in changes:
            if field_of(name) == "seed":
                request = changed(request, name, text, Sha256)
        seed = found.recipe.seed if request.seed is None else request.seed
        return replace(found, recipe=replace(found.recipe, seed=seed))

    return planned


def _require_different(axes: Sequence[Axis], digest_of: DigestOf) -> None:
    refs = [axis.name.partition(":")[2] for axis in axes if axis.name.startswith("lora:")]
    if len({digest_of(ref) for ref in refs}) < len(refs):
        raise bad_grid(f"both axes change the same LoRA: {axes[0].name} and {axes[-1].name}")


def _require_scales(planned: Planned, changes: Sequence[Change], digest_of: DigestOf) -> None:
    """Check that each LoRA of an axis is used only once, and that no tag in the prompt uses it as well."""
    for name, text in changes:
        kind, _, ref = name.partition(":")
        if kind != "lora":
            continue
        wanted = int(parse_scale_pair(text).acts)
        if sum(use.sha256 == digest_of(ref) for use in planned.recipe.loras) != wanted:
            raise bad_grid(
                f"a tag in the prompt and the axis `{name}` set the same LoRA", "remove the tag from the prompt"
            )


def _cached_digests(finder: Finder) -> DigestOf:
    known: dict[str, Sha256] = {}

    def digest_of(ref: str) -> Sha256:
        if ref not in known:
            known[ref] = finder.find("lora", ref).sha256
        return known[ref]

    return digest_of


def _model(cell: Cell) -> tuple[object, ...]:
    return tuple(getattr(cell.planned.recipe, name) for name in MODEL_FIELDS)


def _sheet(grid: Grid, pictures: Sequence[Rendering], metadata: EmbeddedMetadata) -> bytes:
    across = len(grid.axes[0].values)
    pixels = [image_text.pixels(each.path) for each in pictures]
    rows = [pixels[start : start + across] for start in range(0, len(pixels), across)]
    return contact_sheet.as_png(contact_sheet.drawn(rows, *labels(grid)), _sheet_contents(grid, metadata))


def _sheet_contents(grid: Grid, metadata: EmbeddedMetadata) -> contact_sheet.Contents | None:
    """Return the sheet's metadata; prompts are included only if the cells' metadata includes them."""
    if metadata is EmbeddedMetadata.NOTHING:
        return None
    contents = grid.contents
    if metadata is EmbeddedMetadata.ALL:
        return contents
    axes = tuple(
        (
            axis.name,
            tuple(map(str, range(1, len(axis.values) + 1))) if axis.field in (*WORDS, REPLACE) else axis.values,
        )
        for axis in grid.axes
    )
    return replace(contents, axes=axes)


def _name(grid: Grid, most_bytes: int) -> str:
    about = "-x-".join("-".join(re.findall(r"\w+", axis.name))[:40] for axis in grid.axes)
    about = about.encode()[: max(0, most_bytes - len("grid--12345678.png"))].decode("utf-8", "ignore")
    digest = hashlib.sha256(grid.contents.to_json().encode()).hexdigest()
    return safe_name(f"grid-{about}-{digest[:8]}.png")


def _explain_unfinished(error: CivmanError, order: Sequence[Cell], made: Sequence[Rendering], place: Place) -> None:
    """Add to the error's message which cell failed and how many finished cells were saved."""
    paths = error.facts.get("paths")
    done = len(made) or (len(paths) if isinstance(paths, list) else 0)
    if isinstance(error, Interrupted):
        error.message = "stopped"
    elif done < len(order):
        error.message = f"cell {order[done].name}: {error.message}"
    if done:
        error.message += f"; {done} of {len(order)} cells are saved in `{place.folder}`, but no contact sheet was made"
    else:
        error.message += "; no contact sheet was made"
    error.args = (error.message,)
    error.facts |= {"cells": len(order), "done": done}


def _file_name(planned: Planned, role: str) -> str:
    return next((Path(file.name).stem for file in planned.files if file.role == role), "")


def _lora_title(axis: Axis, along: Sequence[Cell]) -> str:
    """Return the title of a LoRA axis, followed by the file's name unless the ref already contains that name."""
    ref = axis.name.partition(":")[2]
    for cell, value in zip(along, axis.values, strict=True):
        mine = [file for file in cell.planned.files if file.role == "lora"]
        if parse_scale_pair(value).acts and len(mine) == 1:
            name = Path(mine[0].name).stem
            return axis.name if name.casefold() in ref.casefold() else f"{axis.name} ({name})"
    return axis.name
