"""`civman replay`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.grid_option import GridOpt, axes_of, draw_grid
from civman.cli.options import (
    DeviceOpt,
    FormatOpt,
    JsonOpt,
    LibraryOpt,
    LowVramOpt,
    NoMetadataOpt,
    OfflineOpt,
    QualityOpt,
    QuietOpt,
    StripPromptOpt,
    manner_of,
    open_library,
)
from civman.cli.output import Output, clean, size
from civman.cli.plan_output import print_renderings, rendering_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.errors import CivmanError
    from civman.library import Library
    from civman.planning.plan_types import Rendering
    from civman.planning.recipe_sources import Missing, Told
    from civman.rendering.replay import Again
    from civman.rendering.save_pictures import Manner


def replay(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PICTURE",
            help="A picture's file, a recipe's JSON, a number of `civman renders`, or a recipe's digest.",
            show_default=False,
        ),
    ],
    fetch: Annotated[bool, typer.Option("--fetch", help="Get missing files from CivitAI without asking.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Make a variation: seed=8, lora:REF=0.5 … (repeatable)."),
    ] = None,
    grid: GridOpt = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option("--picture", metavar="FILE", help="The picture or mask it starts from, if it is not kept here."),
    ] = None,
    device: DeviceOpt = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of the CPU.", show_default="as then")
    ] = None,
    low_vram: LowVramOpt = False,
    output_to: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Keep the new picture in this file or folder.",
            show_default="renders, unless it is identical",
        ),
    ] = None,
    format: FormatOpt = None,  # noqa: A002  # the option's name
    quality: QualityOpt = None,
    no_metadata: NoMetadataOpt = False,
    strip_prompt: StripPromptOpt = False,
    library: LibraryOpt = None,
    offline: OfflineOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:  # fmt: skip
    """Make a picture again from its recipe and say whether it came out the same: identical, close or different.

    The recipe travels in the picture and names every file by its SHA-256. Exit 0: identical pixels; 9: close; 10:
    different. With --set it makes a variation, which has its own recipe and remembers where it came from; with --grid a
    contact sheet of them.
    """
    from civman.cli import progress_bars
    from civman.planning.render_extra import require_render_extra

    require_render_extra()
    output = Output(as_json=as_json, quiet=quiet)
    manner = manner_of(format, quality, no_metadata=no_metadata, strip_prompt=strip_prompt)
    parsed = [_change(text) for text in changes or []]
    axes = axes_of(grid)
    with open_library(library, offline, output) as opened:
        told = opened.told(what)
        _complete(opened, opened.missing(told), output, fetch=fetch)
        if axes:
            from civman.planning.plan import Conditions

            with progress_bars.reading(output) as on_event:
                cells = opened.plan_grid(
                    told, axes, changes=parsed, pictures=picture or (), conditions=Conditions(device),
                    on_event=on_event,
                )  # fmt: skip
            draw_grid(
                opened, cells, output, output_to=output_to, manner=manner, device=device, low_vram=low_vram,
                threads=threads,
            )  # fmt: skip
            return
        if parsed:
            from civman.planning.plan import Conditions

            with progress_bars.reading(output) as on_event:
                planned = opened.vary(
                    told, parsed, pictures=picture or (), conditions=Conditions(device), on_event=on_event
                )
            for notice in planned.notices:
                output.notice(notice)
            with progress_bars.drawing(output, 1) as on_event:
                made = opened.render(
                    planned, output=output_to, manner=manner, device=device, low_vram=low_vram, threads=threads,
                    on_event=on_event,
                )  # fmt: skip
            _show_variation(output, told, made)
            return
        with progress_bars.drawing(output, 1) as on_event:
            done = opened.replay(
                told, pictures=picture or (), device=device, low_vram=low_vram, threads=threads, on_event=on_event
            )
        kept = _keep(opened, told, done, output_to, manner)
    _show_verdict(output, told, done, kept)


def _change(text: str) -> tuple[str, str]:
    from civman.errors import UsageError

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UsageError(f"--set {text}: FIELD=VALUE is meant, such as seed=8")
    return name.strip(), value


def _complete(library: "Library", missing: "Sequence[Missing]", output: Output, *, fetch: bool) -> None:
    """Get what is missing, if the user wants that. Raises: NotFound (`missing-files`): not."""
    if not missing:
        return
    from civman.cli import progress_bars
    from civman.planning.recipe_sources import require_all

    for each in missing:
        where = each.air or "not from CivitAI"
        output.notice(f"missing: {each.role} `{each.name}` ({size(each.size_bytes)}, {where})")
    total = sum(each.size_bytes or 0 for each in missing)
    can_ask = output.is_live and sys.stdin.isatty()
    if not fetch and not (can_ask and output.confirm(f"Fetch {size(total)} from CivitAI?")):
        require_all(missing)
    with progress_bars.shown(output) as on_event:
        library.regain(missing, on_event=on_event)


def _keep(
    library: "Library", told: "Told", done: "Sequence[Again]", output_to: Path | None, manner: "Manner"
) -> "Sequence[Rendering]":
    """What is not there already is kept."""
    from civman.rendering.compare_pictures import Verdict

    is_there = told.path is not None and all(each.verdict is Verdict.IDENTICAL for each in done)
    if is_there and output_to is None:
        return ()
    return library.keep([each.drawn for each in done], output=output_to, manner=manner)


def _show_variation(output: Output, told: "Told", made: "Sequence[Rendering]") -> None:
    def human(console: "Console") -> None:
        print_renderings(console, made)
        console.print(f"  a variation of {told.origin.recipe_sha256[:12]} ({clean(told.name)})", style="dim")

    output.result("render", [rendering_value(each) for each in made], human=human, ids=(each.path for each in made))


def _show_verdict(output: Output, told: "Told", done: "Sequence[Again]", kept: "Sequence[Rendering]") -> None:
    value = {
        "of": told.name,
        "recipe_sha256": told.origin.recipe_sha256,
        "pictures": [_value(each) for each in done],
        "kept": [rendering_value(each) for each in kept],
    }
    output.result(
        "replay", value,
        human=lambda console: _print(console, told, done, kept),
        ids=(each.verdict.value for each in done),
        error=_error(told, done),
    )  # fmt: skip


def _value(again: "Again") -> dict[str, object]:
    return {
        "verdict": again.verdict.value,
        "seed": again.record.seed,
        "pixel_sha256": again.record.pixel_sha256,
        "was": again.then.pixel_sha256 if again.then else None,
        "psnr_db": again.apart.psnr_db if again.apart else None,
        "largest_difference": again.apart.largest if again.apart else None,
        "environment": [{"what": each.what, "then": each.then, "now": each.now} for each in again.environment],
        "notices": again.notices,
    }


def _print(console: "Console", told: "Told", done: "Sequence[Again]", kept: "Sequence[Rendering]") -> None:
    from civman.rendering.compare_pictures import Verdict

    for each in done:
        for notice in each.notices:
            console.print(f"note: {clean(notice)}", style="dim", soft_wrap=True)
        if each.verdict is Verdict.MADE:
            console.print(f"made: seed {each.record.seed}; the recipe alone tells no pixels to compare with")
            continue
        style = {Verdict.IDENTICAL: "green", Verdict.CLOSE: "yellow", Verdict.DIFFERENT: "red"}[each.verdict]
        console.print(f"{each.verdict.value}: {_words(each)}", style=style, soft_wrap=True)
        if each.verdict is Verdict.IDENTICAL and each.environment:
            console.print("  though not all is as it was:", style="dim")
        for difference in each.environment:
            console.print(f"  {clean(str(difference))}", soft_wrap=True)
    for rendering in kept:
        console.print(f"{clean(str(rendering.path))}  (picture {rendering.id}, seed {rendering.seed})", soft_wrap=True)
    if not kept:
        console.print(f"  the same as {clean(str(told.path))}; nothing new was kept", style="dim", soft_wrap=True)


def _words(again: "Again") -> str:
    from civman.rendering.compare_pictures import Verdict

    if again.verdict is Verdict.IDENTICAL:
        return f"the same pixels, sha256 {again.record.pixel_sha256[:12]}…"
    if again.apart is None:
        return "other pixels than the recipe's record tells, and no picture to measure how far from"
    apart = again.apart
    shown = "equal to what the file shows" if apart.psnr_db is None else f"PSNR {apart.psnr_db:.1f} dB"
    return f"{shown}, largest difference {apart.largest} of 255, {apart.share:.1%} of the pixels"


def _error(told: "Told", done: "Sequence[Again]") -> "CivmanError | None":
    """What a replay ends with that did not give the same pixels."""
    from civman.errors import NotIdentical
    from civman.rendering.compare_pictures import Verdict

    worst = next((each for each in done if each.verdict in (Verdict.CLOSE, Verdict.DIFFERENT)), None)
    if worst is None:
        return None
    why = "; ".join(str(each) for each in worst.environment)
    because = f", because of what differs: {why}" if why else ", though the environment is the same as far as recorded"
    is_close = worst.verdict is Verdict.CLOSE
    return NotIdentical(
        f"`{told.name}` came out {'close' if is_close else 'different'}{because}",
        is_close=is_close,
        hint="with the versions, device and threads of then it comes out identical" if why else
        "`civman doctor` looks for damage; a picture computed on a GPU may need the same GPU",
        differs=[each.what for each in worst.environment],
    )  # fmt: skip
