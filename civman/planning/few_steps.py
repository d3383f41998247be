"""What to say when a checkpoint is made for few steps and is asked for with the steps and CFG scale of others.

Such models (Lightning, Turbo, LCM, Hyper, DMD) have the tensors of any other model of their family, so only CivitAI's
label or the file's name tells. Nothing is changed by it: the notice says what the models' authors recommend.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _FewSteps:
    word: str
    steps: tuple[int, int]
    cfg: tuple[float, float]
    options: str


_KINDS = (
    _FewSteps("Lightning", (2, 8), (1, 2.5), '--steps 8 --cfg 1.5 --sampler Euler --schedule "SGM Uniform"'),
    _FewSteps("Turbo", (1, 10), (1, 3), '--steps 6 --cfg 1.5 --sampler "Euler a"'),
    _FewSteps("LCM", (2, 12), (1, 2.5), "--steps 8 --cfg 1.5 --sampler LCM"),
    _FewSteps("Hyper", (1, 12), (1, 5), "--steps 8 --cfg 1.5 --sampler Euler"),
    _FewSteps("DMD2", (1, 12), (1, 2.5), "--steps 8 --cfg 1 --sampler LCM"),
)
"""The widest ranges that the models' own pages give. Merges of them stand more steps than the originals."""


def few_steps_notice(label: str | None, name: str, *, steps: int, cfg: float) -> str | None:
    """The notice for a checkpoint of this label and file name; None where it is no such model, or all is well.

    >>> few_steps_notice("SDXL Lightning", "a.safetensors", steps=8, cfg=2) is None
    True
    """
    for kind in _KINDS:
        # "lightning" means nothing else in a model's name; the others are parts of common words
        word = "lightning" if kind.word == "Lightning" else rf"(?<![a-z]){kind.word.lower()}(?![a-z])"
        if re.search(word, (label or "").lower()):
            witness = f"CivitAI says {label}"
        elif re.search(word, name.lower()):
            witness = "its name says so"
        else:
            continue
        if steps <= kind.steps[1] and cfg <= kind.cfg[1]:
            return None
        return (
            f"`{name}` is made for few steps ({kind.word}; {witness}): {kind.steps[0]} to {kind.steps[1]} steps at a "
            f"CFG scale of {kind.cfg[0]:g} to {kind.cfg[1]:g}, for example {kind.options}"
        )
    return None
