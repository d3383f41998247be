"""Renders plans. A model is loaded once and stays loaded as long as consecutive plans need it.

If the next plan differs only in its adapters, the original weights are restored bit for bit before the new adapters are
merged. `Engine` contains what is reused between plans; a `Job` contains everything that belongs to a single plan.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from civman.diffusion.control_models import ControlModel, load_control
from civman.diffusion.denoiser import Prompts
from civman.diffusion.detail_passes import DetailInputs, redraw_details, region_recipe
from civman.diffusion.environment import choose_dtype, environment, threads
from civman.diffusion.face_restoration import load_face_model
from civman.diffusion.larger_input import with_larger_image
from civman.diffusion.pixels import Picture
from civman.diffusion.plain_resizing import enlarged_in_tiles
from civman.diffusion.reference_pictures import Reference
from civman.diffusion.run_recipe import Inputs, iterate, job_of, run_in_slots
from civman.diffusion.second_pass import Upscale
from civman.diffusion.start_picture import cropped_to_region
from civman.diffusion.tiled_redraw import redraw_in_tiles
from civman.diffusion.ultimate_upscale import ultimate_upscale
from civman.diffusion.unet_calls import Calls
from civman.diffusion.upscaler_models import AnyUpscaler, load_upscaler
from civman.diffusion.upscaler_tiles import enlarge
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.details import DetailPass
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Hires, Recipe
from civman.domain.recipes.record import Environment, Record
from civman.domain.recipes.stages import Stage
from civman.planning.input_pictures import channel_of, read_picture
from civman.planning.plan_types import Applied, Planned
from civman.planning.recipe_sources import pixel_sha256
from civman.planning.slot_groups import slot_groups
from civman.rendering.encode_references import encode_edit_images, encode_references
from civman.rendering.engine import Engine
from civman.rendering.finish_pictures import Finisher
from civman.rendering.slot_progress import SlotProgress
from civman.rendering.stage_models import StageModels
from civman.rendering.warm_engines import WARM, WarmEngines
from civman.rendering.weight_files import with_safe_copies


@dataclass(frozen=True, slots=True)
class Drawn:
    """One rendered picture, (H, W, 3) uint8, with its record and a report on how the adapters were applied."""

    pixels: Any = field(repr=False, compare=False)
    record: Record
    applied: tuple[Applied, ...]
    place: tuple[int, int] = (0, 0)
    """The position of the image's plan among all rendered plans, and the position of the image in that plan, from 0."""


@dataclass(frozen=True, slots=True)
class Job:
    """One plan that is ready to be rendered, with everything that its batches share."""

    planned: Planned
    models: StageModels = field(repr=False)
    inputs: Inputs = field(repr=False)
    environment: Environment
    upscaler: AnyUpscaler | None = field(default=None, repr=False)
    finisher: Finisher | None = field(default=None, repr=False)
    controlnets: tuple[ControlModel, ...] = field(default=(), repr=False)
    references: tuple[Reference, ...] = field(default=(), repr=False)
    details: DetailInputs | None = field(default=None, repr=False)
    edit_images: tuple[Any, ...] = field(default=(), repr=False)
    """The latents of the reference images that the model reads itself."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how these images were encoded."""

    def batch(self, first: int, count: int) -> Recipe:
        """Return a recipe that reproduces exactly one batch: the `count` images from number `first` on."""
        recipe = self.planned.recipe
        return replace(recipe, seed=recipe.seed + first, count=count, batch_size=count)

    def options(self, on_event: OnEvent) -> dict[str, Any]:
        """Return the arguments for `run_recipe.job_of`, except the recipe and its models."""
        return {
            "inputs": with_larger_image(self.inputs, self.planned.recipe, self.upscaler, on_event),
            "on_event": on_event, "keeps_noise": self.planned.keeps_noise,
            "restore": self.finisher.restorer if self.finisher else None,
            "upscale": _upscale(self.upscaler, self.planned.recipe.hires), "controlnets": self.controlnets,
            "references": self.references, "edit_images": self.edit_images,
        }  # fmt: skip

    def finished(self, recipe: Recipe, picture: Picture, place: tuple[int, int], on_event: OnEvent) -> Drawn:
        """Restore the faces in an image and enlarge it if the plan requests it, and return it with its record.

        `recipe`: a recipe that reproduces the image.
        """
        pixels, digest, planned = picture.pixels, Sha256(picture.sha256), self.planned
        if self.finisher is not None:
            pixels = self.finisher.finish(pixels, place[1] + 1, on_event)
            digest = pixel_sha256(pixels)
        record = Record(
            recipe, picture.seed, digest, self.environment, planned.names,
            (*self.models.notes, *self.notes, *picture.notes), planned.parent, planned.typed,
            planned.licence.words if planned.licence else (),
        )  # fmt: skip
        return Drawn(pixels, record, self.models.applied, place)


def draw(
    plans: Iterable[Planned], machine: Machine, on_event: OnEvent = ignore, *, warm: WarmEngines | None = None
) -> Iterator[Drawn]:
    """Render all plans, yielding each image as soon as it is finished.

    Images come in the order of the plans; only images in slots come in the order of their completion. `warm`: the
    models that stay loaded; None uses those of the current context (`WARM`), if there are any.

    Raises: CannotRender: not enough memory, or the output is not a valid image. Incompatible: an adapter or embedding
    does not fit the model.
    """
    warm, plans = warm or WARM.get() or WarmEngines(0), list(plans)
    progress = SlotProgress(sum(planned.recipe.count for planned in plans), warm.telling(on_event))
    with threads(machine.threads):
        for places in slot_groups(plans):
            group = {place: with_safe_copies(plans[place]) for place in places}
            # keep no reference to a job, so that the memory of its model is freed before the next model is loaded
            if plans[places[0]].recipe.slots:
                yield from _run_in_slots(group, lambda plan: _prepared(plan, machine, warm, on_event), progress)
            else:
                job = _prepared(group[places[0]], machine, warm, on_event)
                yield from run(job, warm.telling(on_event), places[0])
                del job


def _prepared(planned: Planned, machine: Machine, warm: WarmEngines, on_event: OnEvent) -> Job:
    return prepare(StageModels(planned, machine, warm, on_event))


def prepare(models: StageModels) -> Job:
    """Load the first model of a plan, merge its adapters and encode its prompts. Raises: the errors of `draw`."""
    models(Stage.FIRST)
    planned, engine = models.planned, models.engine
    return Job(
        planned, models, read_inputs(planned), environment(engine.device, engine.compiled).to_facts(),
        _upscaler(engine, planned),
        Finisher.of(planned, engine.device), _controlnets(engine, planned), encode_references(engine, planned),
        _details(models), *encode_edit_images(engine, planned),
    )  # fmt: skip


def run(job: Job, on_event: OnEvent = ignore, place: int = 0) -> Iterator[Drawn]:
    """Render a job, yielding its images. `place`: the position of the job's plan. Raises: the errors of `draw`."""
    recipe, done, given = job.planned.recipe, 0, job.options(on_event)
    if recipe.enlarged_input is not None:
        for name in ("upscale", "controlnets"):
            del given[name]
        redraw = redraw_in_tiles if recipe.tiled is not None else ultimate_upscale
        batches = redraw(recipe, job.models, upscaler=job.upscaler, **given)
    else:
        batches = iterate(recipe, job.models, **given)
    if job.details is not None:
        batches = redraw_details(
            recipe, batches, job.models, job.details, on_event, keeps_noise=job.planned.keeps_noise
        )
    for batch in batches:
        recipe = job.batch(done, len(batch))
        for number, picture in enumerate(batch, done):
            yield job.finished(recipe, picture, (place, number), on_event)
        done += len(batch)


def _run_in_slots(
    plans: Mapping[int, Planned], prepared: Callable[[Planned], Job], progress: SlotProgress
) -> Iterator[Drawn]:
    """Render a group of plans (see `slot_groups`) side by side, yielding images in the order of their completion.

    `plans`: maps the position of each plan, as in `Drawn.place`, to the plan.
    """

    def calls(job: Job, place: tuple[int, int]) -> Calls[Drawn]:
        recipe = job.batch(place[1], 1)
        one = job_of(recipe, job.models, **job.options(progress.of(place)))
        (picture,) = yield from one.batch(0, [recipe.seed])
        return job.finished(recipe, picture, place, ignore)

    def images() -> Iterator[Calls[Drawn]]:
        for number, planned in plans.items():
            job = first if number == start else prepared(planned)
            for image in range(planned.recipe.count):
                yield calls(job, (number, image))

    start, *_ = plans
    first = prepared(plans[start])
    recipe, shared = first.planned.recipe, first.models(Stage.FIRST)
    for drawn in run_in_slots(recipe, shared.model, images(), hypernetworks=shared.hypernetworks):
        progress.finish(drawn.place)
        yield drawn


def _controlnets(engine: Engine, planned: Planned) -> tuple[ControlModel, ...]:
    """Load the plan's control models, each file once, in the dtype in which the UNet computes."""
    recipe = planned.recipe
    loaded = {
        digest: load_control(
            planned.path(digest), engine.model, device=engine.device,
            dtype=choose_dtype(engine.device, recipe.precision),
        )
        for digest in recipe.digests["controlnet"]
    }  # fmt: skip
    return tuple(loaded[use.sha256] for use in recipe.controls)


def _details(models: StageModels) -> DetailInputs | None:
    """Encode the prompts of the detail passes, and load their face detector and masks; None without detail passes."""
    planned, recipe = models.planned, models.planned.recipe
    if not recipe.details:
        return None

    def prompt(made: DetailPass, number: int) -> Prompts | None:
        if made.texts(number, "", "") is None:
            return None
        one = region_recipe(recipe, made, recipe.seed, number, recipe.drawn_size)
        return models.encoded(one)

    detector = next((made.detector for made in recipe.details if made.detector), None)
    return DetailInputs(
        [[prompt(made, number) for number in range(made.different_texts)] for made in recipe.details],
        {
            made.mask: read_picture(planned.path(made.mask), is_mask=True, rules=recipe.rules).pixels
            for made in recipe.details if made.mask
        },
        load_face_model(planned.path(detector), "retinaface", models.engine.device) if detector else None,
    )  # fmt: skip


def _upscaler(engine: Engine, planned: Planned) -> AnyUpscaler | None:
    """Load the upscaler model for the input image or for the second pass; None if the plan needs none."""
    recipe = planned.recipe
    models = [each.model for each in (recipe.hires, recipe.enlarged_input, recipe.input_upscale) if each and each.model]
    return load_upscaler(planned.path(models[0])).to(engine.device) if models else None


def _upscale(model: AnyUpscaler | None, hires: Hires | None) -> Upscale | None:
    if model is not None and hires is not None and hires.resize:
        return lambda pixels: enlarged_in_tiles(pixels, model)
    return None if model is None else lambda image, width, height: enlarge(image, model, width, height)


def read_inputs(planned: Planned) -> Inputs:
    """Read the pixels of the plan's input image, mask and control images."""
    recipe, data = planned.recipe, {file.sha256: file.data for file in planned.files}
    start = recipe.start
    controls = [read_picture(planned.path(use.picture), data=data[use.picture]).pixels for use in recipe.controls]
    if start is None:
        return Inputs(controls=tuple(controls))
    mask = None
    if start.mask_sha256:
        mask = read_picture(
            planned.path(start.mask_sha256), is_mask=True, rules=recipe.rules, channel=start.mask_channel
        ).pixels
    image = read_picture(planned.path(start.sha256), channel=channel_of(start.resize_mode))
    larger = recipe.input_upscale
    whole = larger.final_size if larger else (image.width, image.height)
    for number, use in enumerate(recipe.controls):
        if use.crops and mask is not None:
            mode = "resize and fill" if use.resize_mode == "resize and pad" else use.resize_mode
            controls[number] = cropped_to_region(
                controls[number], mode, start, mask, whole, (recipe.width, recipe.height)
            )
    return Inputs(image.pixels, mask, tuple(controls))
