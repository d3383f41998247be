"""Whether files work together: `check(checkpoint, parts)` returns a verdict with reasons, without opening any file.

There are three kinds of evidence, from weakest to strongest: CivitAI's labels, compared with the site's own table; the
architectures that the tensors show; and the shapes of every module of an adapter, compared with the checkpoint's
weights. A verdict names the strongest evidence that it is based on. docs/compatibility.md lists every case in which
tensors override labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from civman.domain.adapters.adapter_tensors import StatedAlphas, deltas_of
from civman.domain.adapters.ip_adapters import attention_problem, cross_attention, unusable
from civman.domain.adapters.module_fit import ModuleFit, fit_modules
from civman.domain.adapters.module_names import ModuleIndex
from civman.domain.architecture import Architecture, Identity, Kind
from civman.domain.base_models import Support, architectures_of, is_few_steps, label_support
from civman.domain.catalog import ModelType
from civman.domain.files.header import Header
from civman.domain.files.weight_forms import Quantisation, weight_form
from civman.domain.identification.claims import prediction_type
from civman.domain.part_families import SCALED_VAES, TEXT_WIDTHS, VAE_FAMILIES, same_scale
from civman.errors import Cause, Incompatible, UnknownFit

RULES = 7
"""The version of the rules that the verdicts are based on.

Increase it whenever `check` returns a different verdict for the same files.
"""


class Verdict(StrEnum):
    """The verdict on one part, or the worst verdict on several parts. The members are ordered from best to worst."""

    FITS = "fits"
    CAUTION = "fits with caution"
    UNKNOWN = "unknown"
    PARTLY = "partly applies"
    CANNOT = "cannot work"


_PACKED = frozenset(str(kind) for kind in Quantisation if not kind.is_computable)
"""Quantised formats that civman cannot unpack."""
_WITHOUT_SHAPES = frozenset((Quantisation.NF4, Quantisation.NVFP4, Quantisation.SVDQUANT, Quantisation.PACKED_INT4))
"""Quantised formats in which a tensor has another shape than the weight, so that modules cannot be compared."""
_WORSE = {verdict: place for place, verdict in enumerate(Verdict)}


class Depth(StrEnum):
    """The kind of evidence that a verdict is based on, from weakest to strongest."""

    NOTHING = "nothing"
    LABELS = "labels"
    ARCHITECTURE = "architecture"
    MODULES = "modules"


@dataclass(frozen=True, slots=True)
class Part:
    """What is known about one file. A field that is None is ignored."""

    name: str
    model_type: ModelType = ModelType.OTHER
    label: str | None = None
    """CivitAI's base model, verbatim."""
    identity: Identity | None = None
    header: Header | None = field(default=None, repr=False)
    numbers: Mapping[str, float] | None = field(default=None, repr=False)
    """The values of an adapter's single-number tensors (alphas); None if only the header was read."""
    role: Kind | None = None
    """What the user wants to use the file as, such as a VAE; None: whatever kind of file it is."""
    content: str = ""
    """The format of a file whose tensors civman cannot read, such as "empty" or "zip"."""

    @property
    def kind(self) -> Kind:
        """The kind of file according to its tensors, else its intended role, else CivitAI's model type."""
        if self.identity is not None and self.identity.kind is not Kind.UNKNOWN:
            return self.identity.kind
        return self.role or _KINDS.get(self.model_type, Kind.UNKNOWN)

    @property
    def architecture(self) -> Architecture:
        """The architecture according to the tensors; UNKNOWN without them."""
        return self.identity.architecture if self.identity else Architecture.UNKNOWN

    @property
    def weights(self) -> str:
        """How the weights are stored, such as "UNet fp8 with scales, rest fp16"; empty if unknown."""
        return self.identity.weights if self.identity else ""

    @property
    def possible(self) -> frozenset[Architecture]:
        """All architectures that the tensors allow; empty if the architecture is unknown."""
        if self.identity is None or self.architecture is Architecture.UNKNOWN:
            return frozenset()
        return frozenset((self.architecture, *self.identity.also))


_KINDS = {
    ModelType.CHECKPOINT: Kind.CHECKPOINT, ModelType.UNET: Kind.CHECKPOINT, ModelType.LORA: Kind.ADAPTER,
    ModelType.LOCON: Kind.ADAPTER, ModelType.DORA: Kind.ADAPTER, ModelType.EMBEDDING: Kind.EMBEDDING,
    ModelType.VAE: Kind.VAE, ModelType.CONTROLNET: Kind.CONTROLNET, ModelType.UPSCALER: Kind.UPSCALER,
    ModelType.MOTION_MODULE: Kind.MOTION_MODULE, ModelType.TEXT_ENCODER: Kind.TEXT_ENCODER,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartResult:
    """The verdict on one part used with a checkpoint, and the reasons for it."""

    name: str
    verdict: Verdict
    depth: Depth
    reasons: tuple[str, ...] = ()
    support: Support | None = None
    """CivitAI's level of support for the two labels; None if a label is missing."""
    modules: ModuleFit | None = None
    weights: str = ""
    """How the part's weights are stored, in words; empty if unknown."""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """The result of a check: the worst verdict, the reasons that concern the checkpoint, and each part's own result."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    parts: tuple[PartResult, ...] = ()
    """The results of the parts, in the order of the parts given to `check`."""
    weights: str = ""
    """How the checkpoint's weights are stored, in words; empty if unknown."""

    @property
    def cautions(self) -> tuple[str, ...]:
        """The warnings: the reasons that concern the checkpoint, and a sentence for each part that is not FITS.

        Each sentence contains up to three reasons.
        """
        parts = (
            f"`{part.name}`: {part.verdict}: {'; '.join(part.reasons[:3]) or 'no reason known'}"
            for part in self.parts
            if part.verdict is not Verdict.FITS
        )
        return (*self.reasons, *parts)

    def raise_if_blocked(self, *, allow_partial: bool = False) -> None:
        """Check that all parts can be used.

        Raises: Incompatible: a part cannot work, or it applies only partly and `allow_partial` is False.
        """
        blocking = (Verdict.CANNOT,) if allow_partial else (Verdict.CANNOT, Verdict.PARTLY)
        blocked = [part for part in self.parts if part.verdict in blocking]
        if blocked or self.verdict in blocking:
            reasons = [reason for part in blocked for reason in part.reasons] or list(self.reasons)
            names = ", ".join(f"`{part.name}`" for part in blocked)
            raise Incompatible(
                f"{names or 'the checkpoint'}: {self.verdict}: {reasons[0] if reasons else 'no reason given'}",
                code=Cause.CANNOT_WORK if self.verdict is Verdict.CANNOT else Cause.PARTLY_APPLIES,
                hint="`civman list --fits CHECKPOINT` lists the files that fit a checkpoint",
                parts=[part.name for part in blocked], reasons=reasons,
            )  # fmt: skip

    def raise_if_unknown(self) -> None:
        """Check that the verdict is known.

        Raises: UnknownFit: nothing that is known about the files shows whether they work together.
        """
        if self.verdict is not Verdict.UNKNOWN:
            return
        unknown = [part for part in self.parts if part.verdict is Verdict.UNKNOWN]
        reasons = [reason for part in unknown for reason in part.reasons] or list(self.reasons)
        names = ", ".join(f"`{part.name}`" for part in unknown)
        why = reasons[0] if reasons else "nothing is known about the file"
        raise UnknownFit(
            f"the verdict on {names or 'the checkpoint'} is unknown: {why}",
            hint="`civman inspect` shows what is known about a file",
            parts=[part.name for part in unknown], reasons=reasons,
        )  # fmt: skip


def check(checkpoint: Part, parts: Sequence[Part]) -> Compatibility:
    """Check whether the parts work with the checkpoint.

    The verdict and each part's result do not depend on the order of the parts.
    """
    own, base_verdict = _about_checkpoint(checkpoint)
    shows_shapes = (
        checkpoint.header is None or weight_form(checkpoint.header.tensors).quantisation not in _WITHOUT_SHAPES
    )
    wants = checkpoint.header is not None and shows_shapes and _wants_modules(parts)
    index = ModuleIndex.of_header(checkpoint.header) if checkpoint.header is not None and wants else None
    results = tuple(_result(checkpoint, part, index) for part in parts)
    if base_verdict is Verdict.CANNOT:
        results = tuple(
            PartResult(result.name, Verdict.CANNOT, result.depth, own, result.support, weights=result.weights)
            for result in results
        )
    verdict = worst([base_verdict, *(result.verdict for result in results)])
    return Compatibility(verdict=verdict, reasons=own, parts=results, weights=checkpoint.weights)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; FITS if there is none."""
    return max(verdicts, key=_WORSE.__getitem__, default=Verdict.FITS)


def _wants_modules(parts: Sequence[Part]) -> bool:
    return any(part.header is not None and part.kind is Kind.ADAPTER for part in parts)


def _about_checkpoint(checkpoint: Part) -> tuple[tuple[str, ...], Verdict]:
    if checkpoint.kind not in (Kind.CHECKPOINT, Kind.UNKNOWN):
        return (f"`{checkpoint.name}` is not a checkpoint: its tensors show {checkpoint.kind}",), Verdict.CANNOT
    if checkpoint.kind is Kind.UNKNOWN or (checkpoint.architecture is Architecture.UNKNOWN and not checkpoint.label):
        return (_why_unknown(checkpoint),), Verdict.UNKNOWN
    reasons = [*_label_conflict(checkpoint)]
    if checkpoint.architecture is Architecture.UNKNOWN:
        reasons.append(f"only CivitAI's label ({checkpoint.label}) says what `{checkpoint.name}` is")
    if checkpoint.weights in _PACKED:
        reasons.append(f"`{checkpoint.name}` is stored as {checkpoint.weights}, which civman cannot compute with")
    if checkpoint.architecture is Architecture.SDXL_REFINER:
        reasons.append(f"`{checkpoint.name}` is a refiner: it finishes images that another model has started")
    return tuple(reasons), Verdict.CAUTION if reasons else Verdict.FITS


def _why_unknown(checkpoint: Part) -> str:
    if checkpoint.header is None:
        content = f" (its content is {checkpoint.content})" if checkpoint.content else ""
        return f"civman cannot read the tensors of `{checkpoint.name}`{content}, so its architecture is unknown"
    if checkpoint.kind is Kind.UNKNOWN:
        return f"no rule recognises the tensors of `{checkpoint.name}`, so it may not be a checkpoint"
    return f"no rule recognises the family of `{checkpoint.name}`"


def _label_conflict(part: Part) -> tuple[str, ...]:
    known = architectures_of(part.label)
    if not known or part.architecture in (Architecture.UNKNOWN, Architecture.SD, *known) or part.kind is Kind.VAE:
        return ()
    return (f"CivitAI labels `{part.name}` {part.label}, but its tensors show {part.architecture}",)


@dataclass(slots=True)
class _Finding:
    """A verdict with its reasons, still under construction."""

    verdict: Verdict
    depth: Depth
    reasons: list[str]
    modules: ModuleFit | None = None

    def at_least(self, verdict: Verdict, reason: str) -> None:
        self.reasons.append(reason)
        self.verdict = worst((self.verdict, verdict))


def _result(checkpoint: Part, part: Part, index: ModuleIndex | None) -> PartResult:
    support = None
    if part.role is not None and part.kind is not part.role:
        reason = f"the file is used as {part.role}, but its tensors show {part.kind}"
        return PartResult(part.name, Verdict.CANNOT, Depth.ARCHITECTURE, (reason,), weights=part.weights)
    if checkpoint.label and part.label:
        support = label_support(checkpoint.label, part.label, _asked_type(part))
    match part.kind:
        case Kind.ADAPTER:
            finding = _adapter(checkpoint, part, index, support)
        case Kind.EMBEDDING:
            finding = _embedding(checkpoint, part, support)
        case Kind.VAE:
            finding = _vae(checkpoint, part, support)
        case Kind.IP_ADAPTER:
            finding = _ip_adapter(checkpoint, part, support)
        case Kind.UPSCALER | Kind.FACE_MODEL:
            depth = Depth.ARCHITECTURE if part.identity else Depth.LABELS
            finding = _Finding(Verdict.FITS, depth, [f"{part.kind.spoken} works on finished images"])
        case _:
            finding = _by_family(checkpoint, part, support)
    for conflict in _label_conflict(part):
        finding.at_least(Verdict.CAUTION, conflict)
    if part.model_type.is_adapter and part.kind is not Kind.ADAPTER:
        finding.at_least(Verdict.CANNOT, f"CivitAI lists the file as {part.model_type}, but it is {part.kind.spoken}")
    reasons = tuple(dict.fromkeys(finding.reasons))
    return PartResult(part.name, finding.verdict, finding.depth, reasons, support, finding.modules, part.weights)


def _asked_type(part: Part) -> ModelType:
    if part.model_type is ModelType.OTHER and part.identity is not None:
        return part.identity.model_type
    return part.model_type


def _by_labels(checkpoint: Part, part: Part, support: Support | None) -> _Finding:
    pair = f"{part.label} and {checkpoint.label}"
    match support:
        case Support.FULL:
            return _Finding(Verdict.FITS, Depth.LABELS, [f"CivitAI's table says {pair} go together"])
        case Support.PARTIAL:
            return _Finding(Verdict.CAUTION, Depth.LABELS, [_partial(checkpoint, part)])
        case Support.NONE:
            return _Finding(Verdict.CANNOT, Depth.LABELS, [f"CivitAI's table says {pair} do not go together"])
    return _Finding(
        Verdict.UNKNOWN, Depth.NOTHING, [f"nothing is known about `{part.name}` together with the checkpoint"]
    )


def _partial(checkpoint: Part, part: Part) -> str:
    return f"CivitAI's table lists {part.label} on {checkpoint.label} as partly supported: it may not work well"


def _by_family(checkpoint: Part, part: Part, support: Support | None) -> _Finding:
    """Compare the architectures of the two files; if one of them is unknown, compare the labels."""
    ours, theirs = checkpoint.architecture, part.architecture
    if Architecture.UNKNOWN in (ours, theirs):
        return _by_labels(checkpoint, part, support)
    if ours is not theirs and checkpoint.possible & part.possible:
        finding = _by_labels(checkpoint, part, support)
        finding.at_least(Verdict.CAUTION, f"the tensors may be for {ours} or for {theirs}, which look the same")
        return finding
    if ours is not theirs:
        return _Finding(Verdict.CANNOT, Depth.ARCHITECTURE, [f"made for {theirs}, but the checkpoint is {ours}"])
    finding = _Finding(Verdict.FITS, Depth.ARCHITECTURE, [f"both are {ours}"])
    _weigh_labels(checkpoint, part, support, finding)
    return finding


def _weigh_labels(checkpoint: Part, part: Part, support: Support | None, finding: _Finding) -> None:
    """Add the verdict of CivitAI's table on the two labels. If it contradicts the tensors, the tensors decide."""
    if finding.verdict in (Verdict.CANNOT, Verdict.PARTLY):
        if support is Support.FULL:
            finding.reasons.append(
                f"CivitAI's table says {part.label} and {checkpoint.label} go together, but the tensors show "
                "that they do not"
            )
    elif support is Support.PARTIAL:
        finding.at_least(Verdict.CAUTION, _partial(checkpoint, part))
    elif support is Support.NONE:
        finding.at_least(
            Verdict.CAUTION,
            f"CivitAI's table says {part.label} and {checkpoint.label} do not go together, but the tensors show "
            "that they do",
        )


def _adapter(checkpoint: Part, part: Part, index: ModuleIndex | None, support: Support | None) -> _Finding:
    finding = None
    if index is not None and part.header is not None:
        finding = _by_modules(checkpoint, part, index)
        if finding is not None:
            _weigh_labels(checkpoint, part, support, finding)
    if finding is None:
        finding = _by_family(checkpoint, part, support)
    if finding.verdict is Verdict.CANNOT:
        return finding
    _training_cautions(checkpoint, part, finding)
    return finding


def _training_cautions(checkpoint: Part, part: Part, finding: _Finding) -> None:
    flags = checkpoint.identity.flags if checkpoint.identity else ()
    said = prediction_type(part.header.metadata) if part.header else ""
    if "v-prediction" in flags and said != "v":
        reason = f"`{part.name}` states no prediction type, and the checkpoint uses v-prediction"
        if said:
            reason = f"`{part.name}` was trained for noise prediction, but the checkpoint uses v-prediction"
        finding.at_least(Verdict.CAUTION, reason)
    elif said == "v" and "v-prediction" not in flags and checkpoint.header is not None:
        finding.at_least(
            Verdict.CAUTION, f"`{part.name}` was trained for v-prediction, but the checkpoint shows no sign of it"
        )
    if is_few_steps(checkpoint.label) and not is_few_steps(part.label):
        finding.at_least(
            Verdict.CAUTION,
            f"{checkpoint.label} needs only a few steps: keep its recommended steps and CFG scale, and try other "
            "LoRA scales",
        )
    for flag in ("inpainting", "edit", "depth", "upscaling"):
        if flag in flags:
            finding.at_least(Verdict.CAUTION, f"the checkpoint has additional input channels ({flag})")
    if part.identity is not None and "damaged-modules" in part.identity.flags:
        finding.at_least(Verdict.CAUTION, f"some modules of `{part.name}` are incomplete")


_RENDERED = (Architecture.SD1, Architecture.SD2, Architecture.SDXL, Architecture.SDXL_REFINER)
"""Architectures whose modules are indexed under all known names, so a module that is not found cannot be applied."""


def _by_modules(checkpoint: Part, part: Part, index: ModuleIndex) -> _Finding | None:
    """Compare every module with the checkpoint's weights; None if the two files use names that civman cannot map."""
    assert part.header is not None
    fit = fit_modules(deltas_of(part.header), index, part.numbers)
    asked = fit.total - len(fit.elsewhere)
    ours, theirs = checkpoint.architecture, part.architecture
    known = Architecture.UNKNOWN not in (ours, theirs)
    differs = known and not checkpoint.possible & part.possible
    if fit.elsewhere and not asked:
        return None
    if known and ours is theirs and ours not in _RENDERED and not fit.fitting and not fit.mismatched:
        return None
    finding = _Finding(Verdict.FITS, Depth.MODULES, [fit.words], fit)
    if reason := _changes_nothing(part.header, fit):
        finding.at_least(Verdict.CANNOT, reason)
        return finding
    if fit.fitting == asked:
        if fit.elsewhere:
            finding.at_least(Verdict.CAUTION, "the adapter changes text encoders, which must come from another file")
        if differs:
            finding.at_least(Verdict.CAUTION, f"made for {theirs}, but all its modules fit this {ours} checkpoint")
        if fit.idle:
            finding.at_least(Verdict.CAUTION, f"{len(fit.idle)} modules change nothing: {fit.idle[0]}")
        return finding
    finding.reasons.extend(fit.mismatched[:3])
    finding.reasons.extend(f"{name}: not in the checkpoint" for name in fit.missing[:3])
    finding.reasons.extend(fit.unknown[:3])
    if differs:
        finding.at_least(Verdict.CANNOT, f"made for {theirs}, but the checkpoint is {ours}")
    elif not fit.fitting or (fit.fitting * 2 < asked and (fit.mismatched or not known)):
        finding.at_least(Verdict.CANNOT, "most modules do not fit" if fit.fitting else "none of the modules fits")
    else:
        finding.at_least(Verdict.PARTLY, "only the modules that fit can be applied")
    return finding


def _changes_nothing(header: Header, fit: ModuleFit) -> str:
    """Explain why an adapter has no effect, or an unknown effect, on any checkpoint; "" if it has a known effect."""
    if not fit.total:
        return "the adapter contains no change to any weight"
    if fit.fitting and len(fit.idle) == fit.fitting == fit.total:
        return f"the adapter changes nothing: {fit.idle[0]}"
    try:
        StatedAlphas(header.metadata)
    except ValueError:
        return "the metadata entry `lora_adapter_metadata` is not JSON, so the adapter's strength is not known"
    return ""


def _ip_adapter(checkpoint: Part, part: Part, support: Support | None) -> _Finding:
    """Compare the shapes of all cross-attention layers; if a header does not show them, compare the architectures."""
    finding, ours, theirs = _by_family(checkpoint, part, support), checkpoint.header, part.header
    if ours is None or theirs is None or weight_form(ours.tensors).quantisation in _WITHOUT_SHAPES:
        return finding
    layers = cross_attention(ours.shapes)
    if layers and (problem := attention_problem(ours.shapes, theirs.shapes)):
        finding = _Finding(Verdict.CANNOT, Depth.MODULES, [problem, *finding.reasons])
    elif layers:
        finding = _Finding(Verdict.FITS, Depth.MODULES, [f"all {len(layers)} attention layers fit the checkpoint"])
        _weigh_labels(checkpoint, part, support, finding)
    if reason := unusable(theirs.shapes, part.name):
        finding.at_least(Verdict.CAUTION, reason)
    return finding


def _embedding(checkpoint: Part, part: Part, support: Support | None) -> _Finding:
    ours = checkpoint.identity.text_widths if checkpoint.identity else ()
    ours = ours or TEXT_WIDTHS.get(checkpoint.architecture, ())
    theirs = part.identity.text_widths if part.identity else ()
    if not ours or not theirs:
        return _by_family(checkpoint, part, support)
    if checkpoint.architecture is Architecture.SDXL_REFINER and len(theirs) > 1:
        theirs = theirs[-1:]  # the SDXL refiner has only the second text encoder
    vectors, encoders = " and ".join(map(str, theirs)), " and ".join(map(str, ours))
    shown = f"the embedding's vectors have the width {vectors}, and the checkpoint's text encoders {encoders}"
    reached = [width for width in ours if width in theirs]
    foreign = [width for width in theirs if width not in ours]
    if not reached or foreign:
        finding = _Finding(Verdict.CANNOT, Depth.MODULES, [shown])
    elif len(reached) < len(ours):
        words = f"the embedding was trained for {len(reached)} of the {len(ours)} text encoders"
        finding = _Finding(Verdict.PARTLY, Depth.MODULES, [shown, words])
    else:
        finding = _Finding(Verdict.FITS, Depth.MODULES, [shown])
    _weigh_labels(checkpoint, part, support, finding)
    return finding


def _vae(checkpoint: Part, part: Part, support: Support | None) -> _Finding:
    """Compare latent channels and layout; if both match, the labels decide, as no tensor shows the latents' scale."""
    ours = checkpoint.identity.latent_channels if checkpoint.identity else None
    theirs = part.identity.latent_channels if part.identity else None
    if ours and theirs and ours != theirs:
        return _Finding(Verdict.CANNOT, Depth.MODULES, [f"it is a VAE for {theirs} latent channels instead of {ours}"])
    allowed = VAE_FAMILIES.get(part.architecture, set()) | part.possible
    known = Architecture.UNKNOWN not in (checkpoint.architecture, part.architecture)
    if known and checkpoint.architecture not in allowed:
        return _Finding(Verdict.CANNOT, Depth.ARCHITECTURE, [f"{checkpoint.architecture} uses another kind of VAE"])
    shared = same_scale(checkpoint.architecture, architectures_of(part.label))
    if (shared and support is Support.NONE) or (shared is not None and support is None):
        words = f"the latents of models for {part.label} have {'the same' if shared else 'another'} scale"
        return _Finding(Verdict.FITS if shared else Verdict.CANNOT, Depth.LABELS, [words])
    if support is not None:
        finding = _by_labels(checkpoint, part, support)
        if support is Support.NONE and ours and theirs:
            finding.reasons.append("the tensors match, but the latents have different scales, which no tensor shows")
        return finding
    if known and (len(allowed) == 1 or part.architecture in SCALED_VAES):
        return _Finding(Verdict.FITS, Depth.ARCHITECTURE, [f"the VAE was made for {checkpoint.architecture}"])
    if known:
        words = "several families have autoencoders with these tensors, and no tensor shows the scale of the latents"
        return _Finding(Verdict.CAUTION, Depth.ARCHITECTURE, [words])
    return _by_labels(checkpoint, part, support)
