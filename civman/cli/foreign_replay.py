"""What `civman replay` does with images of other programs and with images on CivitAI: fetch, draw, compare."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from civman.cli.output import Result, counted, size
from civman.cli.picture_preview import viewed
from civman.cli.plan_output import print_renderings
from civman.cli.session import Session
from civman.planning.plan_values import rendering_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.recipes.machine import Machine
    from civman.library.named_files_part import JudgedOffer
    from civman.planning.site_image import SiteImage
    from civman.rendering.save_pictures import OutputOptions


def fetched_image(session: Session, what: str) -> "SiteImage | None":
    """Download the original if `what` is the URL of an image on CivitAI; None otherwise."""
    if "://" not in what:
        return None
    session.output.notice("requesting the image's settings and its original from CivitAI")
    return session.library.pictures.fetch_image(what)


def fetch_named(session: Session, settings: "str | SiteImage", *, is_agreed: bool) -> None:
    """Download the files that the settings name and the library lacks, if the user agrees.

    For settings of a local file, CivitAI is asked only if the user has agreed already.

    Raises: CannotRender (`not-drawable`): the image cannot be drawn again. NotFound (`missing-files`): the user does
        not agree; and the error of a file that cannot be had.
    """
    files, asks_site = session.library.named_files, is_agreed or not isinstance(settings, str)
    prepared = files.prepare(settings, asks_site=asks_site)
    wanted = [each for each in prepared.files if not each.is_certain]
    if not wanted or not asks_site:
        return
    session.output.notice(f"asking CivitAI for {counted(len(wanted), 'file')} that the settings name")
    offers = files.offers(prepared)
    for each in offers:
        for line in _lines(each):
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


def draw_again(
    session: Session, settings: "str | SiteImage", original: Path, machine: "Machine", output: Path | None,
    options: "OutputOptions",
) -> Result:  # fmt: skip
    """Draw the image of A1111's text or of CivitAI's answer, print what differs, and compare it with the original."""
    from civman.pictures import image_text
    from civman.planning.plan import Conditions
    from civman.rendering.same_picture import liken

    with session.reading() as on_event:
        planned = session.library.pictures.plan_settings(settings, Conditions(machine.device), on_event=on_event)
    for notice in planned.notices:
        session.output.notice(notice)
    with session.drawing([planned.recipe]) as on_event:
        made = session.library.render(planned, output=output, options=options, machine=machine, on_event=on_event)
    likened = None
    if image_text.is_picture(original) and len(made) == 1:
        likened = liken(image_text.pixels(made[0].path), image_text.pixels(original))
    value = None if likened is None else {
        "verdict": likened.likeness.value, "gradients": likened.gradients, "psnr_db": likened.psnr_db,
    }  # fmt: skip

    def human(console: "Console") -> None:
        print_renderings(console, made)
        if likened is not None:
            console.print(f"  compared with the original: {likened}", soft_wrap=True)

    result = Result(
        "render", [rendering_value(each) | {"compared": value} for each in made], human=human,
        ids=(each.path for each in made),
    )  # fmt: skip
    return viewed(session, result, [each.path for each in made])


def _lines(judged: "JudgedOffer") -> list[str]:
    """What the user should know about a file before it is downloaded."""
    from civman.domain.licence import licence_words
    from civman.domain.printed_refs import file_ref

    offer = judged.offer
    if offer.job is None:
        problem = offer.problem
        assert problem is not None, "an offer without a download has a reason"
        return [f"cannot be downloaded: {problem.message}", *([f"  {problem.hint}"] if problem.hint else [])]
    version, file = offer.job.version, offer.job.file
    fit = judged.fit
    verdict = f"{fit.verdict.value} ({fit.reasons[0]})" if fit and fit.reasons else fit.verdict.value if fit else ""
    verdict = verdict or (f"unknown before the download ({judged.why})" if judged.why else "")
    about = [
        f"missing: {offer.wanted.words}: {version.model.name} {version.name} ({file_ref(version, file)}), found by"
        f" {offer.by.value}, {size(file.size_bytes)}" + (", in the library already" if offer.job.is_stored else ""),
        f"  licence: {licence_words(version.model.licence)}" + (f"; with the checkpoint: {verdict}" if verdict else ""),
    ]
    return about + [f"  {notice}" for notice in (*offer.notices, *offer.job.notices)]


def _require_obtainable(offers: "Sequence[JudgedOffer]") -> None:
    """Check that nothing prevents the image from being drawn, before anything is downloaded.

    Raises: the error of a file that cannot be had and that nothing in the library stands in for; Incompatible: a file
        does not fit the checkpoint.
    """
    from civman.domain.compatibility import Verdict
    from civman.errors import Cause, Incompatible

    for each in offers:
        wanted, problem = each.offer.wanted, each.offer.problem
        if problem is not None and wanted.held is None and wanted.file.role != "embedding":
            raise problem
    for each in offers:
        if each.fit is not None and each.fit.verdict is Verdict.CANNOT and each.offer.wanted.file.role != "embedding":
            raise Incompatible(
                f"the {each.offer.wanted.words} cannot work with the checkpoint: {each.fit.reasons[0]}",
                hint="nothing was downloaded; the image was probably made with other files than its settings say",
                code=Cause.CANNOT_WORK,
            )  # fmt: skip
