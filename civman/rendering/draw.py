"""Renders plans. A model is loaded once and reused for as long as consecutive plans need the same one.

If the next plan differs only in its adapters, the original weights are restored bit for bit before the new adapters are
merged. `Engine` contains what is reused between plans; a `Job` is a value with what belongs to one plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.diffusers_pipeline import PipelineScheduler, pipeline_of
from civman.diffusion.environment import environment, threads
from civman.diffusion.run_recipe import Inputs, iterate
from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.record import Environment, Record
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import Applied, Planned, Rendering
from civman.rendering.encode_prompts import encode_prompts
from civman.rendering.engine import ENCODERS, Engine
from civman.rendering.save_pictures import Place


@dataclass(frozen=True, slots=True)
class Drawn:
    """One rendered picture, (H, W, 3) uint8, with its record and a report on the adapters that were applied."""

    pixels: Any = field(repr=False, compare=False)
    record: Record
    applied: tuple[Applied, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One plan that is ready to be rendered: what all its batches share, and nothing of other plans."""

    planned: Planned
    conditioning: Conditioning = field(repr=False)
    inputs: Inputs = field(repr=False)
    applied: tuple[Applied, ...]
    environment: Environment
    model_notes: tuple[str, ...]

    def batch(self, first: int, count: int) -> Recipe:
        """The recipe of one batch: it reproduces the `count` images from number `first` on, and no others."""
        recipe = self.planned.recipe
        return replace(recipe, seed=recipe.seed + first, count=count, batch_size=count)


def draw(plans: Iterable[Planned], machine: Machine, on_event: OnEvent = ignore) -> Iterator[Drawn]:
    """Render all plans in order, yielding each image as it is finished.

    Raises: CannotRender: not enough memory, or the output is not a valid image. Incompatible: an adapter or embedding
        does not fit the model.
    """
    engine: Engine | None = None
    with threads(machine.threads):
        for planned in plans:
            if engine is None or not engine.serves(planned):
                engine = None  # release the old model's memory before the new one is loaded
                engine = Engine(planned, machine, on_event)
            yield from run(engine, prepare(engine, planned), on_event)


def prepare(engine: Engine, planned: Planned) -> Job:
    """Merge the plan's adapters into the engine's model and encode its prompts. Raises: what `draw` raises."""
    engine.merge(planned)
    return Job(
        planned,
        encode_prompts(engine, planned),
        _inputs(planned),
        engine.merged.applied(),
        environment(engine.device).to_facts(),
        engine.model.notes,
    )


def run(engine: Engine, job: Job, on_event: OnEvent = ignore) -> Iterator[Drawn]:
    """Render a job, which must have been prepared with `engine` in its current state. Raises: CannotRender."""
    planned, done = job.planned, 0
    batches = iterate(
        planned.recipe, engine.model, job.conditioning, inputs=job.inputs, on_event=on_event,
        keeps_noise=planned.keeps_noise,
    )  # fmt: skip
    for batch in batches:
        recipe = job.batch(done, len(batch))
        for picture in batch:
            record = Record(
                recipe, picture.seed, Sha256(picture.sha256), job.environment, planned.names,
                (*job.model_notes, *picture.notes), planned.parent, planned.typed,
            )  # fmt: skip
            yield Drawn(picture.pixels, record, job.applied)
        done += len(batch)


def make(
    plans: Iterable[Planned], place: Place, *, machine: Machine, on_event: OnEvent = ignore
) -> Iterator[Rendering]:
    """Render all plans and save each image in `place` as soon as it is finished.

    Raises: what `draw` raises; UsageError, StoreError: an image cannot be saved.
    """
    for drawn in draw(plans, machine, on_event):
        yield Rendering(place.keep(drawn.pixels, drawn.record), drawn.record, drawn.applied)


def pipeline(planned: Planned, kind: str, *, machine: Machine, on_event: OnEvent = ignore) -> Any:
    """A diffusers pipeline ("txt2img", "img2img" or "inpaint") with the plan's model and its adapters merged.

    The plan's sampler and schedule are set; prompts, seed, size and everything else are to be passed to the pipeline's
    call.

    Raises: CannotRender, Incompatible: as in `draw`. UsageError: `kind` is unknown.
    """
    engine, recipe = Engine(planned, machine, on_event), planned.recipe
    model = engine.model
    names = [name.replace("text_encoder", "tokenizer") for name in ENCODERS if name in model.components]
    with TemporaryDirectory() as folder:
        tokenizers = {
            name: transformers_tokenizer(Path(folder), each.padding)
            for name, each in zip(names, engine.tokenizers, strict=True)
        }
    made = pipeline_of(model, kind, tokenizers=tokenizers)
    made.scheduler = PipelineScheduler(
        recipe.sampler, recipe.schedule, prediction=model.prediction, is_zero_snr=model.is_zero_snr,
        is_xl=model.family.is_xl, sampling=recipe.sampling, rules=recipe.rules,
    )  # fmt: skip
    return made


def _inputs(planned: Planned) -> Inputs:
    start = planned.recipe.start
    if start is None:
        return Inputs()
    mask = None
    if start.mask_sha256:
        mask = read_picture(planned.path(start.mask_sha256), is_mask=True, rules=planned.recipe.rules).pixels
    return Inputs(read_picture(planned.path(start.sha256)).pixels, mask)
