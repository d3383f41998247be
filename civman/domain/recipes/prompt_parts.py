"""Additional prompt texts, combined with the prompt after encoding, as ComfyUI's conditioning nodes do."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from civman.errors import Cause, UsageError

HOW: Final = ("concat", "average", "combine")
_PART: Final = re.compile(r"(concat|combine|average=([0-9.]+)):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PromptPart:
    """An additional prompt text and how it is combined with the preceding texts.

    "concat" appends its vectors to those of the preceding texts. "average" mixes the vectors: the preceding texts have
    the weight `kept`, and this text has the weight 1 - `kept`. "combine" also evaluates the model for this text, and
    uses the mean of the predictions. Sources: ComfyUI's nodes ConditioningConcat, ConditioningAverage and
    ConditioningCombine.
    """

    how: str
    text: str
    kept: float = 1.0

    def __str__(self) -> str:
        how = f"average={self.kept!r}" if self.how == "average" else self.how
        return f"{how}:{self.text}"


def part_of(text: str) -> PromptPart:
    """Parse an additional prompt text and its method, such as "concat:TEXT", "combine:TEXT" or "average=0.7:TEXT".

    Raises: UsageError (`bad-value`).
    """
    found = _PART.fullmatch(text)
    try:
        kept = float(found[2]) if found and found[2] else 1.0
    except ValueError:
        found = None
    if found is None:
        raise UsageError(
            f"`{text[:60]}` is not an additional prompt text",
            hint="write concat:TEXT, combine:TEXT or average=0.7:TEXT, where 0.7 is the weight of the preceding texts",
            code=Cause.BAD_VALUE,
        )
    return PromptPart("average" if found[2] else found[1], found[3], kept)


def problems(recipe: Any) -> Iterator[str]:
    """Explain why a recipe's additional prompt texts cannot be used, with one clause for each problem."""
    both: Sequence[PromptPart] = (*recipe.prompt_parts, *recipe.negative_parts)
    for part in both:
        if part.how not in HOW:
            yield f"`{part.how}` is not a way to add a text to a prompt; the ways are {', '.join(HOW)}"
        if not 0 <= part.kept <= 1:
            yield "the weight of the texts that precede an averaged text must be 0 to 1"
    if any(part.how == "combine" for part in recipe.negative_parts):
        yield "additional texts of the negative prompt cannot be added with `combine`"
    if both and recipe.prompt_rules:
        yield "a prompt with additional texts (concat, average …) cannot use AND or prompt editing such as [a:b:0.5]"
    if both and recipe.pad_prompts:
        yield "prompts with additional texts (concat, average …) cannot be padded to the same length"
    if recipe.guidance_rescale and any(part.how == "combine" for part in recipe.prompt_parts):
        yield "CFG rescale is not defined for combined prompts"
