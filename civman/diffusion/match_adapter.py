"""Matching an adapter file against a model: what it acts on, what of it finds nothing, and the report of both.

Reads names and shapes only, so a misfit is known before any weight is touched.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from civman.diffusion import adapter_names, weight_change
from civman.diffusion.adapter_formulas import Kind
from civman.diffusion.tensor_files import TensorFile
from civman.errors import Cause, Incompatible, InvalidModelFile

_SHOWN = 5
"""How many unmatched modules an error names in its text; all of them are in its facts."""
_ENDINGS = sorted(weight_change.SUFFIXES, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter file and how strongly it acts on the UNet and on the text encoders."""

    path: Path
    sha256: str
    unet_scale: float = 1.0
    te_scale: float = 1.0
    name: str = ""

    @property
    def label(self) -> str:
        """What messages call it: its name, else its file's."""
        return self.name or self.path.name

    def scale(self, component: str) -> float:
        """How strongly it acts on one component."""
        return self.unet_scale if component == adapter_names.UNET else self.te_scale


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A module of the adapter file that changed nothing, and why."""

    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What one adapter did.

    `matched` are the model's modules it acts on, `unmatched` those of its own that found nothing to act on, `kinds`
    the ways it stores changes, `norms` the Frobenius norm of scale · Δ per component (before rounding), `parameters`
    what was written: (component, parameter).
    """

    name: str
    sha256: str
    kinds: tuple[str, ...]
    matched: tuple[str, ...]
    unmatched: tuple[Unmatched, ...]
    norms: Mapping[str, float]
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Act:
    """What one module of an adapter file does to one parameter: which tensors play which part."""

    kind: Kind
    parts: Mapping[str, str]
    alpha: float | None


@dataclass(slots=True)
class Plan:
    """An adapter matched against the model, and what merging it showed."""

    adapter: Adapter
    file: TensorFile
    acts: dict[tuple[str, str], Act] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    squares: dict[str, float] = field(default_factory=dict)
    changes_bits: bool = False

    @property
    def is_asked_for_nothing(self) -> bool:
        """Whether its scales are 0 wherever it could act."""
        return all(self.adapter.scale(component) == 0 for component, _ in self.acts)

    def coverage(self) -> Coverage:
        """The report."""
        return Coverage(
            name=self.adapter.label,
            sha256=self.adapter.sha256,
            kinds=tuple(sorted(self.kinds)),
            matched=tuple(self.matched),
            unmatched=tuple(self.unmatched),
            norms={component: math.sqrt(square) for component, square in sorted(self.squares.items())},
            parameters=tuple(place for place in self.acts if self.adapter.scale(place[0]) != 0),
        )


def match(
    adapter: Adapter,
    file: TensorFile,
    index: Mapping[str, adapter_names.Target],
    parameters: Mapping[str, Mapping[str, nn.Parameter]],
) -> Plan:
    """What the file does to the model, and which of its modules do nothing.

    `index` is `adapter_names.spellings` of the components, `parameters` each component's own by name.
    """
    plan = Plan(adapter, file)
    alphas = _PeftAlphas.read(file, adapter.path)
    groups: dict[str, dict[str, str]] = {}
    for key in sorted(file.keys()):
        ending = next((ending for ending in _ENDINGS if key.endswith(f".{ending}")), None)
        if ending is None:
            plan.unmatched.append(Unmatched(key, "not a tensor of any known kind of adapter"))
            continue
        part = weight_change.SUFFIXES[ending]
        if part == "on_input" and not bool(file.get_tensor(key).reshape(-1)[0]):
            part = "on_output"
        group = groups.setdefault(key[: -len(ending) - 1], {})
        if part in group:
            plan.unmatched.append(Unmatched(key, f"says the same as {group[part]}"))
        group.setdefault(part, key)
    for module, parts in groups.items():
        reason = _match_module(plan, parts, index.get(module), parameters, alphas)
        if reason is not None:
            plan.unmatched.append(Unmatched(module, reason))
    return plan


def _match_module(
    plan: Plan,
    parts: Mapping[str, str],
    target: adapter_names.Target | None,
    parameters: Mapping[str, Mapping[str, nn.Parameter]],
    alphas: "_PeftAlphas",
) -> str | None:
    """Note in the plan what a module of the file does; why it does nothing, if so."""
    if target is None:
        return "not in the model"
    kind = weight_change.kind_of(parts.keys())
    if kind is None:
        return f"tensors {', '.join(sorted(parts))} are no known kind of adapter"
    own = parameters[target.component]
    weight, bias = (f"{target.module}.{name}" for name in ("weight", "bias"))
    if (target.component, weight) in plan.acts:
        return f"names the same weight as another module of the file: {target}"
    shapes = {part: tuple(plan.file.get_slice(key).get_shape()) for part, key in parts.items()}
    reason = weight_change.misfit(kind, shapes, tuple(own[weight].shape))
    if reason is None and "diff_b" in shapes:
        found = tuple(own[bias].shape) if bias in own else None
        if found != shapes["diff_b"]:
            reason = f"bias of shape {shapes['diff_b']} against {found}"
    if reason is not None:
        return reason
    alpha = alphas.of(target, shapes["down"][0]) if "down" in shapes and "alpha" not in shapes else None
    plan.acts[target.component, weight] = Act(kind, {p: k for p, k in parts.items() if p != "diff_b"}, alpha)
    if "diff_b" in parts:
        whole = weight_change.kind_of({"diff"})
        assert whole is not None
        plan.acts[target.component, bias] = Act(whole, {"diff": parts["diff_b"]}, None)
    plan.matched.append(str(target))
    plan.kinds.add(weight_change.label(kind, parts.keys()))
    return None


def require_coverage(plan: Plan, *, allow_partial: bool) -> None:
    """Raises: Incompatible: it fits nothing, or only in part where that is not allowed."""
    label = plan.adapter.label
    reasons = [f"{miss.module}: {miss.reason}" for miss in plan.unmatched]
    if not plan.matched:
        raise Incompatible(
            f"adapter `{label}` fits nothing in this model" + (f": {reasons[0]}" if reasons else ": it is empty"),
            code=Cause.ADAPTER_NO_MATCH,
            hint="it was made for another kind of model",
            adapter=label,
            unmatched=reasons,
        )
    if reasons and not allow_partial:
        rest = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise Incompatible(
            f"adapter `{label}` fits only in part: {len(plan.matched)} modules match, {len(reasons)} do not "
            f"({'; '.join(reasons[:_SHOWN])}{rest})",
            code=Cause.ADAPTER_PARTIAL,
            hint="use it as far as it fits with --allow-partial",
            adapter=label,
            matched=len(plan.matched),
            unmatched=reasons,
        )


@dataclass(frozen=True, slots=True)
class _PeftAlphas:
    """Alpha where the file says it in its header, as diffusers has since 0.35: `lora_adapter_metadata`."""

    said: Mapping[str, object]

    @staticmethod
    def read(file: TensorFile, path: Path) -> "_PeftAlphas":
        text = (file.metadata() or {}).get("lora_adapter_metadata")
        if text is None:
            return _PeftAlphas({})
        try:
            said = json.loads(text)
        except ValueError as error:
            raise InvalidModelFile(f"`{path.name}`: its adapter metadata is not JSON", name=path.name) from error
        return _PeftAlphas(said if isinstance(said, dict) else {})

    def of(self, target: adapter_names.Target, rank: int) -> float | None:
        """Alpha for one module such that alpha / rank is its scale; None when the header is silent."""
        alpha = self.said.get(f"{target.component}.lora_alpha")
        pattern = self.said.get(f"{target.component}.alpha_pattern")
        for key, value in pattern.items() if isinstance(pattern, dict) else ():
            if f".{target.module}".endswith(f".{key}"):
                alpha = value
                break
        if not isinstance(alpha, (int, float)):
            return None
        # rank-stabilised LoRA divides by √rank
        return alpha * math.sqrt(rank) if self.said.get(f"{target.component}.use_rslora") else float(alpha)
