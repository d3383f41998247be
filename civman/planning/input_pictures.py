"""Pictures to start from: read whole before anything is loaded, as 8-bit RGB, masks as grey."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import RULES, Recipe, StartImage
from civman.errors import Cause, UsageError
from civman.planning.plan_types import Planned
from civman.store.blobs import digest_of
from civman.store.partial import store_error
from civman.system.move_files import replace_file


@dataclass(frozen=True, slots=True)
class InputPicture:
    """A picture on this disk: SHA-256 of its file, its size in pixels."""

    path: Path
    sha256: Sha256
    width: int
    height: int
    pixels: Any = field(repr=False, compare=False)
    """(H, W, 3) uint8, a mask (H, W) uint8."""


def read_picture(path: Path, *, is_mask: bool = False, rules: int = RULES) -> InputPicture:
    """The picture at `path`, turned as its EXIF entry says, transparent parts on white.

    In a mask what is transparent is not painted; by rules 1 it was.

    Raises: UsageError (`unreadable-picture`): it is not there, or no picture that can be read to its end.
    """
    import numpy as np  # with Pillow 0.15 s, which text to picture can do without
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = path.expanduser().read_bytes()
        with Image.open(path.expanduser()) as opened:
            image: Any = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = "black" if is_mask and rules > 1 else "white"
                image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
            image = image.convert("L" if is_mask else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        why = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is no picture, or not a whole one"
        )
        raise UsageError(
            f"cannot read the {'mask' if is_mask else 'picture'} `{path}`: {why}",
            hint="PNG, JPEG and WebP can be read", code=Cause.UNREADABLE_PICTURE,
        ) from error  # fmt: skip
    return InputPicture(path, Sha256(hashlib.sha256(data).hexdigest()), image.width, image.height, np.asarray(image))


def size_like(picture: InputPicture, native: int) -> tuple[int, int]:
    """The size to render at when none is asked for: the picture's own, in eights; large ones at the native area."""
    width, height = picture.width, picture.height
    if width * height > 4 * native * native:
        factor = (native * native / (width * height)) ** 0.5
        width, height = int(width * factor), int(height * factor)
    return max(8, width // 8 * 8), max(8, height // 8 * 8)


def kept_inputs(root: Path, recipe: Recipe, given: Sequence[Path] = ()) -> dict[Sha256, Path]:
    """The paths of the given files and of the library's copies of what the recipe starts from, by digest."""
    if recipe.start is None:
        return {}
    wanted = {digest for digest in (recipe.start.sha256, recipe.start.mask_sha256) if digest}
    found = {digest_of(path): path for path in given}
    for digest in wanted - found.keys():
        here = next(iter(sorted(_folder(root).glob(f"{digest}.*"))), None)
        if here is not None and digest_of(here) == digest:
            found[digest] = here
    return found


def missing_inputs(start: StartImage, here: Mapping[Sha256, Path]) -> UsageError | None:
    """The error (`no-start-image`) that names each input of a recipe that is not `here`; None if all are.

    Files that are none of the inputs are named too: the user may have given the wrong ones.
    """
    wanted = {"input image": start.sha256, "mask": start.mask_sha256}
    missing = {role: digest for role, digest in wanted.items() if digest is not None and digest not in here}
    if not missing:
        return None
    named = " and ".join(f"the {role} (sha256 {digest[:12]}…)" for role, digest in missing.items())
    others = [f"`{path}`" for digest, path in here.items() if digest not in wanted.values()]
    given = (
        f"; {', '.join(others)} {'is not it' if len(missing) == len(others) == 1 else 'is neither'}" if others else ""
    )
    return UsageError(
        f"{named}, which the recipe starts from, {'is' if len(missing) == 1 else 'are'} not here{given}",
        hint="give the original file with --picture FILE (once for each)", code=Cause.NO_START_IMAGE,
        missing=list(missing), sha256=[str(digest) for digest in missing.values()],
    )  # fmt: skip


def keep_inputs(root: Path, planned: Planned) -> None:
    """Copies of the pictures that the plan starts from: their files may go, the recipe needs them."""
    for file in planned.files:
        if file.role not in ("picture", "mask"):
            continue
        copy = _folder(root) / f"{file.sha256}{file.path.suffix.lower() or '.png'}"
        if copy.exists():
            continue
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(f".{copy.name}.part")
            shutil.copyfile(file.path, partial)
            replace_file(partial, copy)
        except OSError as error:
            raise store_error(error, copy) from error


def _folder(root: Path) -> Path:
    return root / "renders" / "inputs"
