"""Encoded prompts that change during sampling (prompt editing) or combine several texts (`AND`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from civman.diffusion.denoiser import Encoded, Moment


@dataclass(frozen=True, slots=True, eq=False)
class EncodedStages:
    """The successive encodings of one text, each with the index of the last model evaluation that uses it."""

    stages: tuple[tuple[int, Encoded], ...]
    weight: float = 1.0

    def index_at(self, call: int) -> int:
        """Return the index of the encoding that evaluation `call` uses.

        After the last encoding has ended, the first one (index 0) is used again, as in A1111.
        """
        return next((place for place, (last, _) in enumerate(self.stages) if call <= last), 0)


@dataclass(frozen=True, slots=True, eq=False)
class ChangingConditioning:
    """The conditioning of one pass: the prompt's texts, combined with `AND`, and a negative prompt.

    Each of them may change during the pass.
    """

    parts: tuple[EncodedStages, ...]
    negative: EncodedStages

    def key_at(self, call: int) -> tuple[int, ...]:
        """Return a key that is equal for evaluations that use the same encodings."""
        return tuple(each.index_at(call) for each in (*self.parts, self.negative))

    def at(self, call: int) -> Moment:
        """Return the conditioning of evaluation `call`; shorter contexts are extended as in A1111."""
        *places, last = self.key_at(call)
        found = [part.stages[place][1] for part, place in zip(self.parts, places, strict=True)]
        return Moment(_extended(found), tuple(part.weight for part in self.parts), self.negative.stages[last][1])


@dataclass(frozen=True, slots=True, eq=False)
class CombinedConditioning:
    """The conditioning of one pass for a prompt that combines several texts, whose predictions are averaged."""

    conds: tuple[Encoded, ...]
    uncond: Encoded | None

    def key_at(self, call: int) -> tuple[int, ...]:  # noqa: ARG002  # the same in all evaluations
        """Return a key that is equal for all evaluations, since this conditioning never changes."""
        return ()

    def at(self, call: int) -> Moment:  # noqa: ARG002
        """Return the conditioning of evaluation `call`."""
        return Moment(self.conds, (1 / len(self.conds),) * len(self.conds), self.uncond)


def joined(first: Encoded, others: Sequence[tuple[str, float, Encoded]]) -> tuple[Encoded, ...]:
    """Join encoded texts in order, as ComfyUI's conditioning nodes do.

    Each entry of `others` is a tuple: how to join the text ("combine", "concat" or "average", see
    `civman.domain.recipes.prompt_parts`), the weight of the preceding texts in an average, and the encoded text.
    "average" cuts the later text to the length of the earlier one, or pads it with zeros; "concat" keeps the pooled
    vector of the earlier one.
    """
    found = [first]
    for how, kept, other in others:
        if how == "combine":
            found.append(other)
        elif how == "concat":
            found = [Encoded(torch.cat([each.context, other.context], dim=1), each.pooled) for each in found]
        else:
            found = [_averaged(each, other, kept) for each in found]
    return tuple(found)


def _averaged(first: Encoded, other: Encoded, kept: float) -> Encoded:
    tokens = first.context.shape[1]
    context = other.context[:, :tokens]
    missing = tokens - context.shape[1]
    if missing:
        context = torch.cat([context, context.new_zeros(1, missing, context.shape[2])], dim=1)
    mixed = first.context * kept + context * (1 - kept)
    if first.pooled is None or other.pooled is None:
        return Encoded(mixed, first.pooled)
    return Encoded(mixed, first.pooled * kept + other.pooled * (1 - kept))


def _extended(found: Sequence[Encoded]) -> tuple[Encoded, ...]:
    """Extend shorter contexts to the length of the longest one by repeating their last vector."""
    longest = max(each.context.shape[1] for each in found)
    return tuple(Encoded(_longer(each.context, longest), each.pooled) for each in found)


def _longer(context: Tensor, tokens: int) -> Tensor:
    missing = tokens - context.shape[1]
    return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1) if missing else context
