"""Replays many images on CivitAI, those of a model or those that a file lists, and prints a verdict for each."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from civman.cli.foreign_replay import Again, fetch_named, judged, new_image, original_pixels, planned_again
from civman.cli.output import Result, clean, counted, error_value
from civman.cli.session import Session

if TYPE_CHECKING:
    from civman.cli.foreign_replay import Judged
    from civman.cli.output import Output
    from civman.errors import CivmanError
    from civman.planning.plan_types import Planned
    from civman.planning.site_image import SiteImage

MOST: Final = 100
"""The maximum number of images in one run, so that a mistake does not send CivitAI too many requests."""


Found = TypeVar("Found", "_Row", "_Row | None")


@dataclass(frozen=True, slots=True)
class Many:
    """Which images on CivitAI to render again: those made with `model`, or those listed in `file` ("-": stdin)."""

    model: str | None = None
    file: str | None = None
    limit: int = 10
    is_agreed: bool = False
    """Whether the user has agreed to download missing files."""
    only_reads: bool = False
    """Whether to check only if each image can be rendered again, without rendering it."""
    on: str | None = None
    """The workers that render the images, as for `civman render --on`; None: this process, one image at a time."""
    resumes: bool = False
    """Whether to skip rendering images that are already in the output folder; they are still compared."""


@dataclass(frozen=True, slots=True)
class _Row:
    """The result for one image."""

    image: str
    verdict: str
    error: "CivmanError | None" = None
    path: str | None = None
    compared: dict[str, Any] | None = None
    reasons: tuple[str, ...] = ()
    """Why the image cannot be rendered again exactly, the most serious reason first; set only if it is not rendered."""

    @property
    def words(self) -> str:
        """Format the result in one line: the image, the verdict, and the error or the first reason if there is one."""
        why = self.error.message if self.error is not None else next(iter(self.reasons), "")
        return f"{self.image}  {self.verdict}" + (f": {why}" if why else "")

    @property
    def value(self) -> dict[str, Any]:
        """The result as a JSON object for --json."""
        error = None if self.error is None else error_value(self.error)
        return {"image": self.image, "verdict": self.verdict, "error": error, "path": self.path,
                "compared": self.compared, "reasons": list(self.reasons)}  # fmt: skip


def replay_many(session: Session, many: Many, how: Again) -> Result:
    """Render images on CivitAI again. If one of them fails, the rest are still rendered.

    Raises: UsageError: the file cannot be read or lists no images. NotFound: there is no such model; NetworkError.
    """
    from civman.errors import PartlyFailedError

    urls = _listed(session, many)
    session.output.notice(f"requesting {counted(len(urls), 'image')} from CivitAI, one after the other")
    rows = []
    is_large = many.on is not None or many.resumes
    for row in _on_workers(session, urls, many, how) if is_large else (_row(session, url, many, how) for url in urls):
        rows.append(row)
        _tell(session.output, row)
    failed = [each for each in rows if each.error is not None]
    error = None
    if failed and failed[0].error is not None:
        error = PartlyFailedError(
            f"{len(failed)} of {counted(len(rows), 'image')} could not be reproduced",
            exit_code=failed[0].error.exit_code, refs=[each.image for each in failed],
        )  # fmt: skip

    return Result(
        "replays", [each.value for each in rows], human=lambda _: None,
        ids=(f"{each.image} {each.verdict}" for each in rows), error=error,
    )  # fmt: skip


def _tell(output: "Output", row: _Row) -> None:
    """Print the verdict on an image as soon as it is known: on stdout, or on stderr with --json."""
    if output.as_json:
        output.notice(row.words)
    elif not output.quiet:
        output.console().print(clean(row.words), soft_wrap=True)
        output.flush()
    if row.error is not None and row.error.hint:
        output.notice(f"  {row.error.hint}")


def _listed(session: Session, many: Many) -> list[str]:
    """Return the URLs of the images to render again."""
    from civman.errors import Cause, UsageError

    if many.model is not None:
        version = session.library.context.resolve(many.model).version.id
        found = session.library.pictures.examples(version, limit=many.limit)
        return [f"https://civitai.com/images/{each.id}" for each in found if each.media == "image"][: many.limit]
    assert many.file is not None, "`civman replay` must pass a model or a file"
    try:
        text = sys.stdin.read() if many.file == "-" else Path(many.file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read `{many.file}`: {error}", code=Cause.BAD_VALUE) from error
    urls = [f"https://civitai.com/images/{line}" if line.isdecimal() else line for line in text.split()]
    if not urls:
        raise UsageError(
            f"`{many.file}` lists no images", hint="the file must have one id or URL of an image on CivitAI per line"
        )
    if len(urls) > many.limit:
        session.output.notice(
            f"{many.file} lists {len(urls)} images; only the first {many.limit} are rendered (--limit changes this)"
        )
    return list(dict.fromkeys(urls))[: many.limit]


def _row(session: Session, url: str, many: Many, how: Again) -> _Row:
    """Render one image again and return its result, or the error that makes this impossible."""

    def draw(name: str, image: "SiteImage") -> _Row:
        made, verdict = new_image(session, image, image.path, replace(how, sheet=None))
        return _drawn(name, str(made[0].path), verdict)

    return _attempted(session, url, many, how, draw)


def _on_workers(session: Session, urls: list[str], many: Many, how: Again) -> Iterator[_Row]:
    """Plan all images, render them on workers and compare each. Images with a civman recipe stay in this process."""
    from civman.errors import CivmanError, NotFound

    waiting: list[tuple[str, SiteImage, Planned]] = []

    def plan(name: str, image: "SiteImage") -> _Row | None:
        waiting.append((name, image, planned_again(session, image, how)))
        return None

    for url in urls:
        row = _attempted(session, url, many, how, plan)
        if row is not None:
            yield row
    if not waiting:
        return
    library, failures = session.library, dict[str, CivmanError]()
    plans = [planned for _, _, planned in waiting]
    with session.drawing([each.recipe for each in plans]) as on_event:
        made = library.render(
            plans, output=how.output, options=how.options, machine=how.machine, on=many.on, resume=many.resumes,
            on_event=on_event, on_failure=lambda planned, error: failures.update({planned.recipe.sha256: error}),
        )  # fmt: skip
    paths = {each.recipe.sha256: each.path for each in made}
    for name, image, planned in waiting:
        digest = planned.recipe.sha256
        path = paths.get(digest) or _earlier(session, planned, how)
        if path is None:
            lost = NotFound(f"image {name} was not rendered, and an earlier render of it was not found")
            yield _Row(name, "not drawn", failures.get(digest, lost))
            continue
        original = original_pixels(image.path, is_required=False)
        yield _drawn(name, str(path), judged(session, image, planned, path, original, replace(how, sheet=None)))


def _earlier(session: Session, planned: "Planned", how: Again) -> Path | None:
    """Find an earlier render of the same recipe in the output folder; None if there is none."""
    from civman.index.read_pictures import PictureFilter

    folder = (how.output or session.library.context.renders).expanduser().absolute()
    for kept in session.library.pictures.list(PictureFilter(recipe=planned.recipe.sha256)):
        if Path(kept.path).parent in (folder, folder.parent) and kept.is_here:
            return Path(kept.path)
    return None


def _drawn(name: str, path: str, verdict: "Judged | None") -> _Row:
    if verdict is None:
        return _Row(name, "drawn", path=path)
    return _Row(name, verdict.value["verdict"], verdict.error, path, verdict.value)


def _attempted(
    session: Session, url: str, many: Many, how: Again, draw: "Callable[[str, SiteImage], Found]"
) -> "_Row | Found":
    """Download an image and the files that it needs, and call `draw`; if that fails, the result contains the error."""
    from civman.errors import CivmanError, Interrupted, NetworkError, UsageError

    name = url.rpartition("/")[2].partition("?")[0]
    try:
        image = session.library.pictures.fetch_image(url, with_original=not many.only_reads)
        if image is None:
            raise UsageError(f"`{url}` is neither the URL nor the id of an image on CivitAI")
        if many.only_reads:
            prepared = session.library.named_files.prepare(image, asks_site=True, must_draw=False)
            return _Row(name, prepared.found.drawable.value, reasons=prepared.found.reasons)
        if image.has_recipe:
            return _of_recipe(session, name, image, many, how)
        fetch_named(session, image, is_agreed=many.is_agreed)
        return draw(name, image)
    except (Interrupted, NetworkError):
        raise
    except CivmanError as error:
        return _Row(name, "not drawn", error)


def _of_recipe(session: Session, name: str, image: "SiteImage", many: Many, how: Again) -> _Row:
    """Replay an image that contains civman's recipe."""
    from civman.errors import NotIdentical
    from civman.planning.recipe_sources import require_all
    from civman.rendering.compare_pictures import Verdict

    library = session.library
    source = library.pictures.find_recipe(str(image.path))
    missing = library.pictures.missing_files(source)
    if missing and not many.is_agreed:
        require_all(missing)
    with session.downloading(len(missing)) as on_event:
        library.pictures.fetch_missing(missing, on_event=on_event)
    recipe = source.origin.recipe
    with session.drawing([recipe] if recipe else []) as on_event:
        result = library.replay(source, machine=how.machine, on_event=on_event)[0]
    made = library.pictures.save([result.drawn], output=how.output, options=how.options)
    error = None
    if result.verdict in (Verdict.CLOSE, Verdict.DIFFERENT):
        error = NotIdentical("the new pixels differ from the recorded ones", is_close=result.verdict is Verdict.CLOSE)
    return _Row(name, result.verdict.value, error, str(made[0].path))
