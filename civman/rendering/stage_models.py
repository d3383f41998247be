"""Loads the models that a plan needs, one after another: one for each stage with its own checkpoint or adapters."""

from collections.abc import Iterator
from dataclasses import replace

from civman.diffusion.denoiser import Prompts
from civman.diffusion.hypernetworks import Hypernetwork, load_hypernetwork
from civman.diffusion.stage_model import StageModel
from civman.domain.digests import Sha256
from civman.domain.events import OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.stages import Stage, stage_recipe, stages_of
from civman.planning.plan_types import Applied, Planned
from civman.planning.prompt_stages import PassPrompts, passes_of
from civman.rendering.encode_prompts import FlowTextEncoders, KeptEncoders, TextEncoders, encode_stage
from civman.rendering.engine import Engine, ModelIdentity
from civman.rendering.warm_engines import WarmEngines


class StageModels:
    """Prepares the models for a plan's stages: loads them, merges their adapters and encodes their prompts.

    Each prompt is encoded only once, not for each batch. The previous stage's engine is released before the next one is
    loaded, unless `warm` has room for both.
    """

    def __init__(self, planned: Planned, machine: Machine, warm: WarmEngines, on_event: OnEvent = ignore) -> None:
        self.planned, self._machine, self._warm, self._on_event = planned, machine, warm, on_event
        self._engine: Engine | None = None
        self._prompts: list[tuple[Recipe, PassPrompts, Prompts]] = []
        self._networks: dict[Sha256, Hypernetwork] = {}
        self._texts = passes_of(planned.recipe)
        self.applied: tuple[Applied, ...] = ()
        """How the adapters of all stages prepared so far were applied."""
        self.notes: tuple[str, ...] = ()
        """Notes about the models and prompts of all stages prepared so far."""

    @property
    def engine(self) -> Engine:
        """The engine of the stage that was prepared last."""
        assert self._engine is not None
        return self._engine

    def __call__(self, stage: Stage) -> StageModel:
        """Prepare the model for a stage. Raises: the errors of `Engine` and `Engine.merge`."""
        planned = replace(self.planned, recipe=stage_recipe(self.planned.recipe, stage))
        self._engine = None
        engine = self._warm.engine(planned, self._machine, self._on_event)
        try:
            engine.merge(planned)
            prompt = self._encoded(engine, planned, stage)
            # also encode the prompts of later stages that use this model, so that no text encoder runs between the
            # passes
            for later in self._alike(planned.recipe):
                self._encoded(engine, replace(planned, recipe=stage_recipe(self.planned.recipe, later)), later)
        except BaseException:
            self._warm.drop(engine)  # do not use this engine again, because its adapters may be only partly merged
            raise
        self._engine = engine
        self._note((), engine.merged.applied())
        return StageModel(
            engine.model, prompt, self._hypernetworks(planned), planned.recipe.loras, engine.set_scales
        )  # fmt: skip

    def _encoded(self, engine: Engine, planned: Planned, stage: Stage) -> Prompts:
        """Encode the prompts of a stage, unless a stage with the same recipe and texts was encoded before."""
        first, second = self._texts
        texts = second if second is not None and stage.is_second else first
        for recipe, known, prompts in self._prompts:
            if (recipe, known) == (planned.recipe, texts):
                return prompts
        encoders = _encoders(engine, planned)
        made = encode_stage(encoders, planned, texts)
        self._prompts.append((planned.recipe, texts, made))
        self._note((*engine.model.notes, *encoders.notes), ())
        return made

    def encoded(self, recipe: Recipe) -> Prompts:
        """Encode the first pass's prompts of another recipe with the current model and its adapters."""
        planned = replace(self.planned, recipe=recipe)
        return encode_stage(_encoders(self.engine, planned), planned, passes_of(recipe)[0])

    def _alike(self, recipe: Recipe) -> Iterator[Stage]:
        """Yield all stages of the plan that use the same model and adapters as the stage with this recipe."""
        for stage in stages_of(self.planned.recipe):
            other = stage_recipe(self.planned.recipe, stage)
            if (ModelIdentity.of(other), other.loras) == (ModelIdentity.of(recipe), recipe.loras):
                yield stage

    def _hypernetworks(self, planned: Planned) -> list[tuple[Hypernetwork, float]]:
        for use in planned.recipe.hypernetworks:
            if use.sha256 not in self._networks:
                self._networks[use.sha256] = load_hypernetwork(planned.path(use.sha256), planned.name(use.sha256))
        return [(self._networks[use.sha256], use.strength) for use in planned.recipe.hypernetworks]

    def _note(self, notes: tuple[str, ...], applied: tuple[Applied, ...]) -> None:
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))
        self.applied = (*self.applied, *(each for each in applied if each not in self.applied))


def _encoders(engine: Engine, planned: Planned) -> KeptEncoders:
    """Return a model's text encoders for one plan."""

    def loaded() -> TextEncoders | FlowTextEncoders:
        return FlowTextEncoders(engine.model) if planned.recipe.flow else TextEncoders.of(engine.encoders)

    return KeptEncoders(loaded, engine.texts, engine.merged.loras, planned)
