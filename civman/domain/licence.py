"""What licences allow, in sentences: for one model, and for a checkpoint together with its adapters.

Two licences apply to every file: the one that its creator chose on CivitAI, and the licence of its base model. The
stricter one counts, and an unknown licence is not treated as permission. This is not legal advice.

Source: CivitAI's published constants (August 2026) and the licences they name, summarised in `data/licences.json`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from civman.domain.base_models import label_key
from civman.domain.catalog import Licence


class Answer(StrEnum):
    """The answer to a question about a licence."""

    YES = "yes"
    CONDITIONAL = "conditional"
    """Allowed under a condition that the reasons describe."""
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the models that are used together."""

    name: str
    licence: Licence = Licence()  # noqa: RUF009  # frozen, so instances can share one value
    base_model: str | None = None
    creator: str | None = None
    stated: Answer | None = None
    """Whether images may be sold, if that is known without looking at `licence` and `base_model`."""
    reason: str = ""
    """The reason for the answer in `stated`; empty if it is YES."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is permitted for images that are made with all parts together, and why."""

    sell_pictures: Answer
    must_credit: Answer
    credit_to: tuple[str, ...] = ()
    """The models that must be credited, with their creators if known."""
    reasons: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The terms in sentences: first whether images may be sold, then who must be credited."""
        selling = {
            Answer.YES: "images may be sold",
            Answer.CONDITIONAL: "images may be sold on a condition",
            Answer.NO: "images may not be sold",
            Answer.UNKNOWN: "it is not known whether images may be sold",
        }[self.sell_pictures]
        credit = {
            Answer.YES: f"credit required: {', '.join(self.credit_to)}",
            Answer.NO: "no credit required",
        }.get(self.must_credit, "it is not known whether credit is required")
        return selling, credit


@dataclass(frozen=True, slots=True)
class BaseLicence:
    """The licence of a base model.

    `pictures`: whether images may be sold; `note`: the condition, or the reason why they may not be sold.
    """

    name: str
    url: str
    pictures: Answer
    note: str = ""


@cache
def _by_key() -> Mapping[str, BaseLicence]:
    data = json.loads(files("civman.domain").joinpath("data/licences.json").read_text(encoding="utf-8"))
    return {
        label_key(label): BaseLicence(name, entry["url"], Answer(entry["pictures"]), entry["note"])
        for name, entry in data["licences"].items()
        for label in entry["labels"]
    }


def base_licence(label: str | None) -> BaseLicence | None:
    """Look up the licence of a CivitAI base-model label; None if it is unknown."""
    return _by_key().get(label_key(label or ""))


def labels_not_for_sale() -> tuple[str, ...]:
    """List the keys (see `label_key`) of the base-model labels whose licence forbids commercial use."""
    return tuple(label for label, licence in _by_key().items() if licence.pictures is Answer.NO)


def terms_of(parts: Sequence[Part]) -> Terms:
    """Combine the terms of `parts` for images made with all of them. If one part forbids a use, it is forbidden.

    >>> terms_of([Part("Harbour", Licence(False, ("Image",)), "SD 1.5")]).words
    ('images may be sold', 'no credit required')
    """
    selling: list[Answer] = []
    credit: list[Answer] = []
    reasons: list[str] = []
    named: list[str] = []
    for part in parts:
        if part.stated is not None:
            selling.append(part.stated)
            reasons += [part.reason] if part.reason else []
            continue
        answer, why = _creator_on_selling(part)
        base_answer, base_why = _base_on_selling(part)
        selling += [answer, base_answer]
        reasons += [*why, *base_why]
        required = part.licence.credit_required
        credit.append(Answer.UNKNOWN if required is None else Answer.YES if required else Answer.NO)
        if required:
            named.append(f"{part.name} by {part.creator}" if part.creator else part.name)
    return Terms(
        _strictest(selling, (Answer.NO, Answer.UNKNOWN, Answer.CONDITIONAL)),
        _strictest(credit, (Answer.YES, Answer.UNKNOWN), otherwise=Answer.NO),
        tuple(dict.fromkeys(named)),
        tuple(dict.fromkeys(reasons)),
    )


def licence_words(licence: Licence) -> str:
    """Describe in words what a creator permits.

    >>> licence_words(Licence(True, (), False))
    'no commercial use; credit required; no merges'
    """
    if licence.commercial_use is None:
        return "not said"
    uses = {
        "Image": "sell images",
        "RentCivit": "use on CivitAI's generation service",
        "Rent": "use on other paid generation services",
        "Sell": "sell the model",
    }
    allowed = [uses.get(use, use) for use in licence.commercial_use if use != "None"]
    words = ["may " + ", ".join(allowed) if allowed else "no commercial use"]
    if licence.credit_required is not None:
        words.append("credit required" if licence.credit_required else "no credit required")
    if licence.derivatives_allowed is not None:
        words.append("merges allowed" if licence.derivatives_allowed else "no merges")
    return "; ".join(words)


def _creator_on_selling(part: Part) -> tuple[Answer, list[str]]:
    uses = part.licence.commercial_use
    if uses is None:
        return Answer.UNKNOWN, [f"{part.name}: its creator's terms are not known"]
    if "Image" not in uses:
        return Answer.NO, [f"{part.name}: its creator does not allow images to be sold"]
    return Answer.YES, []


def _base_on_selling(part: Part) -> tuple[Answer, list[str]]:
    licence = base_licence(part.base_model)
    if licence is None:
        label = f"base model {part.base_model}" if part.base_model else "its base model"
        return Answer.UNKNOWN, [f"{part.name}: the licence of {label} is not known"]
    if licence.pictures is Answer.YES:
        return Answer.YES, []
    note = f" ({licence.note})" if licence.note else ""
    return licence.pictures, [f"{part.name}: base model {part.base_model} has the {licence.name}{note}: {licence.url}"]


def _strictest(answers: Iterable[Answer], order: Sequence[Answer], *, otherwise: Answer = Answer.YES) -> Answer:
    given = set(answers)
    if not given:
        return Answer.UNKNOWN
    return next((answer for answer in order if answer in given), otherwise)
