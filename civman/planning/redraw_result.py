"""The result of converting another program's settings: a recipe, or the reasons why there is none."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from civman.diffusion import sampler_names, samplers, sampling_plan
from civman.domain.digests import Sha256
from civman.domain.recipes.control import ControlRequest
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.reference import ReferenceRequest
from civman.pictures.site_settings import NamedFile
from civman.planning import prompt_stages
from civman.planning.redraw_features import RANK, Drawable, Reason
from civman.prompts import emphasis

SMALLEST_CARD: Final = 20480
"""The thread count of the smallest common GPU. Noise with at most this many values is the same on every GPU."""
OPEN: Final = ("prediction", "is_zero_snr", "precision", "config")
"""The fields of a request that depend only on the checkpoint and the machine."""


@dataclass(frozen=True, slots=True)
class Redraw:
    """The result of converting one image's settings: a verdict with reasons and, if possible, a recipe.

    `recipe` is a JSON object with the names and hashes in the settings.
    """

    id: object
    drawable: Drawable
    reasons: tuple[str, ...]
    resources: tuple[NamedFile, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    made: Recipe | None = None
    """The recipe, with placeholders from `stand_in` for the digests of files; None if there is none."""
    leaves: tuple[str, ...] = OPEN
    """The fields of a request that depend on the checkpoint, because the settings do not contain them."""
    controls: tuple[ControlRequest, ...] = ()
    """Requests for ControlNet units. The ref is a model's name; `picture` is empty if no picture was passed for the
    unit.
    """
    references: tuple[ReferenceRequest, ...] = ()
    """Requests for units with an IP-Adapter. The ref is a model's name; `picture` is empty if none was passed."""

    def value(self) -> dict[str, Any]:
        """Return the result as a dictionary that can be serialised to JSON."""
        return {
            "id": self.id, "drawable": self.drawable.value, "reasons": list(self.reasons),
            "resources": [asdict(each) for each in self.resources], "recipe": self.recipe,
        }  # fmt: skip


def verdict_of(found: Sequence[Reason]) -> tuple[Drawable, tuple[str, ...]]:
    """Return the worst verdict among the reasons, and the text of each reason, worst first."""
    ordered = sorted(found, key=lambda each: -RANK.index(each.verdict))
    verdict = max((each.verdict for each in found), key=RANK.index, default=Drawable.EXACT)
    return verdict, tuple(dict.fromkeys(each.words for each in ordered))


def require_plannable(made: Recipe) -> None:
    """Check everything in a recipe that does not depend on its models. Raises: UsageError: no model can render it."""
    prompt_stages.require_readable(made)
    sampler, schedule, levels = sampler_names.of_recipe(made)
    sampling_plan.plan(sampler, schedule, made.steps, levels, sigmas=made.sampling.sigmas)
    if made.hires:
        start = samplers.Start(made.hires.strength, keeps_steps=True)
        sampler, schedule, levels = sampler_names.of_second_pass(made)
        sampling_plan.plan(sampler, schedule, made.hires.steps, levels, start=start)
    if made.emphasis != "comfyui":
        first, second = prompt_stages.passes_of(made)
        for text in dict.fromkeys(text for each in (first, second) if each for text in each.texts()):
            emphasis.parse(text)


def stand_in(name: str) -> Sha256:
    """Return a placeholder for an unknown digest, so that the recipe's other values can be checked."""
    return Sha256(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest())
