"""Reads the refiner and the separate values of the second pass from other programs' settings.

Source: A1111 1.3 (prompts of the second pass), 1.5 (the second pass's LoRAs are those in its own prompt), 1.6 (a
checkpoint for the second pass, and refiners) and 1.8 (switches to the refiner at a noise level); Forge switches after a
number of steps.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from civman.diffusion import samplers
from civman.domain.digests import Sha256
from civman.domain.recipes.complete import REFINER_AT
from civman.domain.recipes.recipe import CheckpointUse, Hires, HypernetworkUse, Recipe, Refiner
from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_prompts import TaggedLora, as_in_version, negative_words, read_tags
from civman.planning.redraw_result import stand_in
from civman.prompts import editing

HIRES_CHECKPOINT: Final = "hires-checkpoint"
REFINER: Final = "refiner"
"""The role of a refiner's checkpoint among the files that settings name."""
SECOND_ENTRIES: Final = re.compile("Hires (checkpoint|prompt|negative prompt)$")
"""Matches the names of metadata entries that concern only the second pass."""
_NAMED: Final = re.compile(r"(.*?)\s*\[([0-9a-fA-F]{8,64})\]")


@dataclass(slots=True)
class OwnTexts:
    """The prompts, LoRAs and hypernetworks that only the second pass uses; prompts are without tags.

    A value of None means that the second pass uses that of the first pass.
    """

    prompt: str | None = None
    negative: str | None = None
    loras: Sequence[TaggedLora] | None = None
    networks: Sequence[tuple[str, float]] | None = None
    reasons: list[Reason] = field(default_factory=list)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts that the second pass has of its own."""
        return tuple(text for text in (self.prompt, self.negative) if text is not None)

    def of_hires(self, hires: Hires) -> Hires:
        """Return `hires` with the prompts and adapters of this object, and with placeholders for file digests."""
        loras, networks = self.loras, self.networks
        return replace(
            hires, prompt=self.prompt, negative_prompt=self.negative,
            loras=None if loras is None else tuple(each.use(stand_in(each.name), has_hires=True) for each in loras),
            hypernetworks=None if networks is None else tuple(
                HypernetworkUse(stand_in(name), strength) for name, strength in networks
            ),
        )  # fmt: skip


def own_texts(
    entries: Entries, version: tuple[int, int], emphasis: str, loras: Sequence[TaggedLora],
    networks: Sequence[tuple[str, float]],
) -> OwnTexts:  # fmt: skip
    """Read the second pass's own prompts.

    `emphasis`: the recipe's rule for emphasis. `loras` and `networks`: those that the settings contain outside the
    prompts, so they act in both passes.
    """
    found = OwnTexts()
    prompt, negative = (_whole(entries, name, found) for name in ("Hires prompt", "Hires negative prompt"))
    if negative is not None:
        words, kept = negative_words(negative, emphasis)
        found.negative = as_in_version(words, entries, emphasis)
        found.reasons += kept
    if prompt is not None:
        read = read_tags(prompt, version)
        found.prompt = as_in_version(read.text, entries, emphasis)
        found.reasons += read.reasons
        if version >= (1, 5):
            found.loras, found.networks = [*read.loras, *loras], [*networks, *read.hypernetworks]
    return found


def _whole(entries: Entries, name: str, found: OwnTexts) -> str | None:
    """Return a prompt of the second pass with its tags; None if the settings contain no complete prompt."""
    text = entries.value(name)
    if not isinstance(text, str) or not text:
        return None
    if text.startswith('"'):
        words = (
            f"CivitAI cut off the second pass's {name.partition(' ')[2]} at its first comma; download the image to use "
            "the complete prompt in its file"
        )
        found.reasons.append(Reason(Drawable.NO, words))
        return None
    return text


def counted_for_own_sampler(hires: Hires, prompt: str, rules: str, sampler: samplers.Sampler) -> Hires:
    """Copy the prompt to the second pass if that pass's sampler needs a different number of evaluations per step.

    A recipe counts the evaluations of the second pass's own sampler only if the second pass has a prompt of its own.
    """
    if not hires.sampler or rules != editing.Rule.V1_6 or (hires.prompt, hires.negative_prompt) != (None, None):
        return hires
    own = samplers.BY_NAME[hires.sampler]
    return hires if own.calls_per_step == sampler.calls_per_step else replace(hires, prompt=prompt)


def second_checkpoint(entries: Entries) -> NamedFile | None:
    """Return the checkpoint of the second pass; None if it is the first pass's."""
    return _named(entries.text("Hires checkpoint"), HIRES_CHECKPOINT)


def refiner(entries: Entries, version: tuple[int, int], *, has_hires: bool) -> tuple[NamedFile, Refiner] | None:
    """Return the refiner's checkpoint, and its entry in the recipe; None if there is no refiner.

    The entry contains a placeholder for the checkpoint's digest.
    """
    entries.take(re.compile("Refiner|Hires refiner$"))
    file = _named(entries.text("Refiner"), REFINER)
    if file is None:
        return None
    if not file.hash:
        file = replace(file, hash=entries.text("Refiner hash").casefold())
    at = entries.number("Refiner switch at")
    by_steps = entries.is_on("Refiner switch by sampling steps") or entries.is_forge or version < (1, 8)
    passes = entries.text("Hires refiner").casefold().partition(" ")[0] or "second"
    return file, Refiner(
        _use(file), REFINER_AT if at is None else at, by_steps, passes if has_hires else "second"
    )  # fmt: skip


def with_second_checkpoint(hires: Hires, file: NamedFile | None) -> Hires:
    """Return the second pass with a placeholder for the digest of its own checkpoint `file`, if it has one."""
    return hires if file is None else replace(hires, checkpoint=_use(file))


def stand_in_of(file: NamedFile) -> Sha256:
    """Return the placeholder for a file's digest, which recipes contain as long as only the file's name is known."""
    if file.role in (HIRES_CHECKPOINT, REFINER):
        return stand_in(f"{file.role} {file.name} {file.hash}")
    return stand_in("checkpoint" if file.role == "checkpoint" else file.name)


def named_stages(made: Recipe, value: dict[str, Any], resources: Sequence[NamedFile]) -> None:
    """Put the names and hashes of the second pass's and the refiner's files into a recipe's JSON value."""
    names = {(each.role, stand_in_of(each)): {"name": each.name, "hash": each.hash} for each in resources}
    if made.refiner is not None:
        value["refiner"] |= {"checkpoint": names[REFINER, made.refiner.checkpoint.sha256]}
        del value["refiner"]["is_same_family"]
    hires = made.hires
    if hires is None:
        return
    if hires.checkpoint is not None:
        value["hires"] |= {"checkpoint": names[HIRES_CHECKPOINT, hires.checkpoint.sha256]}
    for key, role in (("loras", "lora"), ("hypernetworks", "hypernetwork")):
        for each in value["hires"][key] or ():
            each |= names[role, each.pop("sha256")]


def _use(file: NamedFile) -> CheckpointUse:
    return CheckpointUse(stand_in_of(file), "epsilon", is_zero_snr=False)


def _named(text: str, role: str) -> NamedFile | None:
    if text.casefold() in ("", "none") or text.casefold().startswith("use same"):
        return None
    found = _NAMED.fullmatch(text)
    return NamedFile(role, found[1], found[2].casefold()) if found else NamedFile(role, text)
