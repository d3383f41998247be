"""The output of `civman show` for an image file."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from civman.cli.output import Result, clean
from civman.cli.recipe_lines import recipe_lines

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.recipes.record import Record, UpscaleRecord
    from civman.library import Library
    from civman.pictures.metadata import PictureMetadata
    from civman.rendering.picture_report import PictureReport, UsedModel


def is_picture_file(text: str) -> bool:
    """Whether `text` is the path of a file that starts with an image signature (magic bytes)."""
    path = Path(text).expanduser()
    if not path.is_file():
        return False
    from civman.pictures.image_text import is_picture

    return is_picture(path)


def is_site_image(text: str) -> bool:
    """Whether `text` is the URL of an image on CivitAI."""
    if "/images/" not in text:
        return False
    from civman.domain.refs import ImageRef, parse_ref
    from civman.errors import InvalidRef

    try:
        return isinstance(parse_ref(text), ImageRef)
    except InvalidRef:
        return False


def picture_path(library: "Library", text: str) -> Path | None:
    """Find the image file that `text` refers to, as a path or as a ref such as `picture:12`; None if there is none.

    Raises: NotFound: no image with this number was made with this library, or its file no longer exists.
    """
    from civman.domain.refs import PictureRef, parse_ref
    from civman.errors import NotFound

    if is_picture_file(text):
        return Path(text).expanduser()
    ref = parse_ref(text)
    if not isinstance(ref, PictureRef):
        return None
    source = library.pictures.find_recipe(str(ref))
    if source.path is None:
        raise NotFound(
            f"the file of `{ref}` no longer exists: {source.kept.path if source.kept else ''}",
            hint=f"`civman replay {ref}` renders it again",
        )
    return source.path


def show_picture(library: "Library", path: Path, *, recipe: bool) -> Result | None:
    """Show all metadata of an image; with `recipe`, print only its recipe as JSON and return None."""
    report = library.pictures.describe(path)
    if recipe:
        print_recipe(report)
        return None
    made = report.record or report.upscaled
    settings = library.pictures.foreign_settings(str(path)) if made is None else None
    prepared = library.named_files.prepare(settings, must_draw=False) if settings is not None else None
    verdict = {
        "drawable": prepared.found.drawable.value if prepared else None,
        "reasons": prepared.found.reasons if prepared else [],
    }  # fmt: skip

    def human(console: "Console") -> None:
        _print(console, report)
        if prepared is not None:
            from civman.cli.site_image_output import print_verdict

            print_verdict(console, prepared)

    return Result("picture", _value(report) | verdict, human=human, ids=[made.recipe.sha256] if made else [])


def print_recipe(report: "PictureReport") -> None:
    """Print the canonical JSON of the image's record to stdout. Raises: NotFound: the image contains no record."""
    from civman.errors import Cause, NotFound

    made = report.record or report.upscaled
    if made is None:
        raise NotFound(
            f"`{report.path.name}` contains no recipe of civman" + (f": {report.problem}" if report.problem else ""),
            code=Cause.NO_RECIPE,
        )
    sys.stdout.write(made.to_json() + "\n")


def _value(report: "PictureReport") -> dict[str, object]:
    made = report.record or report.upscaled
    return {
        "path": report.path, "format": report.carried.format, "size": report.carried.size, "told": report.metadata,
        "parts": [{"resource": part.resource, "held": _held(part), "by": part.by} for part in report.models],
        "parameters": report.carried.parameters,
        "recipe": json.loads(made.recipe.to_json()) if made else None,
        "id": report.number, "recipe_sha256": made.recipe.sha256 if made else None,
        "pixel_sha256": made.pixel_sha256 if made else None, "parent": made.parent if made else None,
        "environment": made.environment if made else None, "problem": report.problem or None,
    }  # fmt: skip


def _held(part: "UsedModel") -> dict[str, object] | None:
    asset = part.held
    return {"sha256": asset.blob.sha256, "name": asset.name, "path": asset.path} if asset else None


def _print(console: "Console", report: "PictureReport") -> None:
    from rich.text import Text

    width, height = report.carried.size
    console.print(Text(clean(str(report.path)), style="bold"), f"({report.carried.format}, {width}x{height})")
    metadata = report.metadata
    if report.problem:
        console.print(f"no recipe: {clean(report.problem)}", style="red", soft_wrap=True)
    if report.upscaled is not None:
        _print_upscale(console, report, report.upscaled)
    if metadata is None:
        if report.upscaled is None:
            console.print("contains no generation data that civman can read")
        return
    _print_metadata(console, report, metadata)


def _print_metadata(console: "Console", report: "PictureReport", metadata: "PictureMetadata") -> None:
    console.print(f"made by {metadata.generator.value}")
    for title, words in (("prompt", metadata.prompt), ("negative", metadata.negative)):
        if words:
            console.print(f"{title}: {clean(words)}", soft_wrap=True)
    console.print(" · ".join(_settings(report)) or "no settings", soft_wrap=True)
    if report.record is not None:
        for line in recipe_lines(report.record.recipe):
            console.print(clean(line), soft_wrap=True)
    for part in report.models:
        console.print(f"  {_resource(part)}", soft_wrap=True)
    for note in metadata.notes:
        console.print(f"  note: {clean(note)}", style="dim", soft_wrap=True)
    if report.record is not None:
        number = f", picture:{report.number}" if report.number else ""
        console.print(f"recipe {report.record.recipe.sha256[:12]}{number}; `civman replay` renders it again")
        for line in _record_lines(report.record):
            console.print(clean(line), soft_wrap=True)


def _record_lines(record: "Record") -> list[str]:
    """Format what a record contains in addition to its recipe."""
    lines = [f"  a variation of recipe {record.parent[:12]}"] if record.parent else []
    lines += [f"licence when the image was made: {'; '.join(record.licence)}"] if record.licence else []
    return lines + ([f"prompt as typed: {record.typed.prompt}"] if record.typed else [])


def _print_upscale(console: "Console", report: "PictureReport", record: "UpscaleRecord") -> None:
    from_width, from_height = record.picture_size
    width, height = record.recipe.enlargement.final_size
    console.print(
        f"upscaled from {clean(record.picture_name)} ({from_width}x{from_height}) to {width}x{height} with "
        f"{clean(record.upscaler_name)}", soft_wrap=True,
    )  # fmt: skip
    number = f", picture:{report.number}" if report.number else ""
    console.print(f"recipe {record.recipe.sha256[:12]}{number}; `civman replay` upscales it again")
    if record.parent:
        console.print(f"  the source was rendered from recipe {record.parent[:12]}")


def _settings(report: "PictureReport") -> list[str]:
    metadata = report.metadata
    if metadata is None:
        return []
    said = metadata.settings
    words = [f"{said.steps} steps"] if said.steps is not None else []
    words += [" ".join(clean(name) for name in (said.sampler, said.schedule) if name)] if said.sampler else []
    words += [f"cfg {said.cfg:g}"] if said.cfg is not None else []
    words += [f"seed {said.seed}"] if said.seed is not None else []
    words += [f"{said.width}x{said.height}"] if said.width and said.height else []
    words += [f"clip skip {said.clip_skip}"] if said.clip_skip else []
    words += [f"strength {said.denoising:g}"] if said.denoising is not None else []
    return words


def _resource(part: "UsedModel") -> str:
    from civman.domain.printed_refs import bare_version_ref

    named = part.resource
    words = [f"{named.kind:<12}", clean(named.name) or (f"version {named.version_id}" if named.version_id else "?")]
    if named.weight is not None:
        text = "" if named.text_weight in (None, named.weight) else f", {named.text_weight:g} on the text encoder"
        words.append(f"at {named.weight:g}{text}")
    words += [clean(named.air)] if named.air else []
    words += [f"hash {named.hash[:12]}"] if named.hash and not named.air else []
    if part.held is None:
        ref = named.air or (bare_version_ref(named.version_id) if named.version_id else "")
        words.append("— not in the library" + (f"; `civman download {clean(ref)}`" if ref else ""))
    else:
        how = "found by name only, so it may be a different file" if part.by == "name" else f"found by its {part.by}"
        words.append(f"— in the library as {clean(part.held.name)} ({how})")
    return " ".join(words)
