"""Encodes the prompts of a plan with the text encoders and embeddings of a loaded model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from civman.diffusion.changing_prompts import ChangingConditioning, CombinedConditioning, EncodedStages, joined
from civman.diffusion.denoiser import Conditioning, Encoded, Prompts
from civman.diffusion.flow_text import FlowText
from civman.diffusion.kept_texts import KeptTexts
from civman.diffusion.loader import LoadedModel
from civman.diffusion.text_conditioning import encode, lengthened
from civman.diffusion.textual_inversions import Embedding, load_embedding
from civman.domain.recipes.recipe import LoraUse, PromptPart, Recipe
from civman.planning.plan_types import Planned
from civman.planning.prompt_stages import PassPrompts
from civman.prompts.editing import Stage
from civman.prompts.emphasis import ParsedPrompt, parse
from civman.prompts.syntaxes import parse_by
from civman.prompts.tokenizer import ClipTokenizer, clip_tokenizer


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """The text encoders of a model in order, with a tokenizer for each."""

    encoders: Sequence[Any]
    tokenizers: Sequence[ClipTokenizer]

    @classmethod
    def of(cls, encoders: Sequence[Any]) -> Self:
        """Pair each text encoder with a tokenizer that uses the encoder's padding token."""
        shared = clip_tokenizer()
        return cls(encoders, [shared.padded_with(int(each.config.pad_token_id)) for each in encoders])

    @property
    def widths(self) -> list[int]:
        """The hidden size of each text encoder."""
        return [int(each.config.hidden_size) for each in self.encoders]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the prompts were encoded."""
        return ()

    def encode(
        self, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
    ) -> tuple[Any, Any]:
        """Encode a prompt. Returns the context (1, tokens, width) and the pooled embedding, or None."""
        return encode(
            self.encoders, self.tokenizers, parsed, recipe.clip_skip, embeddings, is_negative=is_negative,
            emphasis=recipe.emphasis,
        )  # fmt: skip


class FlowTextEncoders:
    """The text encoders of a flow-matching model, which encode prompts by the rules of the model's family."""

    widths: ClassVar[list[int]] = []
    """Empty, because the text encoders of flow-matching models take no embeddings."""

    def __init__(self, model: LoadedModel) -> None:
        self._family: Any = model.family
        self._texts = FlowText(model.components, model.device, model.tokenizers)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the prompts were encoded."""
        return tuple(self._texts.notes)

    def encode(
        self, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
    ) -> tuple[Any, Any]:
        """Encode a prompt. Returns the context (1, tokens, width) and the pooled embedding, or None."""
        del recipe, embeddings
        encode_one = self._family.encode_negative if is_negative else self._family.encode
        encoded = encode_one(self._texts, parsed)
        return encoded.context, encoded.pooled


class KeptEncoders:
    """A model's text encoders for one plan. The encodings of texts that were encoded before come from a cache."""

    def __init__(
        self,
        encoders: Callable[[], TextEncoders | FlowTextEncoders],
        kept: KeptTexts,
        merged: Sequence[LoraUse],
        planned: Planned,
    ) -> None:
        """`encoders` returns the text encoders; `kept`: the cache; `merged`: the adapters merged into the model."""
        self._encoders, self._kept = encoders, kept
        recipe = planned.recipe
        adapters = sorted((use.sha256, use.text_scale, use.blocks) for use in merged if use.text_scale)
        self._adapters = tuple(adapters)
        self._embeddings = (recipe.embeddings, planned.allow_partial)
        self._notes: dict[str, None] = {}
        self.widths = encoders().widths

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the prompts were encoded."""
        return tuple(self._notes)

    def encode(
        self, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
    ) -> tuple[Any, Any]:
        """Encode a prompt, or get its encoding from the cache.

        Returns the context (1, tokens, width) and the pooled embedding.
        """

        def encoded() -> tuple[Any, Any, tuple[str, ...]]:
            encoders = self._encoders()
            made = encoders.encode(parsed, recipe, embeddings, is_negative=is_negative)
            return (*made, encoders.notes)

        given = self._embeddings if embeddings else None
        key = (parsed, recipe.clip_skip, recipe.emphasis, is_negative, given, self._adapters)
        context, pooled, notes = self._kept.get(key, encoded)
        self._notes |= dict.fromkeys(notes)
        return context, pooled


AnyEncoders = TextEncoders | FlowTextEncoders | KeptEncoders


def encode_stage(text: AnyEncoders, planned: Planned, texts: PassPrompts) -> Prompts:
    """Encode the prompts of one stage of a render.

    `planned`: a plan with the stage's recipe (`stages.stage_recipe`). `texts`: the texts that the prompts consist of at
    each step of the stage's pass. Raises: Incompatible: an embedding does not fit the model.
    """
    recipe = planned.recipe
    if recipe.prompt_parts or recipe.negative_parts:
        return _joined(text, planned)
    if not recipe.prompt_rules:
        return encode_prompts(text, planned)
    return _StageEncoder(text, recipe, _embeddings(text, planned)).conditioning(texts)


def _joined(text: AnyEncoders, planned: Planned) -> CombinedConditioning:
    """Encode prompts that combine several texts. Raises: Incompatible: an embedding does not fit the model."""
    recipe, embeddings = planned.recipe, _embeddings(text, planned)

    def all_of(words: str, parts: Sequence[PromptPart], *, is_negative: bool) -> tuple[Encoded, ...]:
        def one(each: str) -> Encoded:
            parsed = parse_by(recipe.emphasis, each)
            return Encoded(*_encoded(text, parsed, recipe, embeddings, is_negative=is_negative))

        return joined(one(words), [(part.how, part.kept, one(part.text)) for part in parts])

    conds = all_of(recipe.prompt, recipe.prompt_parts, is_negative=False)
    is_used = recipe.uses_negative or len(conds) > 1
    unconds = all_of(recipe.negative_prompt, recipe.negative_parts, is_negative=True) if is_used else (None,)
    return CombinedConditioning(conds, unconds[0])


class _StageEncoder:
    """Encodes prompts that change during the steps or are combined with `AND`, each text only once."""

    def __init__(self, text: AnyEncoders, recipe: Recipe, embeddings: Sequence[Embedding]) -> None:
        self._text, self._recipe, self._embeddings = text, recipe, embeddings
        self._known: dict[tuple[str, bool], Encoded] = {}

    def conditioning(self, prompts: PassPrompts) -> ChangingConditioning:
        """Encode the texts of one pass."""
        # UNet families encode a negative prompt differently only if it is empty in all steps; flow-matching families
        # may use a special template for every negative prompt
        empty = all(not stage.text.strip() for stage in prompts.negative)
        is_negative = empty or self._recipe.flow is not None
        parts = [self._stages(stages, is_negative=False, weight=weight) for weight, stages in prompts.parts]
        negative = self._stages(prompts.negative, is_negative=is_negative)
        if self._recipe.pad_prompts:
            parts, negative = self._padded(parts, negative)
        return ChangingConditioning(tuple(parts), negative)

    def _stages(self, stages: Sequence[Stage], *, is_negative: bool, weight: float = 1.0) -> EncodedStages:
        found = tuple((stage.last, self._encoded(stage.text, is_negative)) for stage in stages)
        return EncodedStages(found, weight)

    def _encoded(self, words: str, is_negative: bool) -> Encoded:
        if (found := self._known.get((words, is_negative))) is None:
            made = _encoded(
                self._text,
                parse_by(self._recipe.emphasis, words),
                self._recipe,
                self._embeddings,
                is_negative=is_negative,
            )
            found = self._known[words, is_negative] = Encoded(*made)
        return found

    def _padded(self, parts: list[EncodedStages], negative: EncodedStages) -> tuple[list[EncodedStages], EncodedStages]:
        """Pad all contexts with empty chunks to the length of the longest one."""
        every = [*parts, negative]
        longest = max(each.context.shape[1] for stages in every for _, each in stages.stages)
        empty = self._encoded("", is_negative=False).context

        def longer(each: Encoded) -> Encoded:
            return Encoded(lengthened(each.context, empty, longest), each.pooled)

        *padded, last = (
            EncodedStages(tuple((end, longer(each)) for end, each in one.stages), one.weight) for one in every
        )
        return padded, last


def _embeddings(text: AnyEncoders, planned: Planned) -> list[Embedding]:
    return [
        load_embedding(planned.path(use.sha256), text.widths, name=use.word, allow_partial=planned.allow_partial)
        for use in planned.recipe.embeddings
    ]


def encode_prompts(text: AnyEncoders, planned: Planned) -> Conditioning:
    """Encode the plan's prompts, which must not change during the steps.

    Raises: Incompatible: an embedding does not fit the model.
    """
    recipe, embeddings = planned.recipe, _embeddings(text, planned)
    contexts = [_encoded(text, parse_by(recipe.emphasis, recipe.prompt), recipe, embeddings, is_negative=False)]
    if recipe.uses_negative:
        contexts.append(
            _encoded(text, parse_by(recipe.emphasis, recipe.negative_prompt), recipe, embeddings, is_negative=True)
        )
    if recipe.pad_prompts and len(contexts) == 2:
        contexts = _padded(text, contexts, recipe)
    (cond, pooled), (uncond, uncond_pooled) = contexts[0], contexts[1] if len(contexts) == 2 else (None, None)
    return Conditioning(cond, uncond, pooled, uncond_pooled)


def _encoded(
    text: AnyEncoders, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
) -> tuple[Any, Any]:
    return text.encode(parsed, recipe, embeddings, is_negative=is_negative)


def _padded(text: AnyEncoders, contexts: list[tuple[Any, Any]], recipe: Recipe) -> list[tuple[Any, Any]]:
    """Pad the shorter context with empty chunks to the length of the longer one, like "Pad conds" in A1111."""
    longest = max(context.shape[1] for context, _ in contexts)
    empty, _ = _encoded(text, parse(""), recipe, (), is_negative=False)
    return [(lengthened(context, empty, longest), pooled) for context, pooled in contexts]
