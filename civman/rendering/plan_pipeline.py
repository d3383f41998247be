"""Creates diffusers pipelines for plans, and computes the prompt embeddings and the arguments to call them with."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from civman.diffusion import pipeline_call
from civman.diffusion.denoiser import Conditioning
from civman.diffusion.diffusers_pipeline import pipeline_of
from civman.diffusion.memory_plan import MemoryPlan
from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraUse
from civman.errors import CannotRender, Cause
from civman.planning.plan_types import Planned
from civman.rendering.draw import read_inputs
from civman.rendering.encode_prompts import TextEncoders, encode_prompts
from civman.rendering.engine import ENCODERS, Engine, ModelIdentity
from civman.rendering.weight_files import with_safe_copies


@dataclass(frozen=True, slots=True)
class Origin:
    """The model and adapters from which a pipeline was made.

    It is stored as an attribute of the UNet, which several pipelines may share.
    """

    identity: ModelIdentity
    loras: tuple[LoraUse, ...]

    @classmethod
    def of(cls, planned: Planned) -> "Origin":
        """Return the model and adapters of a plan, to be compared with those of a pipeline."""
        return cls(ModelIdentity.of(planned.recipe), planned.recipe.loras)


_ORIGIN = "civman_origin"


def pipeline(planned: Planned, kind: str | None, *, machine: Machine, on_event: OnEvent = ignore) -> Any:
    """Create a diffusers pipeline with the plan's model, adapters and sampler.

    The adapters are merged; the sampler becomes the pipeline's scheduler. `kind`: "txt2img", "img2img" or "inpaint";
    None chooses the kind that the plan needs.

    Raises: CannotRender: a pipeline cannot render the plan. UsageError: `kind` is unknown. The errors of `draw`.
    """
    recipe = planned.recipe
    pipeline_call.require_drawable(recipe)
    planned = with_safe_copies(planned)
    engine = Engine(planned, machine, on_event, for_diffusers=True)
    model = engine.model
    if kind is None:
        pipeline_call.require_own_kind(recipe, is_xl=model.family.is_xl)
        kind = pipeline_call.kind_of(recipe)
    pipeline_call.require_inputs_of(model.unet, kind)
    # imported here, because the module imports diffusers' schedulers, which takes up to 2 s
    from civman.diffusion.pipeline_scheduler import PipelineScheduler

    text = TextEncoders.of(engine.encoders)
    names = [name.replace("text_encoder", "tokenizer") for name in ENCODERS if name in model.components]
    with TemporaryDirectory() as folder:
        tokenizers = {
            name: transformers_tokenizer(Path(folder), each.padding)
            for name, each in zip(names, text.tokenizers, strict=True)
        }
    made = pipeline_of(model, kind, tokenizers=tokenizers)
    made.scheduler = PipelineScheduler.of_recipe(recipe, is_xl=model.family.is_xl)
    if engine.memory_plan is MemoryPlan.LAYER_BY_LAYER:
        made.save_pretrained = _refuse_to_save
    setattr(made.unet, _ORIGIN, Origin.of(planned))
    return made


def _refuse_to_save(*_arguments: Any, **_named: Any) -> None:
    raise CannotRender(
        "the pipeline reads its weights from the checkpoint layer by layer, so it cannot be saved",
        hint="create the pipeline on a device with enough memory for the whole model, and without `low_vram`",
        code=Cause.NO_PIPELINE,
    )


def embeddings(planned: Planned, pipe: Any | None, *, machine: Machine, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Encode the plan's prompts as keyword arguments for a pipeline's call (`pipeline_call.embeddings_of`).

    Without `pipe`, the plan's model is loaded to encode the prompts. Raises: CannotRender: `pipe` has another model or
    other adapters. Incompatible: an embedding or adapter does not fit the model.
    """
    return pipeline_call.embeddings_of(_conditioning(planned, pipe, machine, on_event))


def call(planned: Planned, pipe: Any) -> dict[str, Any]:
    """Return the keyword arguments with which a call of `pipe` renders the plan's images.

    Raises: CannotRender: diffusers' pipelines cannot render the plan, or `pipe` was not created for the plan by
    `pipeline`. Incompatible: an embedding does not fit the model.
    """
    _require_origin(planned, pipe)
    pipeline_call.require_drawable(planned.recipe)
    _require_scheduler(planned, pipe)
    prompt = encode_prompts(TextEncoders.of(_encoders(pipe)), with_safe_copies(planned))
    return pipeline_call.call_of(planned.recipe, pipe, prompt, read_inputs(planned))


def _conditioning(planned: Planned, pipe: Any | None, machine: Machine, on_event: OnEvent) -> Conditioning:
    if planned.recipe.prompt_rules:
        raise CannotRender(
            "the plan's prompts change during the steps or are combined with AND, so a single set "
            "of embeddings cannot represent them",
            hint="render the plan with `library.render` instead", code=Cause.NO_PIPELINE,
        )  # fmt: skip
    planned = with_safe_copies(planned)
    if pipe is None:
        return encode_prompts(TextEncoders.of(Engine(planned, machine, on_event).encoders), planned)
    _require_origin(planned, pipe)
    return encode_prompts(TextEncoders.of(_encoders(pipe)), planned)


def _encoders(pipe: Any) -> list[Any]:
    found = [getattr(pipe, name, None) for name in ENCODERS]
    return [encoder for encoder in found if encoder is not None]


def _require_origin(planned: Planned, pipe: Any) -> None:
    origin = getattr(pipe.unet, _ORIGIN, None)
    if origin == Origin.of(planned):
        return
    raise CannotRender(
        "this pipeline cannot render the plan, because it was made for another checkpoint, VAE or set of LoRAs"
        if origin
        else "this pipeline cannot render the plan, because it was not made by `library.pipeline`",
        hint="create a pipeline for this plan with `library.pipeline(plan)`",
        code=Cause.NO_PIPELINE,
    )


def _require_scheduler(planned: Planned, pipe: Any) -> None:
    # imported here, because the module imports diffusers' schedulers, which takes up to 2 s
    from civman.diffusion.pipeline_scheduler import PipelineScheduler

    wanted = PipelineScheduler.of_recipe(planned.recipe, is_xl=hasattr(pipe, "text_encoder_2"))
    if isinstance(pipe.scheduler, PipelineScheduler) and pipe.scheduler.settings == wanted.settings:
        return
    raise CannotRender(
        "the pipeline's scheduler is not the plan's sampler, so the image would differ",
        hint="create a new pipeline with `library.pipeline(plan)` and render before you change its scheduler; or, to "
        "use your own scheduler, call the pipeline yourself with `library.embeddings(plan, pipe)`",
        code=Cause.NO_PIPELINE,
    )  # fmt: skip
