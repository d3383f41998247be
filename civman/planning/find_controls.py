"""Finds the ControlNets of a request, makes their control images, and checks that they fit the checkpoint."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from civman.diffusion.control_lora_shapes import is_control_lora, require_lora_fits, whole_shapes
from civman.diffusion.control_shapes import original_names, require_control_fits, union_size
from civman.diffusion.t2i_shapes import is_adapter, require_adapter_fits
from civman.domain.architecture import Architecture
from civman.domain.compatibility import Part
from civman.domain.digests import Sha256
from civman.domain.recipes.control import (
    CONTROL_TYPES,
    MAP_TYPES,
    ControlRequest,
    ControlUse,
    control_type,
    map_of,
)
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.errors import CannotRender, Cause, Incompatible, UsageError
from civman.manage.inspection import Inspected
from civman.pictures.control_maps import control_map
from civman.planning.find_files import Finder, Found
from civman.planning.input_pictures import InputPicture, input_file, read_picture
from civman.planning.plan_types import PlannedFile
from civman.store.blobs import digest_of


@dataclass(frozen=True, slots=True)
class FoundControl:
    """One control of a plan: its entry in the recipe, its model, and its control image."""

    use: ControlUse
    model: Found
    file: PlannedFile


def controls_for(finder: Finder, request: RenderRequest, checkpoint: Found) -> list[FoundControl]:
    """Find the control models of a request and make their control images.

    Raises: NotFound: a model or picture is missing. UsageError (`wrong-kind`, `bad-value`): a file is not a control
        model, or an option is invalid. Incompatible (`cannot-work`): a control model does not fit the checkpoint.
        CannotRender (`unknown-family`): civman does not support this kind of control model.
    """
    draws_region = bool(request.only_masked) and request.rules != 1
    return [_found(finder, asked, checkpoint, draws_region=draws_region) for asked in request.controls]


def _found(finder: Finder, asked: ControlRequest, checkpoint: Found, *, draws_region: bool) -> FoundControl:
    preprocessor = map_of(asked.control_map)
    model = finder.find("controlnet", asked.ref)
    require_fit(model.inspected, checkpoint.inspected)
    kind = _type_of(asked, model, preprocessor[0])
    file = _control_image(read_picture(Path(asked.picture)), *preprocessor)
    use = ControlUse(
        model.sha256, file.sha256, float(asked.weight), float(asked.start), float(asked.end), asked.mode,
        asked.resize_mode, kind, _pools(model) if asked.pools is None else asked.pools,
        draws_region and asked.crops is not False,
    )  # fmt: skip
    return FoundControl(use, model, file)


def _type_of(asked: ControlRequest, model: Found, preprocessor: str) -> str:
    """Return the kind of control image for a union ControlNet: the requested kind, or else the preprocessor's.

    Returns an empty string for control models that take a single kind. Raises: UsageError (`bad-value`): the kind is
    unknown or not specified, the model does not support it, or a kind was requested for a model of a single kind.
    """
    shapes = model.header.shapes
    known = (
        0 if is_adapter(shapes) else union_size({name: shapes[each] for name, each in original_names(shapes).items()})
    )
    kinds, name = CONTROL_TYPES[:known], model.inspected.name
    if not known and asked.control_type:
        raise UsageError(
            f"`{name}` takes only one kind of control image, so no kind can be chosen",
            hint="leave out --control-type, which is only for union ControlNets", code=Cause.BAD_VALUE,
        )  # fmt: skip
    kind = control_type(asked.control_type) if asked.control_type else MAP_TYPES.get(preprocessor, "")
    if known and kind not in kinds:
        why = (
            f"`{name}` does not take control images of the kind `{asked.control_type or kind}`"
            if asked.control_type or kind
            else f"`{name}` takes several kinds of control image, and the kind of {asked.picture} was not specified"
        )
        raise UsageError(why, hint=f"specify the kind with --control-type: {', '.join(kinds)}", code=Cause.BAD_VALUE)
    return (kind or "") if known else ""


def _pools(model: Found) -> bool:
    """Whether to average a ControlNet's outputs over the image, as models of the kind "shuffle" require.

    The tensors do not show the kind. As in A1111's extension, the file's name must contain "shuffle".
    """
    shapes = model.header.shapes
    is_plain = not is_adapter(shapes) and not is_control_lora(shapes)
    return (
        is_plain and model.identity.architecture is not Architecture.SDXL and "shuffle" in model.inspected.name.lower()
    )


def require_fit(control: Inspected, checkpoint: Inspected) -> None:
    """Check that a control model is of a kind that civman can render with, and that it fits the checkpoint.

    Raises: Incompatible (`cannot-work`): it does not fit the checkpoint. CannotRender (`unknown-family`): civman
        does not support this kind of control model.
    """
    theirs, ours = control.header, checkpoint.model_header()
    if theirs is None or ours is None:
        raise AssertionError("both files must be inspected with their headers")
    _require_kind(control.part, checkpoint.part, control.name)
    if is_adapter(theirs.shapes):
        require_adapter_fits(ours.shapes, theirs.shapes, control.name)
        return
    plain = {original: theirs.shapes[actual] for original, actual in original_names(theirs.shapes).items()}
    if is_control_lora(theirs.shapes):
        require_lora_fits(ours.shapes, theirs.shapes, control.name)
        plain = whole_shapes(ours.shapes, plain)
    require_control_fits(ours.shapes, plain, control.name)


_BASES: Final = frozenset({Architecture.SD1, Architecture.SD2, Architecture.SDXL})
_OTHER_KINDS: Final = {
    "xs": "a ControlNet-XS, which is computed together with the UNet",
    "sparsectrl": "a SparseCtrl, made for animations",
    "lllite": "a ControlNet-LLLite, whose modules change single attention layers",
}  # fmt: skip
"""Variants of control models that civman cannot render with, in words for error messages."""


def _require_kind(control: Part, checkpoint: Part, name: str) -> None:
    """Refuse control models made for another base model, and kinds that civman cannot render with."""
    known = Architecture.UNKNOWN not in (control.architecture, checkpoint.architecture)
    if known and not control.possible & checkpoint.possible:
        raise Incompatible(
            f"the control model `{name}` was made for {control.architecture}, but the checkpoint is "
            f"{checkpoint.architecture}",
            hint="choose a control model made for the checkpoint's base model", code=Cause.CANNOT_WORK,
        )  # fmt: skip
    why = _OTHER_KINDS.get(control.identity.variant, "") if control.identity else ""
    if control.architecture not in (*_BASES, Architecture.UNKNOWN):
        why = f"a control model for {control.architecture}"
    if why:
        raise CannotRender(
            f"`{name}` is {why}: civman supports ControlNets, ControlLoRAs and T2I-Adapters for SD 1, "
            "SD 2 and SDXL",
            hint="choose another control model, or render without one", code=Cause.UNKNOWN_FAMILY,
        )  # fmt: skip


def _control_image(picture: InputPicture, preprocessor: str, numbers: tuple[float, ...]) -> PlannedFile:
    """Turn a picture into a control image with a preprocessor; with "none", the picture is used unchanged."""
    path = picture.path.expanduser().absolute()
    if preprocessor == "none":
        return PlannedFile("control image", path.name, picture.sha256, path)
    data = _png(control_map(picture.pixels, preprocessor, numbers))
    name = f"{path.stem}-{preprocessor}.png"
    return PlannedFile("control image", name, Sha256(hashlib.sha256(data).hexdigest()), path.with_name(name), data=data)


def _png(pixels: Any) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def control_files(recipe: Recipe, pictures: Sequence[Path]) -> dict[Sha256, PlannedFile]:
    """Find the control images of a recipe among `pictures` by SHA-256.

    Raises: UsageError (`no-start-image`): a control image is missing; the message says which.
    """
    here = {digest_of(path): path for path in pictures} if recipe.controls else {}
    return {use.picture: input_file("control image", use.picture, here) for use in recipe.controls}


def as_control(use: ControlUse, recipe: Recipe, pictures: Mapping[Sha256, Path]) -> ControlRequest:
    """Convert a control of a recipe back to a request. Raises: UsageError (`no-start-image`): its image is missing."""
    draws_region = recipe.start is not None and recipe.start.only_masked
    path = input_file("control image", use.picture, pictures).path
    return ControlRequest(
        str(path), f"sha256:{use.sha256}", use.weight, use.start, use.end, use.mode, use.resize_mode,
        control_type=use.type, pools=use.pools, crops=use.crops if draws_region else None,
    )  # fmt: skip
