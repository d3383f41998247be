"""Prompts that change during sampling or that `AND` combines, encoded in the form that the denoiser uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from civman.diffusion.denoiser import Encoded, Moment


@dataclass(frozen=True, slots=True, eq=False)
class EncodedStages:
    """The successive encodings of one text, each with the number of the last model evaluation that uses it."""

    stages: tuple[tuple[int, Encoded], ...]
    weight: float = 1.0

    def index_at(self, call: int) -> int:
        """Return the index of the encoding for evaluation `call`; the first one if all have ended, as in A1111."""
        return next((place for place, (last, _) in enumerate(self.stages) if call <= last), 0)


@dataclass(frozen=True, slots=True, eq=False)
class ChangingConditioning:
    """The conditioning of one pass. Each of its parts and the negative prompt change independently."""

    parts: tuple[EncodedStages, ...]
    negative: EncodedStages

    def key_at(self, call: int) -> tuple[int, ...]:
        """Return a value that is equal for evaluations with the same encodings."""
        return tuple(each.index_at(call) for each in (*self.parts, self.negative))

    def at(self, call: int) -> Moment:
        """Return the encodings of evaluation `call`; parts of different lengths are extended as in A1111."""
        *places, last = self.key_at(call)
        found = [part.stages[place][1] for part, place in zip(self.parts, places, strict=True)]
        return Moment(_extended(found), tuple(part.weight for part in self.parts), self.negative.stages[last][1])


@dataclass(frozen=True, slots=True, eq=False)
class CombinedConditioning:
    """The conditioning of one pass whose prompt consists of several texts; the mean of their predictions is used."""

    conds: tuple[Encoded, ...]
    uncond: Encoded | None

    def key_at(self, call: int) -> tuple[int, ...]:  # noqa: ARG002  # the same in all evaluations
        """Return a value that is equal for evaluations with the same conditioning."""
        return ()

    def at(self, call: int) -> Moment:  # noqa: ARG002
        """Return the conditioning of evaluation `call`."""
        return Moment(self.conds, (1 / len(self.conds),) * len(self.conds), self.uncond)


def joined(first: Encoded, others: Sequence[tuple[str, float, Encoded]]) -> tuple[Encoded, ...]:
    """Join encoded texts in order.

    Each entry of `others` has the way to join a text (see `civman.domain.recipes.prompt_parts`), the share of the texts
    before it that is kept, and the text. "average" cuts the later text to the length of the earlier one, or extends it
    with zeros; "concat" keeps the pooled vector of the earlier one. Source: ComfyUI.
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
    """Repeat the last vector of shorter contexts until all are as long as the longest."""
    longest = max(each.context.shape[1] for each in found)
    return tuple(Encoded(_longer(each.context, longest), each.pooled) for each in found)


def _longer(context: Tensor, tokens: int) -> Tensor:
    missing = tokens - context.shape[1]
    return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1) if missing else context
