"""What `civman show` says of a picture."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from civman.cli.output import Output, clean

if TYPE_CHECKING:
    from rich.console import Console

    from civman.library import Library
    from civman.rendering.picture_report import About, Part


def is_picture_file(text: str) -> bool:
    """Whether `text` names a file that begins as a picture does."""
    path = Path(text).expanduser()
    if not path.is_file():
        return False
    from civman.pictures.image_text import is_picture

    return is_picture(path)


def show_picture(library: "Library", text: str, output: Output, *, recipe: bool) -> None:
    """All that a picture tells, or its recipe's JSON alone."""
    about = library.about(Path(text).expanduser())
    if recipe:
        print_recipe(about)
        return
    output.result(
        "picture", _value(about), human=lambda console: _print(console, about),
        ids=[about.record.recipe.sha256] if about.record else [],
    )  # fmt: skip


def print_recipe(about: "About") -> None:
    """The record's canonical JSON on stdout. Raises: NotFound: there is none."""
    from civman.errors import Cause, NotFound

    if about.record is None:
        raise NotFound(
            f"`{about.path.name}` tells no recipe of civman's" + (f": {about.problem}" if about.problem else ""),
            code=Cause.NO_RECIPE,
        )
    sys.stdout.write(about.record.to_json() + "\n")


def _value(about: "About") -> dict[str, object]:
    record = about.record
    return {
        "path": about.path, "format": about.carried.format, "size": about.carried.size, "told": about.told,
        "parts": [{"resource": part.resource, "held": _held(part), "by": part.by} for part in about.parts],
        "parameters": about.carried.parameters,
        "id": about.number, "recipe_sha256": record.recipe.sha256 if record else None,
        "pixel_sha256": record.pixel_sha256 if record else None, "parent": record.parent if record else None,
        "environment": record.environment if record else None, "problem": about.problem or None,
    }  # fmt: skip


def _held(part: "Part") -> dict[str, object] | None:
    asset = part.held
    return {"sha256": asset.blob.sha256, "name": asset.name, "path": asset.path} if asset else None


def _print(console: "Console", about: "About") -> None:
    from rich.text import Text

    width, height = about.carried.size
    console.print(Text(clean(str(about.path)), style="bold"), f"({about.carried.format}, {width}x{height})")
    told = about.told
    if about.problem:
        console.print(f"no recipe: {clean(about.problem)}", style="red", soft_wrap=True)
    if told is None:
        console.print("tells nothing of its making that civman can read")
        return
    console.print(f"made by {told.generator.value}")
    for title, words in (("prompt", told.prompt), ("negative", told.negative)):
        if words:
            console.print(f"{title}: {clean(words)}", soft_wrap=True)
    console.print(" · ".join(_settings(about)) or "no settings", soft_wrap=True)
    for part in about.parts:
        console.print(f"  {_resource(part)}", soft_wrap=True)
    for note in told.notes:
        console.print(f"  note: {clean(note)}", style="dim", soft_wrap=True)
    if about.record is not None:
        number = f", picture {about.number}" if about.number else ""
        console.print(f"recipe {about.record.recipe.sha256[:12]}{number}; `civman replay` makes it again")
        if about.record.parent:
            console.print(f"  a variation of {about.record.parent[:12]}")


def _settings(about: "About") -> list[str]:
    told = about.told
    if told is None:
        return []
    said = told.settings
    words = [f"{said.steps} steps"] if said.steps is not None else []
    words += [" ".join(clean(name) for name in (said.sampler, said.schedule) if name)] if said.sampler else []
    words += [f"cfg {said.cfg:g}"] if said.cfg is not None else []
    words += [f"seed {said.seed}"] if said.seed is not None else []
    words += [f"{said.width}x{said.height}"] if said.width and said.height else []
    words += [f"clip skip {said.clip_skip}"] if said.clip_skip else []
    words += [f"strength {said.denoising:g}"] if said.denoising is not None else []
    return words


def _resource(part: "Part") -> str:
    named = part.resource
    words = [f"{named.kind:<12}", clean(named.name) or (f"version {named.version_id}" if named.version_id else "?")]
    words += [f"at {named.weight:g}"] if named.weight is not None else []
    words += [clean(named.air)] if named.air else []
    words += [f"hash {named.hash[:12]}"] if named.hash and not named.air else []
    if part.held is None:
        ref = named.air or (f"@{named.version_id}" if named.version_id else "")
        words.append("— not here" + (f"; `civman download {clean(ref)}`" if ref else ""))
    else:
        how = "of the same name, which proves nothing" if part.by == "name" else f"by its {part.by}"
        words.append(f"— here as {clean(part.held.name)} ({how})")
    return " ".join(words)
