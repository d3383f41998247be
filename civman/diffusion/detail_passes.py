"""Redraws regions of finished images, as ADetailer does: inpaints each region alone and pastes it into the image.

Source: Bing-su/adetailer (the rules, not the code). Each region's mask is moved by an offset, then dilated with a
square; the region is redrawn by A1111's img2img with masked content "original". All regions of a pass are found in the
image as it was before the pass; each one is then redrawn in the result of the previous one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from civman.diffusion.denoiser import Prompts
from civman.diffusion.face_detector import FaceDetector
from civman.diffusion.face_restoration import face_boxes
from civman.diffusion.pixels import Picture, Pixels, picture_of, resized
from civman.diffusion.recipe_job import Inputs
from civman.diffusion.run_recipe import iterate
from civman.diffusion.stage_model import Stages
from civman.domain.digests import Sha256
from civman.domain.events import Event, OnEvent, Step
from civman.domain.plurals import counted
from civman.domain.recipes.details import DetailPass
from civman.domain.recipes.recipe import Recipe, StartImage

_UNNAMED = Sha256("0" * 64)
"""A placeholder for the SHA-256 of an image that exists only in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class DetailInputs:
    """What the detail passes of a recipe need besides its model.

    `prompts`: for each pass, the conditioning of each region that has a prompt of its own; None for a region that is
    left unchanged.
    """

    prompts: Sequence[Sequence[Prompts | None]]
    masks: Mapping[Sha256, Pixels]
    detector: FaceDetector | None = None


def redraw_details(
    recipe: Recipe, batches: Iterator[list[Picture]], stages: Stages, inputs: DetailInputs, on_event: OnEvent,
    **options: Any,
) -> Iterator[list[Picture]]:  # fmt: skip
    """Apply the recipe's detail passes to each image in `batches`, with the first pass's model, as in A1111.

    `stages` and `options` are as in `run_recipe.iterate`.
    """
    drawn = 0
    for batch in batches:
        told = _Told(on_event, drawn + 1, len(batch), recipe.count)
        done = []
        for picture in batch:
            for made, prompts in zip(recipe.details, inputs.prompts, strict=True):
                picture = _redrawn(recipe, made, picture, stages, prompts, inputs, told, options)
            done.append(picture)
        drawn += len(batch)
        yield done


def _redrawn(
    recipe: Recipe, made: DetailPass, picture: Picture, stages: Stages, prompts: Sequence[Prompts | None],
    inputs: DetailInputs, on_event: OnEvent, options: Mapping[str, Any],
) -> Picture:  # fmt: skip
    """Apply one detail pass to an image."""
    notes, boxes = dict.fromkeys(picture.notes), []
    pixels: Any = picture.pixels
    for number, mask in enumerate(_masks(made, pixels, inputs)):
        prompt = prompts[min(number, len(prompts) - 1)]
        if prompt is None:
            continue
        one = region_recipe(recipe, made, picture.seed, number, (pixels.shape[1], pixels.shape[0]))
        given = Inputs(pixels, mask)
        [[drawn]] = iterate(one, _first_with(stages, prompt), inputs=given, on_event=on_event, **options)
        notes |= dict.fromkeys(drawn.notes)
        pixels = drawn.pixels
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        left, top = int(columns[0]), int(rows[0])
        boxes.append(f"{left},{top},{int(columns[-1]) - left + 1},{int(rows[-1]) - top + 1}")
    listed = f": {'; '.join(boxes)}" if boxes else ""
    note = f"detail pass: {counted(len(boxes), 'region')} of `{made.region}` redrawn{listed}"
    return picture_of(
        np.ascontiguousarray(pixels), seed=picture.seed, decoded_in=picture.decoded_in, notes=(*notes, note)
    )


def _first_with(stages: Stages, prompt: Prompts) -> Stages:
    """Return a copy of `stages` with the same models, but with `prompt` instead of the stages' own prompts."""
    return lambda stage: replace(stages(stage), prompt=prompt)


def region_recipe(recipe: Recipe, made: DetailPass, seed: int, number: int, image_size: tuple[int, int]) -> Recipe:
    """Return the recipe (img2img with a mask) that redraws region `number` of the image with the seed `seed`."""
    width, height = (made.width, made.height) if made.only_masked else image_size
    varied = made.seed_of(recipe.variation_seed, number) if recipe.variation_strength else recipe.variation_seed
    prompt, negative = made.texts(number, recipe.prompt, recipe.negative_prompt) or ("", "")
    return replace(
        recipe, details=(), refiner=None, slots=0, references=(), edit_images=(), controls=(), files=(),
        tiled_diffusion=None, input_upscale=None, hires=None, upscale=None, faces=None, noise_slice="", told_sizes="",
        prompt_parts=(), negative_parts=(), prompt=prompt, negative_prompt=negative, prompt_rules=made.prompt_rules,
        loras=tuple(replace(use, hires_keyframes="") for use in recipe.loras), count=1, batch_size=1,
        seed=made.seed_of(seed, number), variation_seed=varied, width=width, height=height, steps=made.steps,
        guidance_scale=made.guidance_scale, sampler=made.sampler, schedule=made.schedule,
        sampling=replace(recipe.sampling, sigmas=()),
        start=StartImage(
            _UNNAMED, made.strength, _UNNAMED, made.mask_blur, only_masked=made.only_masked, padding=made.padding,
            noise_multiplier=made.noise_multiplier,
        ),
    )  # fmt: skip


def _masks(made: DetailPass, pixels: Pixels, inputs: DetailInputs) -> list[Pixels]:
    """Return the masks of the regions in an image, leaving out masks without any white pixel."""
    height, width = pixels.shape[:2]
    if made.mask is not None:
        masks = [resized(inputs.masks[made.mask], width, height)]
    elif inputs.detector is not None and made.detector is not None:
        masks = [rectangle(box, (width, height)) for box in face_boxes(pixels, inputs.detector)]
    else:
        masks = [rectangle(made.corners, (width, height))]
    moved = (np.roll(mask, (-made.y_offset, made.x_offset), (0, 1)) for mask in masks)
    return [grown for mask in moved if (grown := dilated(mask, made.dilate)).any()]


def rectangle(box: Sequence[float], size: tuple[int, int]) -> Pixels:
    """Return a mask of this size (width, height) that is white inside a box.

    `box`: the box's left, top, right and bottom edges in pixels; the pixels on the edges belong to the box.
    """
    from PIL import Image, ImageDraw

    mask = Image.new("L", size, 0)
    left, top, right, bottom = box
    ImageDraw.Draw(mask).rectangle((left, top, max(left, right), max(top, bottom)), fill=255)
    return np.asarray(mask)


def dilated(mask: Pixels, side: int) -> Pixels:
    """Dilate the white area of a mask with a square of this side or, if `side` is negative, erode it.

    The square's centre is the pixel with index |side| // 2 in each direction, as in OpenCV.
    """
    count, pick = abs(side), np.max if side > 0 else np.min
    before = count // 2
    for axis in (0, 1):
        if count > 1:
            wide = [(0, 0), (0, 0)]
            wide[axis] = (before, count - 1 - before)
            padded = np.pad(mask, wide, constant_values=0 if side > 0 else 255)
            mask = pick(np.lib.stride_tricks.sliding_window_view(padded, count, axis), axis=-1)
    return np.ascontiguousarray(mask)


@dataclass(slots=True)
class _Told:
    """Reports the steps for all regions of a batch's images as one sequence of steps.

    The number of regions is known only when the last one is reached, so the reported total grows.
    """

    on_event: OnEvent
    first: int
    pictures: int
    count: int
    before: int = 0
    """The total number of steps of all earlier regions."""

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Step):
            self.on_event(event)
            return
        self.on_event(replace(
            event, step=self.before + event.step, steps=self.before + event.steps, first=self.first,
            pictures=self.pictures, count=self.count, stage="redraw", preview=None,
        ))  # fmt: skip
        if event.step == event.steps:
            self.before += event.steps
