"""From plans to kept pictures: a model is loaded once and serves as long as plans agree on it.

Between plans that differ in adapters alone, the weights get the file's own bits back before the others are merged.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from civman.diffusion import memory_plan, merge_adapters
from civman.diffusion.denoiser import Conditioning
from civman.diffusion.diffusers_pipeline import PipelineScheduler, pipeline_of
from civman.diffusion.environment import choose_device, choose_dtype, environment, threads
from civman.diffusion.guard import memory_errors
from civman.diffusion.layer_streaming import SMALL, stream
from civman.diffusion.loader import LoadedModel, load
from civman.diffusion.run_recipe import Inputs, iterate
from civman.diffusion.text_conditioning import encode, lengthened
from civman.diffusion.textual_inversions import Embedding, load_embedding
from civman.diffusion.transformers_tokenizer import transformers_tokenizer
from civman.domain.digests import Sha256
from civman.domain.events import Notice, OnEvent, ignore
from civman.domain.recipes.machine import Machine
from civman.domain.recipes.recipe import LoraUse, Recipe
from civman.domain.recipes.record import Record
from civman.planning.input_pictures import read_picture
from civman.planning.plan_types import MODEL_FIELDS, Applied, Planned, Rendering
from civman.prompts.emphasis import ParsedPrompt, parse
from civman.prompts.tokenizer import ClipTokenizer, clip_tokenizer
from civman.rendering.save_pictures import Place

_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture that was made: (H, W, 3) uint8, and what there is to tell of it."""

    pixels: Any = field(repr=False, compare=False)
    record: Record
    applied: tuple[Applied, ...]


def draw(plans: Iterable[Planned], machine: Machine, on_event: OnEvent = ignore) -> Iterator[Drawn]:
    """The pictures of all plans in their order, one after the other as they come.

    Raises: CannotRender: memory is short, or what comes out is no picture. Incompatible: an adapter or embedding does
        not go with the model.
    """
    setup: _Setup | None = None
    with threads(machine.threads):
        for planned in plans:
            if setup is None or not setup.serves(planned):
                setup = None  # the old model's memory goes before the new one is loaded
                setup = _Setup(planned, machine, on_event)
            yield from setup.draw(planned, on_event)


def make(
    plans: Iterable[Planned], place: Place, *, machine: Machine, on_event: OnEvent = ignore
) -> Iterator[Rendering]:
    """As `draw`, each picture kept in `place` as soon as it is done. Raises: besides, UsageError, StoreError."""
    for drawn in draw(plans, machine, on_event):
        yield Rendering(place.keep(drawn.pixels, drawn.record), drawn.record, drawn.applied)


def pipeline(planned: Planned, kind: str, *, machine: Machine, on_event: OnEvent = ignore) -> Any:
    """Diffusers' own pipeline ("txt2img", "img2img", "inpaint") around the plan's model, its adapters merged.

    Sampler and schedule are the plan's; prompts, seed, size and all else are arguments of the pipeline's call.

    Raises: CannotRender, Incompatible: as `draw`. UsageError: no such kind.
    """
    return _Setup(planned, machine, on_event).pipeline(kind)


class _Setup:
    """A loaded model with adapters merged in."""

    def __init__(self, planned: Planned, machine: Machine, on_event: OnEvent) -> None:
        recipe = planned.recipe
        self._recipe = recipe
        self._device = choose_device(machine.device)
        self._plan = self._memory_plan(planned, machine, on_event)
        by_layer = self._plan is memory_plan.MemoryPlan.LAYER_BY_LAYER
        with memory_errors("loading the model"):
            self._model: LoadedModel = load(
                planned.path(recipe.checkpoint),
                device="cpu" if self._plan is memory_plan.MemoryPlan.ONE_AT_A_TIME else self._device,
                dtype=choose_dtype(self._device, recipe.precision),
                vae=planned.path(recipe.vae) if recipe.vae else None,
                config=json.loads(recipe.config) if recipe.config else None,
                prediction=recipe.prediction,
                is_zero_snr=recipe.is_zero_snr,
                leaves=SMALL if by_layer else None,
            )
        self._later = stream(self._model) if by_layer else None
        self._tokenizers = _tokenizers(self._model)
        with memory_errors("merging the adapters"):
            self._coverages = self._merge(planned)
        if self._plan is not memory_plan.MemoryPlan.RESIDENT:
            memory_plan.apply(self._plan, self._model, self._device)

    def serves(self, planned: Planned) -> bool:
        """Whether this model, with other adapters at most, is what the plan's recipe means."""
        ours, theirs = self._recipe, planned.recipe
        same = all(getattr(ours, name) == getattr(theirs, name) for name in MODEL_FIELDS)
        return same and (self._plan is not memory_plan.MemoryPlan.ONE_AT_A_TIME or ours.loras == theirs.loras)

    def draw(self, planned: Planned, on_event: OnEvent) -> Iterator[Drawn]:
        """The plan's pictures."""
        recipe = planned.recipe
        if recipe.loras != self._recipe.loras:
            merge_adapters.restore(self._model.components, self._model.base_tensor, self._coverages)
            self._coverages = []
            self._coverages = self._merge(planned)
        self._recipe = recipe
        applied = tuple(_applied(each, use) for each, use in zip(self._coverages, recipe.loras, strict=True))
        facts = environment(self._device).to_facts()
        done = 0
        for batch in iterate(recipe, self._model, self._conditioning(planned), inputs=_inputs(planned),
                             on_event=on_event):  # fmt: skip
            own = replace(recipe, seed=recipe.seed + done, count=len(batch), batch_size=len(batch))
            for picture in batch:
                record = Record(
                    own, picture.seed, Sha256(picture.sha256), facts, planned.names,
                    (*self._model.notes, *picture.notes), planned.parent, planned.typed,
                )  # fmt: skip
                yield Drawn(picture.pixels, record, applied)
            done += len(batch)

    def pipeline(self, kind: str) -> Any:
        """Diffusers' own around this model."""
        recipe, model = self._recipe, self._model
        with TemporaryDirectory() as folder:
            tokenizers = {
                name.replace("text_encoder", "tokenizer"): transformers_tokenizer(Path(folder), each.padding)
                for name, each in zip([name for name in _ENCODERS if name in model.components], self._tokenizers,
                                      strict=True)
            }  # fmt: skip
        made = pipeline_of(model, kind, tokenizers=tokenizers)
        made.scheduler = PipelineScheduler(
            recipe.sampler, recipe.schedule, prediction=model.prediction, is_zero_snr=model.is_zero_snr,
            is_xl=model.family.is_xl,
        )  # fmt: skip
        return made

    def _memory_plan(self, planned: Planned, machine: Machine, on_event: OnEvent) -> memory_plan.MemoryPlan:
        """As asked. The CPU leaves weights in their file where all of them would take more than half of what is free.

        There the picture is the same to the byte, sooner begun and a little slower in each step.
        """
        resident, by_layer = memory_plan.MemoryPlan.RESIDENT, memory_plan.MemoryPlan.LAYER_BY_LAYER
        free, needed = memory_plan.available_bytes(self._device), planned.memory.needed(resident)
        if free is None or self._device.type == "cpu":
            return by_layer if machine.low_vram or (free is not None and free < 2 * needed) else resident
        if machine.low_vram:
            return planned.memory.plan(free)
        if 0 < free < needed:
            words = f"about {needed / 2**30:.1f} GiB are needed on {self._device}, {free / 2**30:.1f} are free"
            on_event(Notice("render", f"{words}: --low-vram needs less"))
        return resident

    def _merge(self, planned: Planned) -> list[merge_adapters.Coverage]:
        chosen = [
            merge_adapters.Adapter(
                planned.path(use.sha256), use.sha256, use.scale, use.text_scale, planned.name(use.sha256)
            )
            for use in planned.recipe.loras
        ]
        targets = {
            name: self._model.components[name] for name in ("unet", *_ENCODERS) if name in self._model.components
        }
        return merge_adapters.apply(
            targets, self._model.base_tensor, chosen, allow_partial=planned.allow_partial,
            unused=self._model.unused_layers, done_with=self._model.forget, later=self._later,
        )  # fmt: skip

    def _conditioning(self, planned: Planned) -> Conditioning:
        recipe = planned.recipe
        embeddings = _embeddings(planned, self._model)
        contexts = [self._encode(parse(recipe.prompt), recipe, embeddings, is_negative=False)]
        if recipe.uses_negative:
            contexts.append(self._encode(parse(recipe.negative_prompt), recipe, embeddings, is_negative=True))
        if recipe.pad_prompts and len(contexts) == 2:
            contexts = self._padded(contexts, recipe)
        (cond, pooled), (uncond, uncond_pooled) = contexts[0], contexts[1] if len(contexts) == 2 else (None, None)
        return Conditioning(cond, uncond, pooled, uncond_pooled)

    def _encode(
        self, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
    ) -> tuple[Any, Any]:
        encoders = [self._model.components[name] for name in _ENCODERS if name in self._model.components]
        return encode(encoders, self._tokenizers, parsed, recipe.clip_skip, embeddings, is_negative=is_negative)

    def _padded(self, contexts: list[tuple[Any, Any]], recipe: Recipe) -> list[tuple[Any, Any]]:
        """The shorter context brought to the longer one's length by chunks of nothing, as A1111's "Pad conds" does."""
        longest = max(context.shape[1] for context, _ in contexts)
        empty, _ = self._encode(parse(""), recipe, (), is_negative=False)
        return [(lengthened(context, empty, longest), pooled) for context, pooled in contexts]


def _tokenizers(model: LoadedModel) -> list[ClipTokenizer]:
    shared = clip_tokenizer()
    return [
        shared.padded_with(int(model.configs[name]["pad_token_id"])) for name in _ENCODERS if name in model.components
    ]


def _embeddings(planned: Planned, model: LoadedModel) -> list[Embedding]:
    widths = [int(model.configs[name]["hidden_size"]) for name in _ENCODERS if name in model.components]
    return [load_embedding(planned.path(use.sha256), widths, name=use.word) for use in planned.recipe.embeddings]


def _inputs(planned: Planned) -> Inputs:
    start = planned.recipe.start
    if start is None:
        return Inputs()
    mask = None
    if start.mask_sha256:
        mask = read_picture(planned.path(start.mask_sha256), is_mask=True, rules=planned.recipe.rules).pixels
    return Inputs(read_picture(planned.path(start.sha256)).pixels, mask)


def _applied(coverage: merge_adapters.Coverage, use: LoraUse) -> Applied:
    return Applied(
        coverage.name, coverage.sha256, use.scale, use.text_scale, coverage.kinds, len(coverage.matched),
        tuple(f"{each.module}: {each.reason}" for each in coverage.unmatched), coverage.norms,
    )  # fmt: skip
