"""Renders plans. A model is loaded once and reused for as long as consecutive plans need the same one.

If the next plan differs only in its adapters, the original weights are restored bit for bit before the new adapters are
merged. `Engine` contains what is reused between plans; a `Job` is a value with what belongs to one plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from civman.diffusion.control_models import ControlModel, load_control
from civman.diffusion.environment import choose_dtype, environment, threads
from civman.diffusion.hypernetworks import Hypernetwork, load_hypernetwork
from civman.diffusion.plain_resizing import enlarged_in_tiles
from civman.diffusion.run_recipe import Inputs, iterate
from civman.diffusion.second_pass import Upscale
from civman.diffusion.tiled_redraw import redraw_in_tiles
from civman.diffusion.ultimate_upscale import ultimate_upscale
from civman.diffusion.upscaler_models import AnyUpscaler, load_upscaler
from civman.diffusion.upscaler_tiles import enlarge
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Hires, Recipe
from civman.domain.recipes.record import Environment, Record
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import Applied, Planned
from civman.planning.recipe_sources import pixel_sha256
from civman.rendering.encode_prompts import EncodedPrompts, FlowTextEncoders, TextEncoders, encode_all
from civman.rendering.engine import Engine
from civman.rendering.finish_pictures import Finisher
from civman.rendering.warm_engines import WARM, WarmEngines
from civman.rendering.weight_files import with_safe_copies


@dataclass(frozen=True, slots=True)
class Drawn:
    """One rendered picture, (H, W, 3) uint8, with its record and a report on the adapters that were applied."""

    pixels: Any = field(repr=False, compare=False)
    record: Record
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One plan that is ready to be rendered: everything that its batches share."""

    planned: Planned
    prompts: EncodedPrompts = field(repr=False)
    inputs: Inputs = field(repr=False)
    applied: tuple[Applied, ...]
    environment: Environment
    model_notes: tuple[str, ...]
    upscaler: AnyUpscaler | None = field(default=None, repr=False)
    hypernetworks: tuple[tuple[Hypernetwork, float], ...] = field(default=(), repr=False)
    finisher: Finisher | None = field(default=None, repr=False)
    controlnets: tuple[ControlModel, ...] = field(default=(), repr=False)

    def batch(self, first: int, count: int) -> Recipe:
        """The recipe of one batch: it reproduces the `count` images from number `first` on, and no others."""
        recipe = self.planned.recipe
        return replace(recipe, seed=recipe.seed + first, count=count, batch_size=count)


def draw(plans: Iterable[Planned], machine: Machine, on_event: OnEvent = ignore) -> Iterator[Drawn]:
    """Render all plans in order, yielding each image as it is finished.

    Raises: CannotRender: not enough memory, or the output is not a valid image. Incompatible: an adapter or embedding
        does not fit the model.
    """
    warm = WARM.get() or WarmEngines(0)
    with threads(machine.threads):
        for planned in map(with_safe_copies, plans):
            engine = warm.engine(planned, machine, on_event)
            try:
                job = prepare(engine, planned)
            except BaseException:
                warm.drop(engine)  # its weights may be half merged
                raise
            yield from run(engine, job, warm.telling(on_event))
            del engine, job  # so that a model which is released has its memory freed before the next one is loaded


def prepare(engine: Engine, planned: Planned) -> Job:
    """Merge the plan's adapters into the engine's model and encode its prompts. Raises: the errors of `draw`."""
    engine.merge(planned)
    texts = FlowTextEncoders(engine.model) if planned.recipe.flow else TextEncoders.of(engine.encoders)
    return Job(
        planned,
        encode_all(texts, planned),
        read_inputs(planned),
        engine.merged.applied(),
        environment(engine.device).to_facts(),
        (*engine.model.notes, *texts.notes),
        _upscaler(engine, planned),
        tuple(
            (load_hypernetwork(planned.path(use.sha256), planned.name(use.sha256)), use.strength)
            for use in planned.recipe.hypernetworks
        ),
        Finisher.of(planned, engine.device),
        _controlnets(engine, planned),
    )


def run(engine: Engine, job: Job, on_event: OnEvent = ignore) -> Iterator[Drawn]:
    """Render a job, which must have been prepared with `engine` in its current state. Raises: CannotRender."""
    planned, done = job.planned, 0
    given: dict[str, Any] = {
        "inputs": job.inputs, "on_event": on_event, "keeps_noise": planned.keeps_noise,
        "hypernetworks": job.hypernetworks, "restore": job.finisher.restorer if job.finisher else None,
        "set_scales": engine.set_scales,
    }  # fmt: skip
    if planned.recipe.enlarged_input is not None:
        redraw = redraw_in_tiles if planned.recipe.tiled is not None else ultimate_upscale
        batches = redraw(planned.recipe, engine.model, job.prompts.first, upscaler=job.upscaler, **given)
    else:
        batches = iterate(
            planned.recipe, engine.model, job.prompts.first, hires_prompt=job.prompts.second,
            upscale=_upscale(job.upscaler, planned.recipe.hires), controlnets=job.controlnets, **given,
        )  # fmt: skip
    for batch in batches:
        recipe = job.batch(done, len(batch))
        for number, picture in enumerate(batch, done + 1):
            pixels, digest = picture.pixels, Sha256(picture.sha256)
            if job.finisher is not None:
                pixels = job.finisher.finish(pixels, number, on_event)
                digest = pixel_sha256(pixels)
            record = Record(
                recipe, picture.seed, digest, job.environment, planned.names,
                (*job.model_notes, *picture.notes), planned.parent, planned.typed,
                planned.licence.words if planned.licence else (),
            )  # fmt: skip
            yield Drawn(pixels, record, job.applied)
        done += len(batch)


def _controlnets(engine: Engine, planned: Planned) -> tuple[ControlModel, ...]:
    """Load the plan's control models in the dtype of the UNet's computations; a file that is used twice, once."""
    recipe = planned.recipe
    loaded = {
        digest: load_control(
            planned.path(digest), engine.model, device=engine.device,
            dtype=choose_dtype(engine.device, recipe.precision),
        )
        for digest in recipe.digests["controlnet"]
    }  # fmt: skip
    return tuple(loaded[use.sha256] for use in recipe.controls)


def _upscaler(engine: Engine, planned: Planned) -> AnyUpscaler | None:
    """Load the model that enlarges an image before it is drawn again: in the second pass, or in tiles."""
    before = planned.recipe.hires or planned.recipe.enlarged_input
    if before is None or before.model is None:
        return None
    return load_upscaler(planned.path(before.model)).to(engine.device)


def _upscale(model: AnyUpscaler | None, hires: Hires | None) -> Upscale | None:
    if model is not None and hires is not None and hires.resize:
        return lambda pixels: enlarged_in_tiles(pixels, model)
    return None if model is None else lambda image, width, height: enlarge(image, model, width, height)


def read_inputs(planned: Planned) -> Inputs:
    """Read the pixels of the start picture and its mask, if the plan has them."""
    data = {file.sha256: file.data for file in planned.files}
    controls = tuple(
        read_picture(planned.path(use.picture), data=data[use.picture]).pixels for use in planned.recipe.controls
    )
    start = planned.recipe.start
    if start is None:
        return Inputs(controls=controls)
    mask = None
    if start.mask_sha256:
        mask = read_picture(planned.path(start.mask_sha256), is_mask=True, rules=planned.recipe.rules).pixels
    return Inputs(read_picture(planned.path(start.sha256)).pixels, mask, controls)
