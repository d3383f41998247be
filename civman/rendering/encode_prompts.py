"""The conditioning of one plan: its prompts and embeddings, encoded by the text encoders of a loaded model."""

from collections.abc import Sequence
from typing import Any

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.text_conditioning import encode, lengthened
from civman.diffusion.textual_inversions import Embedding, load_embedding
from civman.domain.recipes.recipe import Recipe
from civman.planning.plan_types import Planned
from civman.prompts.emphasis import ParsedPrompt, parse
from civman.rendering.engine import ENCODERS, Engine


def encode_prompts(engine: Engine, planned: Planned) -> Conditioning:
    """Encode the plan's prompts for the UNet. Raises: Incompatible: an embedding does not fit the model."""
    recipe = planned.recipe
    embeddings = _embeddings(engine, planned)
    contexts = [_encoded(engine, parse(recipe.prompt), recipe, embeddings, is_negative=False)]
    if recipe.uses_negative:
        contexts.append(_encoded(engine, parse(recipe.negative_prompt), recipe, embeddings, is_negative=True))
    if recipe.pad_prompts and len(contexts) == 2:
        contexts = _padded(engine, contexts, recipe)
    (cond, pooled), (uncond, uncond_pooled) = contexts[0], contexts[1] if len(contexts) == 2 else (None, None)
    return Conditioning(cond, uncond, pooled, uncond_pooled)


def _encoded(
    engine: Engine, parsed: ParsedPrompt, recipe: Recipe, embeddings: Sequence[Embedding], *, is_negative: bool
) -> tuple[Any, Any]:
    return encode(engine.encoders, engine.tokenizers, parsed, recipe.clip_skip, embeddings, is_negative=is_negative)


def _padded(engine: Engine, contexts: list[tuple[Any, Any]], recipe: Recipe) -> list[tuple[Any, Any]]:
    """Pad the shorter context with empty chunks to the length of the longer one, like "Pad conds" in A1111."""
    longest = max(context.shape[1] for context, _ in contexts)
    empty, _ = _encoded(engine, parse(""), recipe, (), is_negative=False)
    return [(lengthened(context, empty, longest), pooled) for context, pooled in contexts]


def _embeddings(engine: Engine, planned: Planned) -> list[Embedding]:
    configs = engine.model.configs
    widths = [int(configs[name]["hidden_size"]) for name in ENCODERS if name in engine.model.components]
    return [
        load_embedding(planned.path(use.sha256), widths, name=use.word, allow_partial=planned.allow_partial)
        for use in planned.recipe.embeddings
    ]
