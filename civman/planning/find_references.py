"""Finds the IP-Adapters of a request with their encoders and pictures, and checks that they fit the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from civman.domain.adapters.ip_adapters import attention_problem, cross_attention, read_ip_adapter
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import Recipe, ReferenceUse, RenderRequest
from civman.domain.recipes.reference import ReferenceRequest
from civman.errors import Cause, Incompatible, UsageError
from civman.planning.find_encoder import ROLE, encoder_for
from civman.planning.find_files import Finder, Found
from civman.planning.input_pictures import InputPicture, input_file, read_picture
from civman.planning.plan_types import PlannedFile
from civman.store.blobs import digest_of

ROLE_OF_PICTURE = "reference picture"
"""The role of reference pictures among a plan's files."""


@dataclass(frozen=True, slots=True)
class FoundReference:
    """One reference picture of a plan: its entry in the recipe, its IP-Adapter and encoder, and the picture's file.

    `notice`: a notice for the user, or empty.
    """

    use: ReferenceUse
    adapter: Found
    encoder: Found
    file: PlannedFile
    notice: str


def references_for(
    finder: Finder, request: RenderRequest, checkpoint: Found, *, is_adaptive: bool
) -> list[FoundReference]:
    """Find the IP-Adapters of a request with their encoders and pictures.

    `is_adaptive`: the sampler determines its number of steps only while it runs.

    Raises: NotFound: a file or picture is missing. UsageError (`wrong-kind`, `bad-value`): a file is of another kind,
        or a crop exceeds its picture. Incompatible (`cannot-work`): an IP-Adapter does not fit the checkpoint.
        CannotRender: civman cannot use an IP-Adapter, or its encoder is missing. AmbiguousRef: several encoders fit.
    """
    given = [part.partition("=")[2] for part in request.parts if part.startswith(f"{ROLE}=")]
    if given and not request.references:
        raise UsageError(
            f"--part {ROLE} requires an IP-Adapter", hint="add an IP-Adapter with --reference", code=Cause.BAD_VALUE
        )
    if is_adaptive and any((each.start, each.end) != (0, 1) for each in request.references):
        raise UsageError(
            "an adaptive sampler chooses its number of steps while it runs, so a reference cannot "
            "start or end at a fraction of the steps",
            hint="choose another sampler, or leave out START-END of the reference", code=Cause.BAD_VALUE,
        )  # fmt: skip
    encoders = [finder.find(ROLE, ref) for ref in given]
    return [_found(finder, asked, checkpoint, encoders) for asked in request.references]


def _found(
    finder: Finder, asked: ReferenceRequest, checkpoint: Found, encoders: Sequence[Found]
) -> FoundReference:  # fmt: skip
    adapter = finder.find("ip-adapter", asked.ref)
    name = adapter.inspected.name
    kind = read_ip_adapter(adapter.header.shapes, name)
    require_fit(adapter, checkpoint)
    encoder, notice = encoder_for(finder, kind, name, encoders)
    picture = read_picture(Path(asked.picture))
    cropped(picture, asked.crop)
    use = ReferenceUse(
        adapter.sha256, encoder.sha256, picture.sha256, float(asked.weight), float(asked.start), float(asked.end),
        tuple(asked.crop),
    )  # fmt: skip
    file = input_file(ROLE_OF_PICTURE, picture.sha256, {picture.sha256: picture.path})
    return FoundReference(use, adapter, encoder, file, notice)


def require_fit(adapter: Found, checkpoint: Found) -> None:
    """Check that an IP-Adapter fits the checkpoint's cross-attention. Raises: Incompatible (`cannot-work`)."""
    problem = attention_problem(checkpoint.header.shapes, adapter.header.shapes)
    if not cross_attention(checkpoint.header.shapes):
        problem = "the checkpoint contains no cross-attention layers of an SD 1, SD 2 or SDXL UNet"
    if problem:
        raise Incompatible(
            f"the IP-Adapter `{adapter.inspected.name}` does not fit the checkpoint: {problem}",
            hint="choose an IP-Adapter made for the checkpoint's base model", code=Cause.CANNOT_WORK,
        )  # fmt: skip


def cropped(picture: InputPicture, crop: Sequence[int]) -> InputPicture:
    """Crop a picture to the part that a reference uses. Raises: UsageError (`bad-value`): the crop is invalid."""
    if not crop:
        return picture
    if len(crop) != 4 or min(crop) < 0 or min(crop[2:]) < 1:
        raise UsageError(
            f"`{','.join(map(str, crop))}` is not a valid crop of a reference picture",
            hint="write the crop as left edge, top edge, width and height in pixels, such as "
            "100,40,256,256",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    left, top, width, height = crop
    if left + width > picture.width or top + height > picture.height:
        raise UsageError(
            f"the crop {left},{top},{width},{height} exceeds the picture `{picture.path.name}`, which "
            f"has {picture.width}x{picture.height} pixels",
            hint="write the crop as left edge, top edge, width and height in pixels, all within the "
            "picture", code=Cause.BAD_VALUE,
        )  # fmt: skip
    pixels = picture.pixels[top : top + height, left : left + width]
    return InputPicture(picture.path, picture.sha256, width, height, pixels)


def reference_files(recipe: Recipe, pictures: Sequence[Path]) -> dict[Sha256, PlannedFile]:
    """Find the reference pictures of a recipe among `pictures` by SHA-256.

    Raises: UsageError: a picture is missing (`no-start-image`), or smaller than its crop (`bad-value`).
    """
    here = {digest_of(path): path for path in pictures} if recipe.references else {}
    found = {}
    for use in recipe.references:
        found[use.picture] = input_file(ROLE_OF_PICTURE, use.picture, here)
        cropped(read_picture(found[use.picture].path), use.crop)
    return found


def as_reference(use: ReferenceUse, pictures: Mapping[Sha256, Path]) -> ReferenceRequest:
    """Convert a recipe's reference back to a request. Raises: UsageError (`no-start-image`): its picture is missing."""
    path = input_file(ROLE_OF_PICTURE, use.picture, pictures).path
    return ReferenceRequest(str(path), f"sha256:{use.sha256}", use.weight, use.start, use.end, use.crop)


def encoder_parts(recipe: Recipe) -> tuple[str, ...]:
    """The encoders of a recipe's IP-Adapters, in the form of a request's `--part` values."""
    return tuple(dict.fromkeys(f"{ROLE}=sha256:{use.encoder}" for use in recipe.references))
