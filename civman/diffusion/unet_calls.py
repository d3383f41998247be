"""UNet calls as objects: a generator that samples an image yields each call, and receives the call's output.

So several images can be sampled side by side: `run_in_slots` takes one call from each generator and computes all of
them in a single UNet call, which always has the same number of images (`width`).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from civman.diffusion.control_additions import NOTHING_ADDED, Additions
from civman.diffusion.reference_pictures import Asked, attending
from civman.diffusion.token_merging import merging

T = TypeVar("T")


class ModelCall(Protocol):
    """One call of the UNet or transformer for a batch of B images and k prompts."""

    @property
    def prompts(self) -> int:
        """The number of prompts, k."""
        ...

    @property
    def key(self) -> tuple[object, ...]:
        """A key that is equal for calls that can be joined into one call of the model."""
        ...

    def joined(self, calls: Sequence[Self]) -> Self:
        """Join calls with the same key as this one, each for a single image, into one call for all these images."""
        ...

    def answer(self, unet: Any) -> Tensor:
        """Call the model. Returns (k·B, channels, h, w) float32: first all images with the first prompt, and so on."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class UnetCall:
    """One call of the UNet for a batch of B images and k prompts.

    `inputs`: (B, channels, h, w) in the UNet's dtype; `time`: () or (B,), float32; `contexts`: (k·B, tokens, width),
    first all images with the first prompt, then all with the second; `added`: SDXL's further inputs, (k·B, width) each.
    """

    inputs: Tensor
    time: Tensor
    contexts: Tensor
    added: Mapping[str, Tensor]
    prompts: int
    """The number of prompts, k."""
    token_merging: float = 0.0
    controlled: Additions = NOTHING_ADDED
    """The tensors that control models add inside the UNet."""
    references: tuple[Asked, ...] = ()
    """The image tokens that IP-Adapters add to this call."""

    @property
    def key(self) -> tuple[object, ...]:
        """Return a key that is equal for calls that can be joined into one."""
        added = tuple((name, tensor.shape) for name, tensor in self.added.items())
        controlled = [tuple(map(_shape, part)) for part in (self.controlled.residuals, self.controlled.features)]
        shown = tuple(each.key for each in self.references)
        return (self.inputs.shape, self.contexts.shape, added, self.prompts, self.token_merging, *controlled, shown)

    def joined(self, calls: Sequence["UnetCall"]) -> "UnetCall":
        """Join calls with equal keys into one call of the UNet."""

        def of_each_prompt(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(tensors), dim=1).flatten(0, 1)

        def of_each_place(parts: Iterable[Sequence[Tensor]]) -> tuple[Tensor, ...]:
            return tuple(map(of_each_prompt, zip(*parts, strict=True)))

        return UnetCall(
            torch.cat([call.inputs for call in calls]),
            torch.stack([call.time for call in calls]),
            of_each_prompt([call.contexts for call in calls]),
            {name: of_each_prompt([call.added[name] for call in calls]) for name in self.added},
            self.prompts,
            self.token_merging,
            Additions(
                of_each_place(call.controlled.residuals for call in calls),
                of_each_place(call.controlled.features for call in calls),
            ),
            tuple(
                replace(each, tokens=of_each_prompt([call.references[place].tokens for call in calls]))
                for place, each in enumerate(self.references)
            ),
        )

    def answer(self, unet: Any) -> Tensor:
        """Call the UNet and return its output."""
        more: dict[str, Any] = {"added_cond_kwargs": dict(self.added)} if self.added else {}
        if self.controlled.residuals:
            *skips, middle = self.controlled.residuals
            more |= {"down_block_additional_residuals": tuple(skips), "mid_block_additional_residual": middle}
        if self.controlled.features:
            more["down_intrablock_additional_residuals"] = list(self.controlled.features)
        time = self.time if self.time.ndim == 0 else self.time.repeat(self.prompts)
        size = (self.inputs.shape[-2], self.inputs.shape[-1])
        with merging(unet, self.token_merging, size), attending(unet, self.references):
            made: Tensor = unet(
                self.inputs.repeat(self.prompts, 1, 1, 1), time, encoder_hidden_states=self.contexts,
                return_dict=False, **more,
            )[0]  # fmt: skip
        return made.to(torch.float32)


def _shape(tensor: Tensor) -> torch.Size:
    return tensor.shape


Calls = Generator[Any, Tensor, T]
"""A computation that uses the model: a generator that yields `ModelCall`s, is sent their outputs, and returns T."""


def run(calls: Calls[T], unet: Callable[[], Any]) -> T:
    """Run a computation to its end and return its result.

    Each call is computed separately, with the model that `unet` returns at that moment.
    """
    try:
        call = next(calls)
        while True:
            call = calls.send(call.answer(unet()))
    except StopIteration as stop:
        result: T = stop.value
        return result


def run_in_slots(
    jobs: Iterator[Calls[T]], unet: Any, width: int, within: Callable[[], AbstractContextManager[None]]
) -> Iterator[T]:
    """Run generators side by side, each for a single image, and yield the result of each as soon as it is finished.

    The model is always called for `width` images. Slots without an image get copies of other slots, so that an image's
    bits depend on the width, but neither on the other images nor on their number. Calls of different sizes cannot be
    joined, so generators are taken from `jobs` until there are `width` calls of the same size. Code of the generators
    and the model runs inside `within()`.
    """
    waiting: dict[tuple[object, ...], deque[tuple[Calls[T], ModelCall]]] = {}
    taken: list[tuple[Calls[T], ModelCall]] = []
    finished: list[T] = []
    slots = Slots(unet, width)

    def advance(job: Calls[T], answer: Tensor | None) -> None:
        try:
            call = next(job) if answer is None else job.send(answer)
        except StopIteration as stop:
            finished.append(stop.value)
        else:
            waiting.setdefault(call.key, deque()).append((job, call))

    try:
        while True:
            while all(len(calls) < width for calls in waiting.values()) and (job := next(jobs, None)) is not None:
                with within():
                    advance(job, None)
            if not waiting:
                break
            key = max(waiting, key=lambda key: len(waiting[key]))
            taken = [waiting[key].popleft() for _ in range(min(width, len(waiting[key])))]
            if not waiting[key]:
                del waiting[key]
            with within():
                for (job, _), answer in zip(taken, slots.answer([call for _, call in taken]), strict=True):
                    advance(job, answer)
            yield from finished
            finished.clear()
    finally:
        for job, _ in chain(taken, *waiting.values()):
            job.close()  # after an error, close all generators, which has no effect on finished ones
    yield from finished


class Slots:
    """Computes calls for single images by calling the model for `width` images at once.

    An image must not depend on the slot that computes it, or it could not be rendered again alone. Therefore, the first
    call of each shape checks that slots with equal contents give equal bits. For shapes that fail the check, such as
    attention with a single token on several CPU threads, only one image is computed at a time, with copies of it in all
    slots.
    """

    def __init__(self, unet: Any, width: int) -> None:
        self._unet, self._width = unet, width
        self._are_equal: dict[tuple[object, ...], bool] = {}

    def answer(self, calls: Sequence[ModelCall]) -> list[Tensor]:
        """Compute calls with the same key, at most as many as there are slots."""
        first = calls[0]
        if first.key not in self._are_equal:
            copies = self._rows([first])
            self._are_equal[first.key] = all(torch.equal(copies[0], other) for other in copies[1:])
            if len(calls) == 1:
                return copies[:1]
        if self._are_equal[first.key]:
            return self._rows(calls)[: len(calls)]
        return [self._rows([call])[0] for call in calls]

    def _rows(self, calls: Sequence[ModelCall]) -> list[Tensor]:
        """Call the model once, filling its slots with these calls in turn; return the output of each slot."""
        filled = [calls[slot % len(calls)] for slot in range(self._width)]
        together = filled[0].joined(filled).answer(self._unet)
        each_prompt = together.view(filled[0].prompts, self._width, *together.shape[1:])
        return [each_prompt[:, slot].clone(memory_format=torch.contiguous_format) for slot in range(self._width)]
