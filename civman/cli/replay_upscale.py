"""How `civman replay` repeats an upscale that civman or A1111's Extras tab made."""

from pathlib import Path
from typing import TYPE_CHECKING

from civman.cli.output import Result, clean
from civman.cli.session import Session
from civman.rendering.upscale_values import upscaled_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.recipes.machine import Machine
    from civman.errors import CivmanError
    from civman.planning.recipe_sources import RecipeSource
    from civman.rendering.save_pictures import OutputOptions
    from civman.rendering.upscale import SavedUpscale
    from civman.rendering.upscale_again import UpscaledAgain


def replay_upscale(
    session: Session, source: "RecipeSource", pictures: "Sequence[Path]", machine: "Machine", output: Path | None,
    options: "OutputOptions", *, is_varied: bool,
) -> Result:  # fmt: skip
    """Repeat the upscale of an image that civman made, and compare. Identical results are not saved.

    Raises: UsageError: changes are requested, which an upscale recipe does not allow; and the errors of
    `library.upscaling.again`.
    """
    from civman.errors import UsageError
    from civman.rendering.compare_pictures import Verdict

    if is_varied:
        raise UsageError(
            f"--set and --grid can only vary rendered images, and `{source.name}` was upscaled",
            hint="to upscale the source with other settings, use `civman upscale`",
        )
    upscaling = session.library.upscaling
    with session.upscaling(1) as on_event:
        again = upscaling.again(source, pictures=pictures, machine=machine, on_event=on_event)
    is_there = source.path is not None and again.verdict is Verdict.IDENTICAL and again.is_unchanged
    saved = None if is_there and output is None else upscaling.save(again.made, output=output, options=options)
    return Result(
        "replay", _value(source, again, saved), human=lambda console: _print(console, source, again, saved),
        ids=[again.verdict.value], error=_error(source, again),
    )  # fmt: skip


def _value(source: "RecipeSource", again: "UpscaledAgain", saved: "SavedUpscale | None") -> dict[str, object]:
    apart = again.distance
    return {
        "of": source.name, "recipe_sha256": source.origin.recipe_sha256,
        "pictures": [{
            "verdict": again.verdict.value, "pixel_sha256": again.made.record.pixel_sha256,
            "was": again.original.pixel_sha256 if again.original else None,
            "psnr_db": apart.psnr_db if apart else None, "largest_difference": apart.largest if apart else None,
            "environment": [{"what": each.what, "then": each.then, "now": each.now} for each in again.environment],
        }],
        "kept": [upscaled_value(saved)] if saved is not None else [],
    }  # fmt: skip


def _print(console: "Console", source: "RecipeSource", again: "UpscaledAgain", saved: "SavedUpscale | None") -> None:
    from civman.rendering.compare_pictures import Verdict

    if again.verdict is Verdict.MADE:
        console.print("upscaled; without the original image there are no pixels to compare with")
    else:
        style = {Verdict.IDENTICAL: "green", Verdict.CLOSE: "yellow"}.get(again.verdict, "red")
        apart = again.distance
        words = (
            "the same pixels as the original" if again.verdict is Verdict.IDENTICAL
            else f"largest difference {apart.largest} of 255" if apart is not None
            else "the difference cannot be measured without the original file"
        )  # fmt: skip
        console.print(f"{again.verdict.value}: {words}", style=style, soft_wrap=True)
        for difference in again.environment:
            console.print(f"  {clean(str(difference))}", soft_wrap=True)
        if not again.is_unchanged:
            console.print(f"  `{clean(source.name)}` was changed after it was upscaled", style="yellow", soft_wrap=True)
    if saved is not None:
        console.print(f"{clean(str(saved.path))}  (picture:{saved.id})", soft_wrap=True)
    else:
        console.print(
            f"  the new image is the same as {clean(str(source.path))}, so it was not saved",
            style="dim",
            soft_wrap=True,
        )


def _error(source: "RecipeSource", again: "UpscaledAgain") -> "CivmanError | None":
    from civman.errors import NotIdentical
    from civman.rendering.compare_pictures import Verdict

    if again.verdict not in (Verdict.CLOSE, Verdict.DIFFERENT):
        return None
    is_close = again.verdict is Verdict.CLOSE
    why = "; ".join(str(each) for each in again.environment)
    cause = f"the environment differs: {why}" if why else "the environment is the same as the recorded one"
    return NotIdentical(
        f"the new image of `{source.name}` is {'close to' if is_close else 'different from'} the original; {cause}",
        is_close=is_close,
        hint="with the original versions, device and number of threads, the image would be identical",
        differs=[each.what for each in again.environment],
    )  # fmt: skip


def replay_extras(
    session: Session, picture: Path, source: Path | None, machine: "Machine", output: Path | None,
    options: "OutputOptions",
) -> Result | None:  # fmt: skip
    """Repeat an upscale that A1111's Extras tab made, by the metadata of its result `picture`, and compare the two.

    `source` is the image before the upscale. Returns None if the metadata describes no upscale. Raises: the errors of
    `library.upscaling.plan_extras` and `run`.
    """
    upscaling = session.library.upscaling
    with session.reading() as on_event:
        planned = upscaling.plan_extras(picture, source=source, on_event=on_event)
    if planned is None:
        return None
    from civman.pictures import image_text
    from civman.rendering.compare_pictures import distance

    for notice in planned.notices:
        session.output.notice(notice)
    with session.upscaling(1) as on_event:
        (made,) = upscaling.run([planned], output=output, options=options, machine=machine, on_event=on_event)
    apart = distance(image_text.pixels(made.path), image_text.pixels(picture))
    value = None if apart is None else {"psnr_db": apart.psnr_db, "largest_difference": apart.largest}

    def human(console: "Console") -> None:
        console.print(f"{clean(str(made.path))}  (picture:{made.id})", soft_wrap=True)
        words = (
            "the sizes differ" if apart is None else "the same pixels" if apart.psnr_db is None
            else f"PSNR {apart.psnr_db:.1f} dB, largest difference {apart.largest} of 255"
        )  # fmt: skip
        console.print(f"  compared with the original: {words}", soft_wrap=True)

    return Result("upscale", [upscaled_value(made) | {"compared": value}], human=human, ids=[made.path])
