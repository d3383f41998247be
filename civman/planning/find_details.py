"""Plans detail passes: finds their regions and the face detector, and fills in defaults for prompts and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from civman.diffusion import sampler_names
from civman.diffusion.noise_levels import Schedule
from civman.domain.digests import Sha256
from civman.domain.events import ignore
from civman.domain.recipes.details import FACE, WHOLE_PROMPT, DetailPass, DetailRequest, box_of, texts_of
from civman.domain.recipes.recipe import Recipe, RenderRequest
from civman.domain.recipes.recipe_limits import size_of
from civman.errors import Cause, NotFound, UsageError
from civman.index import Index
from civman.planning import prompt_stages
from civman.planning.find_faces import face_detector
from civman.planning.find_files import Finder, Found
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import PlannedFile
from civman.prompts import emphasis
from civman.store.blobs import digest_of


@dataclass(frozen=True, slots=True)
class FoundDetails:
    """The detail passes of a request and the files that they need. Settings that depend on the image are left open."""

    passes: tuple[DetailPass, ...] = ()
    detector: Found | None = None
    masks: tuple[PlannedFile, ...] = ()

    def texts(self) -> tuple[str, ...]:
        """All prompts of the detail passes, without the placeholder that stands for the image's prompt."""
        both = (text for made in self.passes for text in (*made.prompts, *made.negatives))
        return tuple(text.replace(WHOLE_PROMPT, " ") for text in both if text)


def details_for(finder: Finder, request: RenderRequest, sampler: str, schedule: Schedule) -> FoundDetails:
    """Plan the detail passes of a request and find their files. `sampler`, `schedule`: those of the image itself.

    A width of 0 in a pass means the width of the image. Raises: NotFound (`missing-files`): the face detector is not in
        the library. UsageError: a region, mask, prompt or setting is invalid.
    """
    if not request.details:
        return FoundDetails()
    detector = face_detector(finder) if any(asked.region.casefold() == FACE for asked in request.details) else None
    passes, masks = [], []
    for asked in request.details:
        made = _pass(asked, request, sampler, schedule)
        if asked.region.casefold() == FACE and detector is not None:
            made = replace(made, region="faces", detector=detector.sha256)
        elif box_of(asked.region) is not None:
            made = replace(made, region="box", box=",".join(map(str, box_of(asked.region) or ())))
        else:
            masks.append(_mask(asked.region))
            made = replace(made, region="mask", mask=masks[-1].sha256)
        passes.append(made)
    return FoundDetails(tuple(passes), detector, tuple(masks))


def _mask(region: str) -> PlannedFile:
    path = Path(region)
    if not path.expanduser().is_file():
        raise UsageError(
            f"`{region}` is not a region, and no mask file has this path",
            hint="a region is `face`, a box X,Y,W,H in pixels, or the path of a mask; other detectors, such as YOLO "
            "files, are not supported", code=Cause.BAD_VALUE,
        )  # fmt: skip
    mask = read_picture(path, is_mask=True)
    if not mask.pixels.any():
        raise UsageError(
            f"the mask `{region}` selects nothing: it is black or transparent everywhere",
            hint="white areas of the mask are rendered again", code=Cause.EMPTY_MASK,
        )  # fmt: skip
    return PlannedFile("mask", path.name, mask.sha256, path.expanduser().absolute())


def _pass(asked: DetailRequest, request: RenderRequest, sampler: str, schedule: Schedule) -> DetailPass:
    """Fill in the settings of a detail pass.

    In the result, a width, height or number of steps of 0, or a guidance scale of -1, means the value of the image
    itself.
    """
    prompts, negatives = texts_of(asked.prompt), texts_of(asked.negative_prompt)
    name, kind = sampler, schedule
    if asked.sampler is not None or asked.schedule is not None:
        given, kind = sampler_names.parse(asked.sampler or sampler, asked.schedule)
        name = given.name
        if kind is Schedule.AUTOMATIC and not given.own_table:
            kind = given.automatic
    width, height = size_of(asked.size) if asked.size else (0, 0)
    return DetailPass(
        "", name, kind.value, asked.steps or 0, -1.0 if asked.guidance_scale is None else asked.guidance_scale, width,
        height, 0.4 if asked.strength is None else float(asked.strength), prompts=prompts, negatives=negatives,
        prompt_rules=_rules(prompts, negatives, request),
        dilate=4 if asked.dilate is None else asked.dilate, x_offset=asked.x_offset or 0, y_offset=asked.y_offset or 0,
        mask_blur=4 if asked.mask_blur is None else asked.mask_blur,
        only_masked=asked.only_masked is not False, padding=32 if asked.padding is None else asked.padding,
        noise_multiplier=1.0 if asked.noise_multiplier is None else float(asked.noise_multiplier),
    )  # fmt: skip


def _rules(prompts: Sequence[str], negatives: Sequence[str], request: RenderRequest) -> str:
    """Return the rules for reading the prompts of a pass. Raises: UsageError: a prompt is invalid or contains a tag."""
    if request.emphasis == "comfyui":
        return ""
    for text in (*prompts, *negatives):
        if emphasis.parse(text).loras:
            raise UsageError(
                "a prompt of a detail pass contains an adapter tag, but detail passes always use the "
                        "adapters of the image",
                hint="remove the tag; to use the adapter, put its tag into the prompt of the image",
                code=Cause.PROMPT_SYNTAX,
            )  # fmt: skip
    wanted = request.prompt_rules or None

    def whole(texts: Sequence[str], usual: str) -> list[str]:
        return [text.replace(WHOLE_PROMPT, usual) or usual for text in texts or [""]]

    pairs = [
        (text, other)
        for text in whole(prompts, request.prompt) for other in whole(negatives, request.negative_prompt)
    ]  # fmt: skip
    return next(filter(None, (prompt_stages.rules_for(*pair, wanted) for pair in pairs)), "")


def detail_files(recipe: Recipe, pictures: Sequence[Path]) -> dict[Sha256, PlannedFile]:
    """Find the mask files of a recipe's detail passes among `pictures`, by SHA-256.

    Raises: UsageError (`no-start-image`): a mask is missing; the message says which.
    """
    wanted = [made.mask for made in recipe.details if made.mask is not None]
    here = {digest_of(path): path for path in pictures} if wanted else {}
    return {
        digest: PlannedFile("mask", (path := _held(digest, here)).name, digest, path.expanduser().absolute())
        for digest in wanted
    }


def as_details(recipe: Recipe, pictures: Mapping[Sha256, Path]) -> tuple[DetailRequest, ...]:
    """Convert a recipe's detail passes back to requests. Raises: UsageError (`no-start-image`): a mask is missing."""
    return tuple(
        made.request(FACE if made.region == "faces" else made.box or str(_held(made.mask, pictures)))
        for made in recipe.details
    )


def _held(digest: Sha256 | None, here: Mapping[Sha256, Path]) -> Path:
    found = here.get(digest) if digest is not None else None
    if found is None:
        raise UsageError(
            f"the mask of a detail pass (sha256 {(digest or '')[:12]}…) is missing",
            hint="pass the original file with --picture FILE", code=Cause.NO_START_IMAGE,
        )  # fmt: skip
    return found


def without_missing_detector(index: Index, request: RenderRequest) -> tuple[RenderRequest, tuple[str, ...]]:
    """Remove the detail passes for faces if the face detector is not in the library. Also returns a notice of this."""
    if not any(asked.region == FACE for asked in request.details):
        return request, ()
    try:
        face_detector(Finder(index, ignore))
    except NotFound as error:
        kept = tuple(asked for asked in request.details if asked.region != FACE)
        return replace(request, details=kept), (f"the faces are not rendered again: {error.message}",)
    return request, ()
