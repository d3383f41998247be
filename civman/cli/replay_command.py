"""The command `civman replay`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.foreign_replay import Again, draw_again, fetch_named, fetched_image, source_image
from civman.cli.grid_option import GridOpt, axes_of, draw_grid
from civman.cli.options import (
    CompileOpt,
    DeviceOpt,
    FormatOpt,
    LowVramOpt,
    NoMetadataOpt,
    OnOpt,
    QualityOpt,
    ResumeOpt,
    StripPromptOpt,
    output_options,
)
from civman.cli.output import Result, clean, size
from civman.cli.picture_output import is_picture_file
from civman.cli.picture_preview import viewed
from civman.cli.plan_output import print_renderings
from civman.cli.replay_many import MOST, Many, replay_many
from civman.cli.running_server import HereOpt
from civman.cli.session import Session, command
from civman.planning.plan_values import rendering_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.recipes.machine import Machine
    from civman.errors import CivmanError
    from civman.library import Library
    from civman.planning.grid_axes import Axis
    from civman.planning.plan_types import Rendering
    from civman.planning.recipe_sources import Missing, RecipeSource
    from civman.rendering.replay import ReplayResult
    from civman.rendering.save_pictures import OutputOptions


@command(network="option")
def replay(
    session: Session,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PICTURE",
            help="An image file, `picture:12` as `civman renders` lists it, a recipe's JSON file, or its SHA-256; also "
            "an image of A1111, a text file with its settings, or the URL or id of an image on CivitAI.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings", metavar="FILE.jsonl",
            help="Instead of PICTURE: a file of image settings as returned by CivitAI's API, one JSON "
            "object per line.",
        ),
    ] = None,
    assume_files: Annotated[
        bool,
        typer.Option("--assume-files", help="With --settings: assume that all model files named in it are available."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="With --settings, --images-of or --images: only report whether images can be rendered "
            "again."
        ),
    ] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download missing files from CivitAI without asking.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field of the recipe: seed=8, lora:REF=0.5 … (repeatable)."
        ),
    ] = None,
    grid: GridOpt = None,
    images_of: Annotated[
        str | None,
        typer.Option(
            "--images-of", metavar="MODEL",
            help="Instead of PICTURE: the images on CivitAI that were made with this model version.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images", metavar="FILE",
            help="Instead of PICTURE: a text file with the ids or URLs of images on CivitAI; `-` reads stdin.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=MOST, help="With --images-of or --images: at most this many images.")
    ] = 10,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", metavar="FILE",
            help="For an image of another program: compare the new image with this file instead of the original.",
        ),
    ] = None,
    side_by_side: Annotated[
        Path | None,
        typer.Option(
            "--side-by-side", metavar="FILE.png",
            help="For an image of another program: write the original, the new image and their difference to one file.",
        ),
    ] = None,
    try_cards: Annotated[
        bool,
        typer.Option(
            "--try-cards",
            help="For an image of another program: try the noise of each common graphics card, and keep "
                    "the image most similar to the original.",
        ),
    ] = False,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            "--picture", metavar="[NODE=]FILE",
            help="An input image, mask or control image of the recipe, if the library has no copy. For an "
                    "image of another program: its input image, a control image, or the image for a node of a"
                    " ComfyUI graph (repeatable, in order).",
        ),
    ] = None,
    device: DeviceOpt = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Number of CPU threads.", show_default="as originally")
    ] = None,
    compile_: CompileOpt = None,
    low_vram: LowVramOpt = False,
    on: OnOpt = None,
    resume: ResumeOpt = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Output file or folder.",
            show_default="the library's renders folder, unless the image is identical",
        ),
    ] = None,
    format: FormatOpt = None,  # noqa: A002  # the option's name
    quality: QualityOpt = None,
    no_metadata: NoMetadataOpt = False,
    strip_prompt: StripPromptOpt = False,
    here: HereOpt = False,  # noqa: ARG001  # `main` has asked the server already
) -> Result:  # fmt: skip
    """Make an image again from its recipe and compare: identical, close or different.

    The recipe is stored in the image and identifies every file by its SHA-256. Exit code 0: identical pixels; 9: close;
    10: different. --set makes a variation with its own recipe; --grid makes a contact sheet of variations. --settings
    checks whether images of other programs could be rendered again; with --json, it prints one object per image.
    An image of A1111, of ComfyUI or on CivitAI is rendered again from its settings or its graph and compared with the
    original: the same picture, the same composition (with the differences), or another picture (exit code 12, with
    likely causes).
    """
    from civman.domain.recipes.machine import Machine
    from civman.errors import UsageError
    from civman.planning.render_extra import require_render_extra

    is_many = images_of is not None or images is not None
    if not is_many and (settings is not None or what is None or dry_run or assume_files):
        return _settings(session, what, settings, is_check=dry_run and assume_files)
    require_render_extra()
    options = output_options(format, quality, no_metadata=no_metadata, strip_prompt=strip_prompt)
    parsed = [_change(text) for text in changes or []]
    axes = axes_of(grid)
    library, machine, inputs = session.library, Machine(device, low_vram, threads, compile_), picture or ()
    if output is not None:
        library.pictures.require_output(output, options)
    again = Again(machine, output, options, parsed, compare, side_by_side, try_cards)
    if is_many or what is None:
        many = Many(images_of, images, limit, is_agreed=fetch, only_reads=dry_run, on=on, resumes=resume)
        return _many(session, what, many, again)
    if on is not None or resume:
        raise UsageError("--on and --resume require many images: --images-of MODEL or --images FILE")
    if extras := _extras_again(session, Path(what), inputs, machine, output, options):
        return extras
    image = fetched_image(session, what)
    if image is not None and image.has_recipe:
        what = str(image.path)
    described = image if image is not None else library.pictures.foreign_settings(what)
    if described is not None and not (image and image.has_recipe):
        if axes:
            raise UsageError("--grid can only vary images that civman made", hint="change a single field with --set")
        original = image.path if image else Path(what).expanduser()
        again = replace(again, source=source_image(inputs, original))
        fetch_named(session, described, is_agreed=fetch, source=again.source)
        return draw_again(session, described, original, again)
    source = library.pictures.find_recipe(what)
    _require_own_comparison(what, again)
    if source.origin.upscaled is not None:
        from civman.cli.replay_upscale import replay_upscale

        _fetch_missing(session, library.pictures.missing_files(source), is_agreed=fetch)
        return replay_upscale(session, source, inputs, machine, output, options, is_varied=bool(axes or parsed))
    _fetch_missing(session, library.pictures.missing_files(source), is_agreed=fetch)
    if not axes and not parsed:
        recipe = source.origin.recipe
        with session.drawing([recipe] if recipe else []) as on_event:
            results = library.replay(source, pictures=inputs, machine=machine, on_event=on_event)
        saved = _save(library, source, results, output, options, always=image is not None)
        return viewed(session, _verdict(source, results, saved), [each.path for each in saved])
    return _varied(session, source, axes, inputs, again)


def _varied(
    session: Session, source: "RecipeSource", axes: "Sequence[Axis]", inputs: "Sequence[Path]", how: Again
) -> Result:
    """Render a recipe with some fields changed, or a contact sheet (grid) of such variations."""
    from civman.planning.plan import Conditions

    library, conditions = session.library, Conditions(how.machine.device)
    if axes:
        with session.reading() as on_event:
            cells = library.grids.plan(
                source, axes, changes=how.changes, pictures=inputs, conditions=conditions, on_event=on_event
            )
        return draw_grid(session, cells, how.output, how.options, how.machine)
    with session.reading() as on_event:
        planned = library.pictures.plan_variation(
            source, how.changes, pictures=inputs, conditions=conditions, on_event=on_event
        )
    for notice in planned.notices:
        session.output.notice(notice)
    with session.drawing([planned.recipe]) as on_event:
        made = library.render(planned, output=how.output, options=how.options, machine=how.machine, on_event=on_event)
    return viewed(session, _variation(source, made), [each.path for each in made])


def _require_own_comparison(what: str, how: Again) -> None:
    """Refuse options that only apply to images of other programs. Raises: UsageError."""
    from civman.errors import UsageError

    if how.other is not None or how.sheet is not None or how.tries_cards:
        raise UsageError(
            f"`{what}` contains civman's recipe, so the new image is compared with its recorded pixels",
            hint="--compare, --side-by-side and --try-cards are for images of other programs",
        )


def _many(session: Session, what: str | None, many: Many, how: Again) -> Result:
    """Render many images on CivitAI again. Raises: UsageError: options cannot be combined."""
    from civman.errors import UsageError

    if what is not None or (many.model is not None and many.file is not None):
        raise UsageError(
            "--images-of, --images and an image cannot be combined",
            hint="keep only one of --images-of, --images and the image",
        )
    if how.tries_cards and (many.on is not None or many.resumes):
        raise UsageError(
            "--try-cards cannot use workers: it renders in this process",
            hint="leave out --on and --resume, or --try-cards",
        )
    return replay_many(session, many, how)


def _settings(session: Session, what: str | None, file: Path | None, *, is_check: bool) -> Result:
    """Check whether the images that a settings file describes can be rendered again.

    Raises: UsageError: options conflict.
    """
    from civman.errors import UsageError

    if file is None and what is None:
        raise UsageError(
            "pass an image to replay, or a file of settings with --settings", hint="see `civman replay --help`"
        )
    if file is None:
        raise UsageError(
            "--dry-run requires --settings, --images-of or --images, and --assume-files requires --settings",
            hint="to see whether one image can be rendered again, use `civman show IMAGE`",
        )
    if what is not None:
        raise UsageError(
            f"--settings and the image `{what}` cannot be combined", hint="leave out --settings or the image"
        )
    if not is_check:
        raise UsageError(
            "settings in a file can be checked but not rendered yet",
            hint="add --dry-run --assume-files to check whether the images could be rendered",
        )
    from civman.cli.settings_output import settings_result

    return settings_result(session.library.pictures.check_settings(file))


def _extras_again(
    session: Session, what: Path, sources: "Sequence[Path]", machine: "Machine", output: Path | None,
    options: "OutputOptions",
) -> Result | None:  # fmt: skip
    """Repeat the upscale of A1111's Extras tab that the image's metadata describes; None if it describes none.

    Also returns None if no source image is given, but the metadata contains the settings of the original render, so
    that the image can be rendered again.
    """
    if not is_picture_file(str(what)):
        return None
    from civman.pictures import image_text, infotext

    carried = image_text.read(what.expanduser())
    if carried.record is not None or (not sources and infotext.is_infotext(carried.parameters or "")):
        return None
    from civman.cli.replay_upscale import replay_extras

    return replay_extras(session, what.expanduser(), next(iter(sources), None), machine, output, options)


def _change(text: str) -> tuple[str, str]:
    from civman.errors import UsageError

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UsageError(f"--set {text}: expected FIELD=VALUE, such as seed=8")
    return name.strip(), value


def _fetch_missing(session: Session, missing: "Sequence[Missing]", *, is_agreed: bool) -> None:
    """Download the missing files if the user agrees. Raises: NotFound (`missing-files`): the user does not agree."""
    if not missing:
        return
    from civman.planning.recipe_sources import require_all

    output = session.output
    for each in missing:
        where = each.air or f"sha256 {each.sha256[:12]}…"
        output.notice(f"missing: {each.role} `{each.name}` ({size(each.size_bytes)}, {where})")
    total = sum(each.size_bytes or 0 for each in missing)
    can_ask = output.is_live and sys.stdin.isatty()
    if not is_agreed and not (can_ask and output.confirm(f"Download {size(total)} from CivitAI?")):
        require_all(missing)
    with session.downloading() as on_event:
        session.library.pictures.fetch_missing(missing, on_event=on_event)


def _save(
    library: "Library", source: "RecipeSource", results: "Sequence[ReplayResult]", output: Path | None,
    options: "OutputOptions", *, always: bool,
) -> "Sequence[Rendering]":  # fmt: skip
    """Save the new images, unless the replayed file has the same pixels and neither `output` nor `always` is set."""
    from civman.rendering.replay_values import is_unchanged

    if is_unchanged(source, results) and output is None and not always:
        return ()
    return library.pictures.save([each.drawn for each in results], output=output, options=options)


def _variation(source: "RecipeSource", made: "Sequence[Rendering]") -> Result:
    def human(console: "Console") -> None:
        print_renderings(console, made)
        console.print(f"  a variation of recipe {source.origin.recipe_sha256[:12]} ({clean(source.name)})", style="dim")

    return Result("render", [rendering_value(each) for each in made], human=human, ids=(each.path for each in made))


def _verdict(source: "RecipeSource", results: "Sequence[ReplayResult]", saved: "Sequence[Rendering]") -> Result:
    from civman.rendering.replay_values import replay_value

    value = {
        "of": source.name,
        "recipe_sha256": source.origin.recipe_sha256,
        "pictures": [replay_value(each) for each in results],
        "kept": [rendering_value(each) for each in saved],
    }
    return Result(
        "replay", value,
        human=lambda console: _print(console, source, results, saved),
        ids=(each.verdict.value for each in results),
        error=_error(source, results),
    )  # fmt: skip


def _print(
    console: "Console", source: "RecipeSource", results: "Sequence[ReplayResult]", saved: "Sequence[Rendering]"
) -> None:
    from civman.rendering.compare_pictures import Verdict

    for each in results:
        for notice in each.notices:
            console.print(f"note: {clean(notice)}", style="dim", soft_wrap=True)
        if each.verdict is Verdict.MADE:
            console.print(
                f"rendered with seed {each.record.seed}; without the original image there are no pixels to compare with"
            )
            continue
        style = {Verdict.IDENTICAL: "green", Verdict.CLOSE: "yellow", Verdict.DIFFERENT: "red"}[each.verdict]
        console.print(f"{each.verdict.value}: {_words(each)}", style=style, soft_wrap=True)
        if each.verdict is Verdict.IDENTICAL and each.environment:
            console.print("  the pixels are identical, although the environment differs:", style="dim")
        for difference in each.environment:
            console.print(f"  {clean(str(difference))}", soft_wrap=True)
        if each.file_change is not None:
            console.print(
                f"  `{clean(source.name)}` {each.file_change.words}; the original image is saved as:",
                style="yellow", soft_wrap=True,
            )  # fmt: skip
    for rendering in saved:
        console.print(f"{clean(str(rendering.path))}  (picture:{rendering.id}, seed {rendering.seed})", soft_wrap=True)
    if not saved:
        console.print(
            f"  the new image is the same as {clean(str(source.path))}, so it was not saved",
            style="dim",
            soft_wrap=True,
        )


def _words(result: "ReplayResult") -> str:
    from civman.rendering.compare_pictures import Verdict

    if result.verdict is Verdict.IDENTICAL:
        return f"the same pixels as the original, sha256 {result.record.pixel_sha256[:12]}…"
    if result.distance is None:
        return (
            "the pixels differ from the recorded ones; the difference cannot be measured without the "
            "unchanged original file"
        )
    apart = result.distance
    shown = "equal to the file's pixels" if apart.psnr_db is None else f"PSNR {apart.psnr_db:.1f} dB"
    return f"{shown}, largest difference {apart.largest} of 255, {apart.share:.1%} of the pixels differ"


def _error(source: "RecipeSource", results: "Sequence[ReplayResult]") -> "CivmanError | None":
    """Return the error for a replay if its pixels differ from the recorded ones; None if they do not."""
    from civman.errors import NotIdentical
    from civman.rendering.compare_pictures import Verdict

    worst = next((each for each in results if each.verdict in (Verdict.CLOSE, Verdict.DIFFERENT)), None)
    if worst is None:
        return None
    why = "; ".join(str(each) for each in worst.environment)
    cause = f"the environment differs: {why}" if why else "the environment is the same as the recorded one"
    is_close = worst.verdict is Verdict.CLOSE
    return NotIdentical(
        f"the new image of `{source.name}` is {'close to' if is_close else 'different from'} the original; {cause}",
        is_close=is_close,
        hint="with the original versions, device and number of threads, the image would be identical" if why else
        "`civman doctor` looks for damaged files; for identical pixels, an image made on a GPU may need the same GPU",
        differs=[each.what for each in worst.environment],
    )  # fmt: skip
