"""Replays images of other programs and images on CivitAI: fetches missing files, renders, and compares."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from civman.cli.output import Result, counted, size
from civman.cli.picture_output import is_site_image
from civman.cli.picture_preview import viewed
from civman.cli.plan_output import print_renderings
from civman.cli.session import Session
from civman.planning.plan_values import rendering_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.recipes.machine import Machine
    from civman.errors import CivmanError
    from civman.library.named_files_part import JudgedOffer
    from civman.planning.plan_types import Planned, Rendering
    from civman.planning.redraw_tiles import SourceImage
    from civman.planning.site_image import SiteImage
    from civman.rendering.draw import Drawn
    from civman.rendering.save_pictures import OutputOptions


_FIRST_ID: Final = 10_000
"""The lowest number that can be the id of an image on CivitAI; lower numbers are ids of images of the library."""


def fetched_image(session: Session, what: str) -> "SiteImage | None":
    """Download an image and its settings if `what` is its URL or id on CivitAI; return None otherwise.

    A number is taken as an id on CivitAI if it is at least 10,000 and no image of the library has this number.
    """
    from civman.index.read_pictures import PictureFilter

    number = int(what) if what.isdecimal() else 0
    if number >= _FIRST_ID and not session.library.pictures.count(PictureFilter(number=number)):
        what = f"https://civitai.com/images/{number}"
    if not is_site_image(what):
        return None
    session.output.notice("requesting the image's settings and its original from CivitAI")
    return session.library.pictures.fetch_image(what)


def fetch_named(
    session: Session, settings: "str | SiteImage", *, is_agreed: bool, source: "SourceImage | None" = None
) -> None:
    """Download the files that an image's settings name but the library does not have, if the user agrees.

    If the settings come from a local file, CivitAI is contacted only if the user has agreed in advance (`is_agreed`).

    Raises: CannotRender (`not-drawable`): the image cannot be rendered again. NotFound (`missing-files`): the user
        does not agree. If a file cannot be downloaded: the error that explains why.
    """
    files, asks_site = session.library.named_files, is_agreed or not isinstance(settings, str)
    prepared = files.prepare(settings, asks_site=asks_site, source=source)
    wanted = [each for each in prepared.files if not each.is_certain]
    if not wanted or not asks_site:
        return
    session.output.notice(f"looking up on CivitAI {counted(len(wanted), 'file')} named in the image's settings")
    offers = files.offers(prepared)
    prevents = next((each for each in offers if _prevents(each)), None)
    for each in offers:
        # print nothing about the file that `_require_obtainable` raises an error for
        for line in () if each is prevents else _lines(each):
            session.output.notice(line)
    _require_obtainable(offers)
    obtained = [each for each in offers if each.offer.job is not None]
    if not obtained:
        return
    total = sum(each.offer.job.file.size_bytes or 0 for each in obtained if each.offer.job and not each.offer.job.held)
    can_ask = session.output.is_live and sys.stdin.isatty()
    if not is_agreed and not (can_ask and session.output.confirm(f"Download {size(total)} from CivitAI?")):
        return
    with session.downloading(len(obtained)) as on_event:
        files.fetch(obtained, on_event=on_event)


@dataclass(frozen=True, slots=True)
class Again:
    """How to render an image again, and what to compare the result with.

    `changes` are changes to the recipe; `other` is a file to compare with instead of the original; `sheet` is the file
    to write with both images next to each other.
    """

    machine: "Machine"
    output: Path | None
    options: "OutputOptions"
    changes: "Sequence[tuple[str, str]]" = ()
    other: Path | None = None
    sheet: Path | None = None
    tries_cards: bool = False
    source: "SourceImage | None" = None


def source_image(given: "Sequence[Path]", original: Path) -> "SourceImage | None":
    """Read the input and control images that are needed to render an image again; None if `given` is empty.

    An entry of `given` is a path, or `NODE=PATH` for a node of a ComfyUI graph: the node's id, or the name of the file
    that the node loads.

    Raises: UsageError: an image cannot be read.
    """
    if not given:
        return None
    from civman.planning.input_pictures import read_picture
    from civman.planning.redraw_tiles import SourceImage

    final = original_pixels(original, is_required=False)
    size = None if final is None else (final.shape[1], final.shape[0])
    images = []
    for path in given:
        node, sign, file = str(path).partition("=")
        node = node if sign and not path.expanduser().exists() else ""
        found = read_picture(Path(file) if node else path)
        images.append(SourceImage(found.path, found.sha256, (found.width, found.height), size, node))
    return replace(images[0], others=tuple(images[1:]))


def draw_again(session: Session, settings: "str | SiteImage", original: Path, how: Again) -> Result:
    """Render an image again from A1111's text or CivitAI's settings, and compare it with the original."""
    made, verdict = new_image(session, settings, original, how)

    def human(console: "Console") -> None:
        print_renderings(console, made)
        if verdict is not None:
            console.print(f"  compared with the original: {verdict.words}", soft_wrap=True)

    value = verdict.value if verdict is not None else None
    result = Result(
        "render", [rendering_value(each) | {"compared": value} for each in made], human=human,
        ids=(each.path for each in made), error=verdict.error if verdict is not None else None,
    )  # fmt: skip
    return viewed(session, result, [each.path for each in made])


def new_image(
    session: Session, settings: "str | SiteImage", original: Path, how: Again
) -> "tuple[Sequence[Rendering], Judged | None]":
    """Render an image again from A1111's text or CivitAI's settings; the verdict is None if there is no original."""
    library, planned = session.library, planned_again(session, settings, how)
    pixels = original_pixels(how.other or original, is_required=how.other is not None)
    if pixels is not None and how.tries_cards:
        planned, drawn = _best_card(session, planned, pixels, how.machine)
        made = library.pictures.save([drawn], output=how.output, options=how.options)
    else:
        with session.drawing([planned.recipe]) as on_event:
            made = library.render(
                planned, output=how.output, options=how.options, machine=how.machine, on_event=on_event
            )
    return made, judged(session, settings, planned, made[0].path, pixels, how) if len(made) == 1 else None


def planned_again(session: Session, settings: "str | SiteImage", how: Again) -> "Planned":
    """Plan the image that A1111's text or CivitAI's settings describe, with the changes in `how`; print the notices."""
    from civman.planning.plan import Conditions

    library, conditions = session.library, Conditions(how.machine.device)
    with session.reading() as on_event:
        planned = library.pictures.plan_settings(settings, conditions, source=how.source, on_event=on_event)
        if how.changes:
            # store the preprocessed control images, because the variation's recipe refers to them
            library.pictures.keep_inputs(planned)
            varied = library.pictures.plan_variation(
                planned.recipe,
                how.changes,
                pictures=[each.path for each in how.source.all] if how.source else (),
                conditions=conditions,
                on_event=on_event,
            )
            planned = replace(varied, notices=(*planned.notices, *varied.notices))
    for notice in planned.notices:
        session.output.notice(notice)
    return planned


def original_pixels(path: Path, *, is_required: bool) -> "Any | None":
    """Read the pixels of the image at `path`. For other files, return None or, if `is_required`, raise UsageError."""
    from civman.errors import Cause, UsageError
    from civman.pictures import image_text

    if image_text.is_picture(path):
        return image_text.pixels(path)
    if is_required:
        raise UsageError(f"the file to compare with is not an image: `{path}`", hint="pass a PNG, JPEG or WebP file",
                         code=Cause.BAD_PICTURE)  # fmt: skip
    return None


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a new image, in words and as JSON, and the error that decides the exit code."""

    words: str
    value: dict[str, Any]
    error: "CivmanError | None"


def judged(
    session: Session, settings: "str | SiteImage", planned: "Planned", made: Path, original: Any, how: Again
) -> Judged | None:  # fmt: skip
    """Compare the new image with the original; None if there is no original. If requested, write both to one file."""
    from civman.errors import AnotherPicture
    from civman.pictures import image_text
    from civman.planning.likely_causes import likely_causes
    from civman.rendering.same_picture import Likeness, liken

    if original is None:
        return None
    drawn = image_text.pixels(made)
    likened = liken(drawn, original)
    if how.sheet is not None:
        from civman.rendering.side_by_side import write_side_by_side

        write_side_by_side(how.sheet, original, drawn)
    causes: tuple[str, ...] = ()
    if likened.likeness in (Likeness.ANOTHER, Likeness.DOUBTFUL):
        prepared = session.library.named_files.prepare(settings, source=how.source)
        causes = likely_causes(prepared, planned.recipe, (original.shape[1], original.shape[0]))
    value = {
        "verdict": likened.likeness.value, "gradients": likened.gradients, "psnr_db": likened.psnr_db,
        "differs": likened.differs, "causes": causes, "rng": planned.recipe.rng,
    }  # fmt: skip
    words = f"{likened}, probably because {'; or '.join(causes)}" if causes else str(likened)
    error = None
    if likened.likeness not in (Likeness.SAME, Likeness.COMPOSITION):
        error = AnotherPicture(
            f"compared with the original: {words}", is_known=likened.likeness is not Likeness.UNKNOWN,
            hint="--side-by-side FILE writes both images next to each other",
        )  # fmt: skip
    return Judged(words, value, error)


def _best_card(session: Session, planned: "Planned", original: Any, machine: "Machine") -> "tuple[Planned, Drawn]":
    """Render the image with the noise of each common graphics card, and keep the image most similar to the original."""
    from civman.planning.likely_causes import cards_to_try, depends_on_card
    from civman.rendering.same_picture import Likeness, liken

    cards = [(planned.recipe.rng, "a card with more GPU threads than the noise has values")]
    if depends_on_card(planned.recipe):
        cards += cards_to_try(planned.recipe)
    else:
        session.output.notice(
            "--try-cards has no effect, because the noise of this image does not depend on the graphics card"
        )
    plans = [replace(planned, recipe=replace(planned.recipe, rng=rng)) for rng, _ in cards]
    found: list[tuple[float, int, Drawn]] = []
    with session.drawing([each.recipe for each in plans]) as on_event:
        for place, drawn in enumerate(session.library.pictures.drawn(plans, machine=machine, on_event=on_event)):
            likened = liken(drawn.pixels, original)
            found.append((-2.0 if likened.gradients is None else likened.gradients, -place, drawn))
            if len(plans) > 1:
                session.output.notice(f"noise of {cards[place][1]}: {likened}")
            if likened.likeness is Likeness.SAME:
                break
    _, place, best = max(found, key=lambda each: each[:2])
    if len(plans) > 1:
        session.output.notice(f"the image with the noise of {cards[-place][1]} is the most similar one and is kept")
    return plans[-place], best


def _lines(judged: "JudgedOffer") -> list[str]:
    """List the facts that the user should know about a file before it is downloaded, one per line."""
    from civman.domain.licence import licence_words
    from civman.domain.printed_refs import file_ref

    offer = judged.offer
    if offer.job is None:
        problem = offer.problem
        assert problem is not None, "an offer without a download must contain a problem"
        return [f"cannot be downloaded: {problem.message}", *([f"  {problem.hint}"] if problem.hint else [])]
    version, file = offer.job.version, offer.job.file
    fit = judged.fit
    verdict = f"{fit.verdict.value} ({fit.reasons[0]})" if fit and fit.reasons else fit.verdict.value if fit else ""
    verdict = verdict or (f"unknown until the file is downloaded ({judged.why})" if judged.why else "")
    about = [
        f"missing: {offer.wanted.words}: {version.model.name} {version.name} ({file_ref(version, file)}), found by"
        f" {offer.by.value}, {size(file.size_bytes)}" + (", already in the library" if offer.job.is_stored else ""),
        f"  licence: {licence_words(version.model.licence)}"
        + (f"; compatibility with the checkpoint: {verdict}" if verdict else ""),
    ]
    return about + [f"  {notice}" for notice in (*offer.notices, *offer.job.notices)]


def _prevents(judged: "JudgedOffer") -> bool:
    """Whether rendering is impossible because a file cannot be downloaded and the library has no substitute for it."""
    wanted = judged.offer.wanted
    return judged.offer.problem is not None and wanted.held is None and wanted.file.role != "embedding"


def _require_obtainable(offers: "Sequence[JudgedOffer]") -> None:
    """Check, before any download, whether all files for the image can be obtained and fit its checkpoint.

    Raises: the error for a file that cannot be downloaded and for which the library has no substitute; Incompatible: a
        file does not fit the checkpoint.
    """
    from civman.domain.compatibility import Verdict
    from civman.errors import Cause, Incompatible

    for each in offers:
        if _prevents(each) and each.offer.problem is not None:
            raise each.offer.problem
    for each in offers:
        if each.fit is not None and each.fit.verdict is Verdict.CANNOT and each.offer.wanted.file.role != "embedding":
            raise Incompatible(
                f"the {each.offer.wanted.words} cannot work with the checkpoint: {each.fit.reasons[0]}",
                hint="nothing was downloaded; the settings probably do not name the files that the image was made with",
                code=Cause.CANNOT_WORK,
            )  # fmt: skip
