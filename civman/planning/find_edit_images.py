"""Finds the reference pictures of models that take them without an IP-Adapter, and checks how many the model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import EditImage, Recipe, RenderRequest
from civman.domain.recipes.recipe_limits import size_of
from civman.domain.recipes.reference import LARGEST, LEAST, ReferenceRequest
from civman.errors import Cause, UsageError
from civman.planning.find_files import Found
from civman.planning.find_references import ROLE_OF_PICTURE, cropped
from civman.planning.flow_plan import FlowChoice
from civman.planning.input_pictures import input_file, read_picture
from civman.planning.plan_types import PlannedFile
from civman.store.blobs import digest_of

OWN = "own"
"""The value of a reference's `size` that leaves the picture at its original size."""


def edit_images_for(
    request: RenderRequest, choice: FlowChoice | None, checkpoint: Found
) -> list[tuple[EditImage, PlannedFile]]:
    """Find the reference pictures for a checkpoint that takes them without an IP-Adapter.

    Returns each as an entry of the recipe and a file of the plan. `choice` is None if the checkpoint is not a
    flow-matching model.

    Raises: UsageError: the model takes no reference pictures or fewer than requested (`bad-config`), a value is invalid
        (`bad-value`), or a picture cannot be read (`unreadable-picture`).
    """
    asked = request.references
    if choice is None:
        _require_adapters(asked, checkpoint)
        return []
    if asked:
        _require_reading(choice, len(asked))
    if any(each.ref for each in asked):
        raise UsageError(
            f"{choice.family.title} takes reference pictures without an IP-Adapter",
            hint="write --reference FILE, without the name of an IP-Adapter", code=Cause.BAD_CONFIG,
        )  # fmt: skip
    if any((each.weight, each.start, each.end) != (1, 0, 1) for each in asked):
        raise UsageError(
            f"{choice.family.title} uses reference pictures in all steps, with a fixed weight",
            hint="leave out the weight, start and end of the reference picture", code=Cause.BAD_CONFIG,
        )  # fmt: skip
    return [_found(each, choice) for each in asked]


def _require_adapters(asked: Sequence[ReferenceRequest], checkpoint: Found) -> None:
    for each in asked:
        if not each.ref:
            raise UsageError(
                f"`{checkpoint.inspected.name}` can use a reference picture only with an IP-Adapter",
                hint="add a colon and the IP-Adapter, such as --reference style.png:ip-adapter-plus_sd15",
                code=Cause.BAD_VALUE,
            )  # fmt: skip
        if each.size:
            raise UsageError(
                "--reference-size does not apply to the reference picture of an IP-Adapter, which is resized for "
                "its encoder",
                hint="leave out --reference-size", code=Cause.BAD_VALUE,
            )  # fmt: skip


def _require_reading(choice: FlowChoice, number: int) -> None:
    """Check that a model takes this many reference pictures. Raises: UsageError (`bad-config`)."""
    family, variant = choice.family, choice.variant
    most, model = family.reads_images.get(variant, 0), f"{family.title} {variant}".strip()
    if not most and family.reads_images:
        others = " and ".join(family.reads_images)
        raise UsageError(
            f"{model} takes no reference pictures: only the variant {others} of {family.title} does",
            hint=f"leave out --reference, or set --variant {next(iter(family.reads_images))} if the file is that model",
            code=Cause.BAD_CONFIG,
        )  # fmt: skip
    if not most:
        raise UsageError(f"{model} takes no reference pictures", hint="leave out --reference", code=Cause.BAD_CONFIG)
    if number > most:
        pictures = "one reference picture" if most == 1 else f"at most {most} reference pictures"
        raise UsageError(
            f"{model} takes {pictures}, not {number}",
            hint=f"leave out {number - most} of the reference pictures",
            code=Cause.BAD_CONFIG,
        )


def _found(asked: ReferenceRequest, choice: FlowChoice) -> tuple[EditImage, PlannedFile]:
    picture = read_picture(Path(asked.picture))
    part = cropped(picture, asked.crop)
    crop, size = tuple(asked.crop), (part.width, part.height)
    if not asked.size:
        fit = choice.family.reference_fit(*size)
        left, top, width, height = fit.box
        if (width, height) != size:
            begin = crop[:2] or (0, 0)
            crop = (begin[0] + left, begin[1] + top, width, height)
        size = fit.size
    elif asked.size != OWN:
        size = size_of(asked.size)
    if not LEAST <= min(size) <= max(size) <= LARGEST:
        raise UsageError(
            f"the reference picture `{picture.path.name}` would have {size[0]}x{size[1]} pixels, but both sides must "
            f"be between {LEAST} and {LARGEST}",
            hint="choose another size with --reference-size, or another part of the picture with --reference-crop",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    file = input_file(ROLE_OF_PICTURE, picture.sha256, {picture.sha256: picture.path})
    return EditImage(picture.sha256, *size, crop), file


def sized_like(request: RenderRequest, images: Sequence[EditImage], multiple: int) -> RenderRequest:
    """Set the size of a request that specifies none to that of its first reference picture.

    Both sides are rounded down to multiples of `multiple`.
    """
    is_open = request.width is None and request.height is None and request.init_image is None
    if not images or not is_open:
        return request
    width, height = (side // multiple * multiple for side in (images[0].width, images[0].height))
    return replace(request, width=width, height=height)


def edit_files(recipe: Recipe, choice: FlowChoice | None, pictures: Sequence[Path]) -> dict[Sha256, PlannedFile]:
    """Find the reference pictures of a recipe whose model takes them without an IP-Adapter.

    The files are searched for among `pictures`, by SHA-256.

    Raises: UsageError: a picture is missing (`no-start-image`) or smaller than its crop (`bad-value`), or the model
        takes no reference pictures (`bad-config`).
    """
    if not recipe.edit_images:
        return {}
    if choice is not None:
        _require_reading(choice, len(recipe.edit_images))
    here, found = {digest_of(path): path for path in pictures}, {}
    for use in recipe.edit_images:
        found[use.sha256] = input_file(ROLE_OF_PICTURE, use.sha256, here)
        cropped(read_picture(found[use.sha256].path), use.crop)
    return found


def as_edit_reference(use: EditImage, pictures: Mapping[Sha256, Path]) -> ReferenceRequest:
    """Convert a recipe's reference picture back to a request. Raises: UsageError (`no-start-image`): it is missing."""
    path = input_file(ROLE_OF_PICTURE, use.sha256, pictures).path
    return ReferenceRequest(str(path), crop=use.crop, size=f"{use.width}x{use.height}")
