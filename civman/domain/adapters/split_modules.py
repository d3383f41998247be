"""The weights of a loaded transformer under the names of both layouts: the loaded model's and the file's.

If a fused layer of the file (such as query, key and value) is divided among several modules of the model, an adapter
that was made for the fused layer changes some of the rows in each module. How the two layouts correspond is known from
loading the model, so this module needs no rules for particular families.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from civman.domain.adapters.module_names import Piece, Shape, Weight

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "net.", "model.")


class Origin(NamedTuple):
    """Where a parameter of the loaded model comes from: a tensor's name in the file, and the rows used (None: all).

    `swaps_halves`: the second half of the tensor's rows comes first in the model.
    """

    name: str
    rows: tuple[int, int] | None = None
    swaps_halves: bool = False


def transformer_weights(
    component: str, shapes: Mapping[str, Shape], origins: Mapping[str, Origin], prefix: str
) -> dict[str, Weight]:
    """Map the names of a loaded model's modules to their weights: both the names in the model and those in the file.

    Modules without a weight are left out. The names have dots and no prefix. If `component` is a network other than the
    transformer, the component's name precedes the names of its modules in the loaded model.

    Args:
        component: the component's name in the loaded model.
        shapes: the shapes of its parameters.
        origins: where each parameter comes from; a parameter that is not listed has the same name in the file.
        prefix: what precedes the names in the file (`common_prefix`).
    """
    found: dict[str, Weight] = {}
    own = "" if component == "transformer" else f"{component}."
    joint: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if not name.endswith(".weight"):
            continue
        module = name.removesuffix(".weight")
        found[own + module] = Weight("unet", module, shape, shapes.get(f"{module}.bias"), component=component)
        origin = origins.get(name, Origin(prefix + name))
        original = origin.name.removeprefix(prefix).removesuffix(".weight")
        if origin.rows is not None or origin.swaps_halves:
            joint.setdefault(original, []).append(module)
        elif original != module:
            found.setdefault(original, found[own + module])
    for original, modules in joint.items():
        found[original] = _joint(original, [found[own + module] for module in modules], origins)
    return found


def _joint(original: str, weights: Sequence[Weight], origins: Mapping[str, Origin]) -> Weight:
    pieces, rows, biases = [], 0, 0
    for weight in weights:
        module, origin = weight.name, origins[f"{weight.name}.weight"]
        count = weight.shape[0]
        start = origin.rows[0] if origin.rows is not None else 0
        half = count // 2
        taken = ((start + half, count - half), (start, half)) if origin.swaps_halves else ((start, count),)
        pieces.append(Piece(module, taken))
        rows += count
        biases += weight.bias[0] if weight.bias else 0
    first = weights[0]
    bias = (biases,) if biases == rows else None
    return Weight("unet", original, (rows, *first.shape[1:]), bias, component=first.component, pieces=tuple(pieces))


def common_prefix(names: Iterable[str]) -> str:
    """Return the known prefix that all these names have in common; "" if there is none."""
    every = list(names)
    return next((prefix for prefix in _PREFIXES if every and all(name.startswith(prefix) for name in every)), "")
