"""The conditioning of one plan: its prompts and embeddings, encoded by the text encoders of a loaded model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.text_conditioning import encode, lengthened
from civman.diffusion.textual_inversions import Embedding, load_embedding
from civman.domain.recipes.recipe import Recipe
from civman.planning.plan_types import Planned
from civman.prompts.emphasis import ParsedPrompt, parse
from civman.prompts.tokenizer import ClipTokenizer, clip_tokenizer


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """A model's text encoders in their order, with the tokenizer of each."""

    encoders: Sequence[Any]
    tokenizers: Sequence[ClipTokenizer]

    @classmethod
    def of(cls, encoders: Sequence[Any]) -> Self:
        """The encoders with civman's tokenizers, which differ in what a prompt is padded with."""
        shared = clip_tokenizer()
        return cls(encoders, [shared.padded_with(int(each.config.pad_token_id)) for each in encoders])

    @property
    def widths(self) -> list[int]:
        """The hidden size of each encoder."""
        return [int(each.config.hidden_size) for each in self.encoders]


def encode_prompts(text: TextEncoders, planned: Planned) -> Conditioning:
    """Encode the plan's prompts for the UNet. Raises: Incompatible: an embedding does not fit the model."""
    recipe = planned.recipe
    embeddings = [
        load_embedding(planned.path(use.sha256), text.widths, name=use.word, allow_partial=planned.allow_partial)
        for use in recipe.embeddings
    ]
    contexts = [_encoded(text, parse(recipe.prompt), recipe, embeddings, is_negative=False)]
    if recipe.uses_negative:
        contexts.append(_encoded(text, parse(recipe.negative_prompt), recipe, embeddings, is_negative=True))
    if recipe.pad_prompts and len(contexts) == 2:
        contexts = _padded(text, contexts, recipe)
    (cond, pooled), (uncond, uncond_pooled) = contexts[0], contexts[1] if len(contexts) == 2 else (None, None)
    return Conditioning(cond, uncond, pooled, uncond_pooled)


def _encoded(
    text: TextEncoders, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
) -> tuple[Any, Any]:
    return encode(text.encoders, text.tokenizers, parsed, recipe.clip_skip, embeddings, is_negative=is_negative)


def _padded(text: TextEncoders, contexts: list[tuple[Any, Any]], recipe: Recipe) -> list[tuple[Any, Any]]:
    """Pad the shorter context with empty chunks to the length of the longer one, like "Pad conds" in A1111."""
    longest = max(context.shape[1] for context, _ in contexts)
    empty, _ = _encoded(text, parse(""), recipe, (), is_negative=False)
    return [(lengthened(context, empty, longest), pooled) for context, pooled in contexts]
