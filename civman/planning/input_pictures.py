"""Reads input images and masks completely, before any weights are loaded.

Images are converted to 8-bit RGB, masks to 8-bit grey.
"""

import hashlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import RULES, Recipe, RenderRequest, StartImage
from civman.domain.recipes.recipe_limits import COMFYUI_CROP, COMFYUI_RESIZES, MASK_CHANNELS
from civman.errors import Cause, UsageError
from civman.planning.plan_types import PICTURE_ROLES, PlannedFile
from civman.store.blobs import digest_of
from civman.store.partial import store_error
from civman.system.move_files import replace_file


@dataclass(frozen=True, slots=True)
class InputPicture:
    """An input image or mask on this disk: its path, the SHA-256 of its file, its size in pixels, and its pixels."""

    path: Path
    sha256: Sha256
    width: int
    height: int
    pixels: Any = field(repr=False, compare=False)
    """The pixels as uint8: (H, W, 3) for an image, (H, W) for a mask."""


def read_picture(
    path: Path, *, is_mask: bool = False, rules: int = RULES, data: bytes | None = None, channel: str = ""
) -> InputPicture:
    """Read the image at `path`, rotated as its EXIF data says, with transparent areas on white.

    `data`: the contents of the file, if they have been read already. `is_mask`: read a mask, whose transparent areas
    are not inpainted (under version 1 of the recipe rules, they are). `channel`: read only this channel as a mask
    ("red", "green", "blue", or "alpha", which is inverted), or "rgb" without transparency, as ComfyUI does.

    Raises: UsageError (`unreadable-picture`): the file is missing, not an image, or incomplete.
    """
    # numpy and Pillow are imported here, because importing them takes 0.15 s and text-to-image needs neither
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        data = path.expanduser().read_bytes() if data is None else data
        with Image.open(io.BytesIO(data)) as opened:
            image: Any = ImageOps.exif_transpose(opened)
            if channel:
                image = _of_channel(image, channel)
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                ground = "black" if is_mask and rules > 1 else "white"
                image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
            image = image.convert("L" if is_mask or channel not in ("", "rgb") else "RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        why = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "it is not an image, or it is incomplete"
        )
        raise UsageError(
            f"cannot read the {'mask' if is_mask else 'picture'} `{path}`: {why}",
            hint="supported formats are PNG, JPEG and WebP", code=Cause.UNREADABLE_PICTURE,
        ) from error  # fmt: skip
    return InputPicture(path, Sha256(hashlib.sha256(data).hexdigest()), image.width, image.height, np.asarray(image))


def _of_channel(image: Any, channel: str) -> Any:
    """Return one channel of a Pillow image; "alpha" is inverted, so that transparent areas are white."""
    if channel == "rgb":
        return image.convert("RGB")
    found = image.convert("RGBA").getchannel(channel[0].upper())
    return found.point([255 - shade for shade in range(256)]) if channel == "alpha" else found


def channel_of(resize_mode: str | None) -> str:
    """Return the value of `read_picture`'s argument `channel` for an input image with this resize mode."""
    return "rgb" if resize_mode in COMFYUI_RESIZES else ""


def size_like(picture: InputPicture, native: int) -> tuple[int, int]:
    """Return the size to render at if none is requested: the input image's, rounded down to multiples of 8.

    An image with more than four times as many pixels as the model's native size is first scaled down to that many.
    """
    width, height = picture.width, picture.height
    if width * height > 4 * native * native:
        factor = (native * native / (width * height)) ** 0.5
        width, height = int(width * factor), int(height * factor)
    return max(8, width // 8 * 8), max(8, height // 8 * 8)


def requested_pictures(request: RenderRequest) -> list[InputPicture]:
    """Read a request's input image and mask, if there are any.

    Raises: UsageError: an option needs an image that is not given (`no-start-image`), the mask is black
        (`empty-mask`), or a file cannot be read (`unreadable-picture`).
    """
    if request.init_image is None:
        asked = {
            "a mask": request.mask_image, "a strength": request.strength, "mask blur": request.mask_blur,
            "masked content": request.masked_content, "a resize mode": request.resize_mode,
            "inpainting only the masked area": request.only_masked or None, "padding": request.padding,
            "a mask's channel": request.mask_channel, "growing a mask": request.grow_mask,
            "a noise multiplier": request.noise_multiplier, "a conditioning weight": request.conditioning_weight,
            "a redraw in tiles": request.tiled_upscale, "Ultimate SD upscale": request.ultimate_upscale,
            "enlarging an input image": request.init_upscale,
        }  # fmt: skip
        if alone := [name for name, value in asked.items() if value is not None]:
            raise UsageError(
                f"{alone[0]} requires an input image",
                hint="pass the input image with --init",
                code=Cause.NO_START_IMAGE,
            )
        return []
    first = read_picture(Path(request.init_image), channel=channel_of(request.resize_mode))
    if request.mask_image is None:
        asked = {
            "mask blur": request.mask_blur, "masked content": request.masked_content,
            "inpainting only the masked area": request.only_masked or None, "padding": request.padding,
            "a mask's channel": request.mask_channel, "growing a mask": request.grow_mask,
        }  # fmt: skip
        if alone := [name for name, value in asked.items() if value is not None]:
            raise UsageError(f"{alone[0]} requires a mask", hint="pass the mask with --mask", code=Cause.NO_START_IMAGE)
        return [first]
    channel = (request.mask_channel or "").replace("grey", "")
    if channel not in MASK_CHANNELS:
        raise UsageError(
            f"`{request.mask_channel}` is not a channel of a mask image",
            hint=f"choose grey, {', '.join(MASK_CHANNELS[1:])}", code=Cause.BAD_VALUE,
        )  # fmt: skip
    mask = read_picture(
        Path(request.mask_image), is_mask=True, rules=RULES if request.rules is None else request.rules,
        channel=channel,
    )  # fmt: skip
    if request.rules != 1 and not mask.pixels.any():
        raise UsageError(
            f"the mask `{request.mask_image}` selects nothing: it is black or transparent everywhere",
            hint="white areas of the mask are inpainted", code=Cause.EMPTY_MASK,
        )  # fmt: skip
    return [first, mask]


def as_files(pictures: Sequence[InputPicture]) -> dict[Sha256, PlannedFile]:
    """Return an input image and its mask as files of a plan, by SHA-256."""
    roles = ("picture", "mask")
    return {
        picture.sha256: PlannedFile(role, picture.path.name, picture.sha256, picture.path.expanduser().absolute())
        for role, picture in zip(roles, pictures, strict=False)
    }


def cropped(request: RenderRequest, picture: InputPicture) -> RenderRequest:
    """Set a request's size to that of its input image, cropped to multiples of 8 as in ComfyUI.

    Raises: UsageError (`bad-size`): the request specifies another size.
    """
    size = picture.width // 8 * 8, picture.height // 8 * 8
    if (request.width or size[0], request.height or size[1]) != size:
        raise UsageError(
            f"the resize mode `{COMFYUI_CROP}` only crops the image to multiples of 8, so its size must be "
            f"{size[0]}x{size[1]}",
            hint="leave out --size, or choose another resize mode, such as `comfyui lanczos`", code=Cause.BAD_SIZE,
        )  # fmt: skip
    return replace(request, width=size[0], height=size[1])


def kept_inputs(root: Path, recipe: Recipe, given: Sequence[Path] = ()) -> dict[Sha256, Path]:
    """Find a recipe's input image, masks, control images and reference pictures by SHA-256.

    The files are searched for in `given` and among the copies in the library.
    """
    wanted = [use.picture for use in recipe.controls] + [use.picture for use in recipe.references]
    wanted += [use.sha256 for use in recipe.edit_images] + ([recipe.start.sha256] if recipe.start else [])
    wanted += [recipe.start.mask_sha256] if recipe.start and recipe.start.mask_sha256 else []
    wanted += [made.mask for made in recipe.details if made.mask]
    if not wanted:
        return {}
    found = {digest_of(path): path for path in given}
    for digest in wanted:
        if digest not in found:
            found |= find_input(root, digest)
    return found


def find_input(root: Path, digest: Sha256, given: Iterable[Path] = ()) -> dict[Sha256, Path]:
    """Find an image file by its SHA-256, in `given` or among the copies in the library.

    The result also contains all files in `given`.
    """
    found = {digest_of(path): path for path in given}
    if digest not in found:
        here = next(iter(sorted(_folder(root).glob(f"{digest}.*"))), None)
        if here is not None and digest_of(here) == digest:
            found[digest] = here
    return found


def input_file(role: str, digest: Sha256, here: Mapping[Sha256, Path]) -> PlannedFile:
    """Return the file of an image in a recipe, as a plan lists it. `here`: the available files by SHA-256.

    `role` is one of `PICTURE_ROLES`. Raises: UsageError (`no-start-image`): the image is not among the files.
    """
    if digest not in here:
        raise UsageError(
            f"the {role} (sha256 {digest[:12]}…) of the recipe is missing",
            hint=f"pass the file of the {role} with --picture FILE", code=Cause.NO_START_IMAGE, sha256=[str(digest)],
        )  # fmt: skip
    path = here[digest]
    return PlannedFile(role, path.name, digest, path.expanduser().absolute())


def missing_inputs(start: StartImage, here: Mapping[Sha256, Path]) -> UsageError | None:
    """Return the error (`no-start-image`) if the input image or its mask is not in `here`; None if both are.

    The message also names the files in `here` that the recipe does not use, because the user may have passed wrong
    ones.
    """
    wanted = {"input image": start.sha256, "mask": start.mask_sha256}
    missing = {role: digest for role, digest in wanted.items() if digest is not None and digest not in here}
    if not missing:
        return None
    images = " and ".join(f"the {role} (sha256 {digest[:12]}…)" for role, digest in missing.items())
    wrong = [f"`{path}`" for digest, path in here.items() if digest not in wanted.values()]
    unused = f"; the recipe does not use {', '.join(wrong)}" if wrong else ""
    return UsageError(
        f"{images} of the recipe {'is' if len(missing) == 1 else 'are'} missing{unused}",
        hint="pass the original file of each missing image with --picture FILE", code=Cause.NO_START_IMAGE,
        missing=list(missing), sha256=[str(digest) for digest in missing.values()],
    )  # fmt: skip


def keep_inputs(root: Path, files: Iterable[PlannedFile]) -> None:
    """Copy the images of a plan into the library, so that its recipe can be rendered without the original files."""
    for file in files:
        if file.role in PICTURE_ROLES:
            keep_input(root, file.path, file.sha256, file.data)


def keep_input(root: Path, path: Path, sha256: Sha256, data: bytes | None = None) -> None:
    """Copy an image file of a recipe into the library. `data`: the file's contents, if known. Raises: StoreError."""
    copy = _folder(root) / f"{sha256}{path.suffix.lower() or '.png'}"
    if copy.exists():
        return
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f".{copy.name}.part")
        if data is None:
            shutil.copyfile(path, partial)
        else:
            partial.write_bytes(data)
        replace_file(partial, copy)
    except OSError as error:
        raise store_error(error, copy) from error


def _folder(root: Path) -> Path:
    return root / "renders" / "inputs"
