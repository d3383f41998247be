"""The output of `civman show` for an image on CivitAI: settings, models, and whether it can be rendered again."""

from typing import TYPE_CHECKING

from civman.cli.output import Result, clean
from civman.cli.session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from civman.planning.redraw_request import Prepared
    from civman.planning.site_image import SiteImage
    from civman.planning.wanted_files import Wanted

_SETTINGS = ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Clip skip", "Denoising strength",
             "Hires upscale", "Hires upscaler", "Version")  # fmt: skip
"""The settings of an image that `civman show` prints, under A1111's names."""


def show_site_image(session: Session, url: str, *, recipe: bool) -> Result:
    """Request an image's settings from CivitAI and show them; the original is not downloaded.

    Raises: UsageError: `recipe` is set, but only a file contains a recipe; NotFound: CivitAI does not show the image or
    its settings; NetworkError.
    """
    from civman.errors import UsageError

    if recipe:
        raise UsageError(
            "--recipe needs an image file, not a URL",
            hint="`civman replay URL` renders the image again; the new file contains a recipe",
        )
    session.output.notice("requesting the image's settings from CivitAI")
    image = session.library.pictures.fetch_image(url, with_original=False)
    assert image is not None, "the caller must pass the URL of an image on CivitAI"
    prepared = session.library.named_files.prepare(image, asks_site=True, must_draw=False)
    value = {
        "id": image.id, "base_model": image.base_model or None, "meta": image.meta,
        "drawable": prepared.found.drawable.value, "reasons": prepared.found.reasons,
        "resources": [_value(each) for each in prepared.files], "recipe": prepared.found.recipe,
    }  # fmt: skip
    return Result(
        "image", value, human=lambda console: _print(console, image, prepared), ids=[prepared.found.drawable.value]
    )


def _value(wanted: "Wanted") -> dict[str, object]:
    held, version = wanted.held, wanted.version
    return {
        "role": wanted.file.role, "name": wanted.file.name, "hash": wanted.file.hash or None,
        "weight": wanted.file.weight, "version_id": version.id if version is not None else None,
        "held": {"sha256": held.blob.sha256, "name": held.name, "path": held.path} if held is not None else None,
        "by": wanted.by.value or None,
    }  # fmt: skip


def _print(console: "Console", image: "SiteImage", prepared: "Prepared") -> None:
    from rich.text import Text

    from civman.pictures.site_settings import Entries

    entries = Entries(dict(image.meta or {}))
    console.print(Text(f"image {image.id} on CivitAI", style="bold"), f"({clean(image.base_model) or 'no base model'})")
    for title, name in (("prompt", "prompt"), ("negative", "Negative prompt")):
        if words := entries.text(name):
            console.print(f"{title}: {clean(words)}", soft_wrap=True)
    told = [f"{name.lower()} {entries.text(name)}" for name in _SETTINGS if entries.text(name)]
    console.print(clean(" · ".join(told)) or "no settings", soft_wrap=True)
    for each in prepared.files:
        console.print(f"  {clean(_words(each))}", soft_wrap=True)
    print_verdict(console, prepared)
    if prepared.found.drawable.value in ("exact", "differs"):
        console.print(
            f"`civman replay https://civitai.com/images/{image.id} --fetch` renders the image again and compares it"
        )


def print_verdict(console: "Console", prepared: "Prepared") -> None:
    """Print whether an image of another program or on CivitAI can be rendered again, and why not exactly."""
    can = {
        "exact": "can be rendered again exactly", "differs": "can be rendered again, with differences",
        "needs-input": "can only be rendered again from an input image, which its settings do not contain",
        "no": "cannot be rendered again",
    }[prepared.found.drawable.value]  # fmt: skip
    reasons = (*prepared.found.reasons, *prepared.notices)
    console.print(can + (":" if reasons else ""))
    for reason in reasons:
        console.print(f"  {clean(reason)}", soft_wrap=True)


def _words(wanted: "Wanted") -> str:
    weight = f" at {wanted.file.weight:g}" if wanted.file.weight is not None else ""
    named = f", version {wanted.version.id}" if wanted.version is not None else ""
    if wanted.held is None:
        return f"{wanted.words}{weight}{named} — not in the library"
    return f"{wanted.words}{weight}{named} — in the library as {wanted.held.name} (found by {wanted.by.value})"
