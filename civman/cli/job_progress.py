"""Computes from the samplers' step events how much of a job is done."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from civman.cli.output import counted
from civman.domain.events import Step

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import Recipe

_RECENT = 20
"""The number of recent steps over which the speed is averaged."""


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one plan in a job.

    `images`: the number of images. `first_pass`: the fraction of the work on an image that the first pass takes.
    """

    images: int = 1
    first_pass: float = 1.0


def shares(recipes: "Sequence[Recipe]") -> list[Share]:
    """Estimate the work of each plan: the time for a pass is assumed to be proportional to its steps and pixels."""
    found = []
    for recipe in recipes:
        first, second = float(recipe.steps * recipe.width * recipe.height), 0.0
        if recipe.hires is not None:
            second = recipe.hires.steps * recipe.hires.strength * recipe.hires.width * recipe.hires.height
        found.append(Share(recipe.count, first / (first + second) if first else 1.0))
    return found


class JobProgress:
    """The progress of a job; `advance` takes the step events in order.

    `completed` is the finished fraction of all images, from 0 to 1.
    """

    def __init__(self, job: Sequence[Share], *, called: str) -> None:
        self._job = list(job)
        self._plan_word = called
        self._images = max(sum(share.images for share in job), 1)
        self._plan = -1
        self._last: Step | None = None
        self._times: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)
        self.completed = 0.0
        self.words = ""

    @property
    def speed_words(self) -> str:
        """The recent speed: "2.31 it/s", or "4.20 s/it" below 1 step per second; empty if unknown."""
        if len(self._times) < 2:
            return ""
        (start, _), (end, _) = self._times[0], self._times[-1]
        steps = sum(count for _, count in list(self._times)[1:])
        if end <= start:
            return ""
        rate = steps / (end - start)
        return f"{rate:.2f} it/s" if rate >= 1 else f"{1 / rate:.2f} s/it"

    def advance(self, step: Step, now: float) -> None:
        """Process one step event that arrived at the time `now`, in seconds."""
        last = self._last
        is_new_pass = last is None or (step.first, step.stage) != (last.first, last.stage) or step.step <= last.step
        if is_new_pass and step.first == 1 and step.stage == "first":
            self._plan += 1
        if is_new_pass:
            # discard the earlier times: work between two passes, such as decoding, sends no step events and would
            # distort the speed
            self._times.clear()
            self._times.append((now, step.step))
        else:
            self._times.append((now, step.step - (last.step if last else 0)))
        self._last = step
        self.completed = min(self._done(step) / self._images, 1.0)
        self.words = self._words(step)

    def _done(self, step: Step) -> float:
        """Return the number of finished images plus the finished fraction of the images being rendered."""
        share = self._job[self._plan] if self._plan < len(self._job) else Share(step.count)
        before = sum(each.images for each in self._job[: self._plan]) + step.first - 1
        part = step.step / max(step.steps, 1)
        if step.stage in ("redraw", "upscale"):
            # count the image as finished, because it is unknown how long redrawing and upscaling take compared with the
            # steps
            part = 1.0
        elif step.stage == "first":
            part *= share.first_pass
        else:
            part = share.first_pass + part * (1 - share.first_pass)
        return before + step.pictures * part

    def _words(self, step: Step) -> str:
        last = step.first + step.pictures - 1
        which = f"{step.first} to {last}" if step.pictures > 1 else str(step.first)
        words = [f"image {which} of {step.count}"] if step.count > 1 or len(self._job) == 1 else []
        words += [f"{self._plan_word} {self._plan + 1} of {len(self._job)}"] * (len(self._job) > 1)
        words += ["second pass"] * (step.stage == "hires")
        words += ["detail pass"] * (step.stage == "redraw")
        words += [f"upscaling, tile {step.step} of {step.steps}"] * (step.stage == "upscale")
        return ", ".join(words) or counted(self._images, "image")
