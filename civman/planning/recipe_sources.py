"""Finds recipes: in a picture file, in a JSON file, or by a picture's number or a recipe's SHA-256."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from civman.domain.digests import Sha256
from civman.domain.printed_refs import picture_ref
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.record import Origin, Record, UpscaleRecord, read_origin
from civman.domain.recipes.upscale_recipe import UpscaleRecipe
from civman.errors import AmbiguousRef, Cause, NotFound, UsageError
from civman.index import Index
from civman.index.read_pictures import KeptPicture, PictureFilter
from civman.pictures import contact_sheet, image_text
from civman.planning.find_files import seen_here

_MOST_JSON = 8 << 20
_MOST_NAMED = 24
"""The maximum number of cells of a contact sheet that a message lists."""
_DIGEST = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """A recipe and where it was found. `path`: the picture's file; None if there is only a recipe.

    `is_lossless`: the file's format stores the computed pixels exactly, so its pixels differ only if the file was
    edited.
    """

    name: str
    origin: Origin
    path: Path | None = None
    is_lossless: bool = False
    kept: KeptPicture | None = field(default=None)

    @property
    def record(self) -> Record | None:
        """The record that was written when the picture was made, or None."""
        return self.origin.record


@dataclass(frozen=True, slots=True)
class Missing:
    """A missing model file of a recipe. `name`: the file's name when the picture was made."""

    role: str
    sha256: Sha256
    name: str
    size_bytes: int | None = None
    air: str | None = None
    file_id: int | None = None


def find_recipe(index: Index, what: str) -> RecipeSource:
    """Find a recipe by the path of a picture or JSON file, a picture's number, or the start of a recipe's SHA-256.

    A picture without metadata is recognised by its pixels if this library made it.

    Raises: NotFound: nothing matches, or the picture has no civman recipe. AmbiguousRef. UsageError (`bad-picture`,
        `bad-recipe`, `newer-recipe`). IntegrityError (`edited-recipe`).
    """
    path = Path(what).expanduser()
    if path.is_file():
        return _of_file(index, path)
    number = what.strip().lower().removeprefix("picture:").strip()
    if number.isdecimal() and len(number) < 12:
        found = index.pictures(PictureFilter(number=int(number)))
        if found:
            return _of_kept(found[0])
    if _DIGEST.fullmatch(what.lower()):
        found = index.pictures(PictureFilter(recipe=what.lower()))
        if len({each.record.recipe.sha256 for each in found}) > 1:
            raise AmbiguousRef(
                f"several recipes have a SHA-256 that starts with `{what}`", hint="pass more digits of the SHA-256",
                candidates=sorted({str(each.record.recipe.sha256) for each in found}),
            )  # fmt: skip
        if found:
            return _of_kept(next((each for each in found if each.is_here), found[0]))
    if number.isdecimal():
        words = f"this library has no picture with number {number}"
    elif path.suffix or len(path.parts) > 1:
        words = f"there is no file `{what}`"
    else:
        words = f"`{what}` is not an image file, a recipe file, a picture's number or a recipe's SHA-256"
    raise NotFound(
        words,
        hint="`civman renders` lists this library's pictures with their numbers", name=what,
    )  # fmt: skip


def _of_kept(kept: KeptPicture) -> RecipeSource:
    record = kept.record
    path = Path(kept.path)
    is_lossless = path.suffix.lower() == ".png"
    return RecipeSource(picture_ref(kept.id), Origin.of(record), path if path.is_file() else None, is_lossless, kept)


def _of_file(index: Index, path: Path) -> RecipeSource:
    if not image_text.is_picture(path):
        origin = read_origin(_text(path))
        kept = _kept(index.pictures(PictureFilter(recipe=origin.recipe_sha256)), path, origin)
        if kept is None or (origin.record or origin.upscaled_record) is None:
            return RecipeSource(path.name, origin)
        return replace(_of_kept(kept), name=path.name)
    carried = image_text.read(path)
    is_lossless = carried.format == "png"
    if carried.record is not None:
        origin = read_origin(carried.record)
        kept = _kept(index.pictures(PictureFilter(recipe=origin.recipe_sha256)), path, origin)
        # the file was saved without its prompts: use the recipe in this library
        if origin.recipe is None and origin.upscaled is None and kept is not None:
            origin = Origin.of(kept.record)
        return RecipeSource(path.name, origin, path, is_lossless, kept)
    if sheet := contact_sheet.contents(carried.entries):
        raise _is_sheet(index, path, sheet)
    known = index.pictures(PictureFilter(pixel_sha256=pixel_sha256(image_text.pixels(path))))
    if known:
        return RecipeSource(path.name, Origin.of(known[0].record), path, is_lossless, known[0])
    raise NotFound(
        f"`{path.name}` contains no civman recipe, and its pixels match no picture that this library made",
        hint="`civman show` lists the metadata that other programs wrote into the file",
        code=Cause.NO_RECIPE, path=str(path),
    )  # fmt: skip


def _is_sheet(index: Index, path: Path, sheet: contact_sheet.Contents) -> UsageError:
    """Return the error for a contact sheet, which has no recipe of its own. The message lists the cells' pictures."""
    lines, refs = [], []
    for values, digest in sheet.cells:
        made = index.pictures(PictureFilter(recipe=digest), limit=1) if _DIGEST.fullmatch(digest) else []
        refs.append(picture_ref(made[0].id) if made else digest)
        lines.append(f"  {', '.join(values)}: {picture_ref(made[0].id) if made else f'recipe {digest[:12]}'}")
    shown = lines if len(lines) <= _MOST_NAMED else [*lines[:_MOST_NAMED], f"  … {len(lines) - _MOST_NAMED} more"]
    return UsageError(
        "\n".join([f"`{path.name}` is a contact sheet of {len(lines)} cells, not a single picture:", *shown]),
        hint=f"choose one of its cells, for example `civman replay {refs[0]}`" if refs else None,
        code=Cause.CONTACT_SHEET, path=str(path), cells=[digest for _, digest in sheet.cells],
    )  # fmt: skip


def _kept(known: Iterable[KeptPicture], path: Path, origin: Origin) -> KeptPicture | None:
    """Return the index row of this file or, without one, the row of another file with the same pixels."""
    alike = sorted(
        (each for each in known if each.record.pixel_sha256 == origin.pixel_sha256), key=lambda each: not each.is_here
    )
    same = (each for each in alike if Path(each.path) == path.absolute())
    return next(same, None) or next(iter(alike), None)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise UsageError(f"`{path}` is not a picture, and it is too large to be a recipe", code=Cause.BAD_RECIPE)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text.lstrip().startswith("{"):
        raise UsageError(
            f"`{path}` is neither a picture nor a recipe", hint="pass a PNG, JPEG or WebP picture, or a recipe in JSON",
            code=Cause.BAD_RECIPE,
        )  # fmt: skip
    return text


def pixel_sha256(pixels: Any) -> Sha256:
    """Return the SHA-256 of (H, W, 3) or (H, W, 4) uint8 pixels in row order, in the form that records contain."""
    import numpy as np

    return Sha256(hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest())


def pixels_of(source: RecipeSource) -> Any:
    """Read the pixels of a source's picture, (H, W, 3) uint8; None if there is no file."""
    return image_text.pixels(source.path) if source.path is not None else None


def missing(index: Index, source: RecipeSource) -> tuple[Missing, ...]:
    """List the model files of a recipe that are neither stored nor known elsewhere on this disk."""
    recipe, record = _any_recipe(source), source.origin.upscaled_record or source.record
    lacking = []
    for role, digests in recipe.digests.items():
        for sha256 in digests:
            if not seen_here(index, sha256):
                file = recipe.file(sha256)
                name = record.name_of(sha256).name if record else f"sha256:{sha256[:12]}"
                facts = (file.size_bytes, file.air, file.file_id) if file else (None, None, None)
                lacking.append(Missing(role, sha256, name, *facts))
    return tuple(lacking)


def _any_recipe(source: RecipeSource) -> Recipe | UpscaleRecipe:
    upscaled = source.origin.upscaled
    if upscaled is None:
        return recipe_of(source)
    return upscaled.recipe if isinstance(upscaled, UpscaleRecord) else upscaled


def require_all(lacking: Sequence[Missing]) -> None:
    """Check that no model file is missing. Raises: NotFound (`missing-files`): the message lists the missing ones."""
    if not lacking:
        return
    named = "; ".join(f"{each.role} `{each.name}` ({each.air or f'sha256 {each.sha256[:12]}…'})" for each in lacking)
    hint = "--fetch searches CivitAI for the files by id or SHA-256, downloads them and verifies their SHA-256"
    if any(each.air is None for each in lacking):
        hint += "; use `civman import FILE` to add a file that CivitAI does not have"
    raise NotFound(
        f"missing model files: {named}", hint=hint, code=Cause.MISSING_FILES,
        sha256=[str(each.sha256) for each in lacking],
        air=[each.air or "" for each in lacking],
    )  # fmt: skip


def recipe_of(source: RecipeSource) -> Recipe:
    """Return the recipe of a source.

    Raises: NotFound (`no-recipe`): the picture was saved without its recipe. UsageError (`bad-recipe`): the picture
        was upscaled, not rendered.
    """
    if source.origin.upscaled is not None:
        raise UsageError(
            f"`{source.name}` was upscaled from another image, so it contains an upscale recipe, not a"
                    " render recipe",
            hint="use `civman replay` to repeat the upscale, or `civman upscale` to upscale another image",
            code=Cause.BAD_RECIPE,
        )  # fmt: skip
    if source.origin.recipe is None:
        raise NotFound(
            f"`{source.name}` contains only the SHA-256 of its recipe ({source.origin.recipe_sha256[:12]}…), and this"
            " library does not have that recipe",
            hint="replay the picture in the library that made it, or from the recipe's JSON file", code=Cause.NO_RECIPE,
        )  # fmt: skip
    return source.origin.recipe
