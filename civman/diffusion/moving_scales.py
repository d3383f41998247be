"""Changes the scales of merged adapters between the steps of a render.

Only weights that are affected by an adapter with a new scale are computed again, each from the checkpoint's own tensor.
So every weight has exactly the bits that `merge_adapters.apply` would give it at these scales.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import nn

from civman.diffusion.component_layouts import Source
from civman.diffusion.match_adapter import Adapter, match_file, weights_of
from civman.diffusion.merge_adapters import Base, Later, in_order, rewrite
from civman.diffusion.tensor_files import open_tensors


class MovingScales:
    """Changes the scales of adapters that `merge_adapters.apply` has merged; keeps their files open."""

    def __init__(
        self, components: Mapping[str, nn.Module], base: Base, adapters: Sequence[Adapter], *,
        unused: Iterable[tuple[str, str]] = (), sources: Mapping[str, Mapping[str, Source]] = {},
        later: Later | None = None,
    ) -> None:  # fmt: skip
        """Open the adapters' files. The arguments must be those of the call to `merge_adapters.apply`.

        Raises: InvalidModelFile, Refused: a file cannot be read.
        """
        self._components, self._base, self._later = components, base, later
        index = weights_of(components, unused, sources)
        with ExitStack() as files:
            self._plans = [match_file(each, files.enter_context(open_tensors(each.path)), index) for each in adapters]
            self._files = files.pop_all()

    def set(self, scales: Sequence[float]) -> None:
        """Merge the adapters again at these UNet scales, one for each adapter; text encoder scales stay the same."""
        changed = []
        for plan, scale in zip(self._plans, scales, strict=True):
            if plan.adapter.unet_scale != scale:
                plan.adapter = replace(plan.adapter, unet_scale=scale)
                changed.append(plan)
        touched = {place for plan in changed for place in plan.acts if not place[0].startswith("text_encoder")}
        acting = in_order(self._plans)
        places = {
            place: [plan for plan in acting if place in plan.acts and plan.adapter.scale(place) != 0]
            for place in sorted(touched)
        }
        rewrite(self._components, self._base, places, self._later)

    def close(self) -> None:
        """Close the adapters' files; the weights keep their current scales."""
        self._files.close()
