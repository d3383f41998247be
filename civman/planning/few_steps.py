"""Default steps and CFG scale of checkpoints that are made for few steps, and a notice about unsuitable values.

Such models (Lightning, Turbo, LCM, Hyper, DMD) have the same tensors as other models of their family, so only CivitAI's
label or the file's name shows the kind. Values that the user gives are never changed.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _FewSteps:
    word: str
    steps: tuple[int, int]
    cfg: tuple[float, float]
    usual: tuple[int, float]
    """The default steps and CFG scale, for renders in which the user sets none."""
    options: str


_KINDS = (
    _FewSteps("Lightning", (2, 8), (1, 2.5), (8, 1.5), '--steps 8 --cfg 1.5 --sampler Euler --schedule "SGM Uniform"'),
    _FewSteps("Turbo", (1, 10), (1, 3), (6, 1.5), '--steps 6 --cfg 1.5 --sampler "Euler a"'),
    _FewSteps("LCM", (2, 12), (1, 2.5), (8, 1.5), "--steps 8 --cfg 1.5 --sampler LCM"),
    _FewSteps("Hyper", (1, 12), (1, 5), (8, 1.5), "--steps 8 --cfg 1.5 --sampler Euler"),
    _FewSteps("DMD2", (1, 12), (1, 2.5), (8, 1.0), "--steps 8 --cfg 1 --sampler LCM"),
)
"""The kinds of few-step models, each with its default values and the widest ranges of steps and CFG scale that model
pages recommend.

Merged models also work with more steps.
"""


def few_steps_notice(label: str | None, name: str, *, steps: int, cfg: float) -> str | None:
    """Return the notice for a checkpoint with this label and file name; None if no notice is needed.

    >>> few_steps_notice("SDXL Lightning", "a.safetensors", steps=8, cfg=2) is None
    True
    """
    if (found := _kind(label, name)) is None:
        return None
    kind, witness = found
    if steps <= kind.steps[1] and cfg <= kind.cfg[1]:
        return None
    return (
        f"`{name}` is made for few steps ({kind.word}; {witness}): {kind.steps[0]} to {kind.steps[1]} steps at a "
        f"CFG scale of {kind.cfg[0]:g} to {kind.cfg[1]:g}, for example {kind.options}"
    )


def few_steps_defaults(
    label: str | None, name: str, *, steps: int | None, cfg: float | None
) -> tuple[int | None, float | None, str | None]:
    """Fill in this checkpoint's default steps and CFG scale if the user gave none. Also returns a notice about them.

    >>> few_steps_defaults("SDXL Lightning", "a.safetensors", steps=4, cfg=None)[:2]
    (4, 1.5)
    """
    found = _kind(label, name)
    if found is None or (steps is not None and cfg is not None):
        return steps, cfg, None
    kind, witness = found
    used = [f"{kind.usual[0]} steps"] if steps is None else []
    used += [f"a CFG scale of {kind.usual[1]:g}"] if cfg is None else []
    notice = f"`{name}` is made for few steps ({kind.word}; {witness}), so {' and '.join(used)} are used by default"
    return kind.usual[0] if steps is None else steps, kind.usual[1] if cfg is None else cfg, notice


def _kind(label: str | None, name: str) -> tuple[_FewSteps, str] | None:
    """Return the kind of few-step model that the label or the file's name indicates, and which of them indicates it."""
    for kind in _KINDS:
        # match "lightning" anywhere, but other kinds only as whole words: their names may be parts of common words
        word = "lightning" if kind.word == "Lightning" else rf"(?<![a-z]){kind.word.lower()}(?![a-z])"
        if re.search(word, (label or "").lower()):
            return kind, f"CivitAI says {label}"
        if re.search(word, name.lower()):
            return kind, "according to the file's name"
    return None
