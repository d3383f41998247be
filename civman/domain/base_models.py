"""CivitAI's base-model labels: which of them belong together, and which combinations the site supports.

`label_support` returns the site's verdict on two labels, and `architectures_of` the architectures to expect for a
label. A label is free text from the uploader; an unknown label is compatible only with itself. Case, spaces, dashes and
underscores are ignored, because CivitAI itself has spelled some labels in two ways ("Krea2", "Krea 2").

Source: CivitAI's published constants (August 2026), rewritten in `data/base_models.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

from civman.domain.architecture import Architecture
from civman.domain.catalog import ModelType


class Support(StrEnum):
    """CivitAI's levels of support for using a resource with a checkpoint."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class _Table:
    labels: tuple[str, ...]
    ecosystems: Mapping[str, str]
    """Maps the key of a base-model label (see `label_key`) to the ecosystem that the label belongs to."""
    architectures: Mapping[str, frozenset[Architecture]]
    """Maps each ecosystem to the architectures of its models."""
    few_steps: frozenset[str]
    partial: Mapping[str, Mapping[str, frozenset[str]]]
    """For each model type, and each ecosystem of checkpoints: the ecosystems whose resources are partly supported."""


@cache
def _table() -> _Table:
    data = json.loads(files("civman.domain").joinpath("data/base_models.json").read_text(encoding="utf-8"))
    return _Table(
        labels=tuple(label for entry in data["ecosystems"].values() for label in entry["labels"]),
        ecosystems={label_key(label): name for name, entry in data["ecosystems"].items() for label in entry["labels"]},
        architectures={
            name: frozenset(map(Architecture, entry.get("architectures", ())))
            for name, entry in data["ecosystems"].items()
        },
        few_steps=frozenset(map(label_key, data["few_steps"])),
        partial={
            kind: {checkpoint: frozenset(resources) for checkpoint, resources in rows.items()}
            for kind, rows in data["partial"].items()
        },
    )


def label_key(label: str) -> str:
    """Normalise a label by ignoring case, spaces, dashes and underscores, so that "Krea2" and "Krea 2" are equal."""
    return "".join(char for char in label.casefold() if char not in " -_")


def known_labels() -> tuple[str, ...]:
    """List all base-model labels that CivitAI had when the table was created."""
    return _table().labels


def ecosystem_of(label: str | None) -> str | None:
    """Return the ecosystem of a label, which is CivitAI's unit of compatibility; None for an unknown label."""
    return _table().ecosystems.get(label_key(label or ""))


def architectures_of(label: str | None) -> frozenset[Architecture]:
    """Return the possible architectures of files with this label; empty if the label is unknown."""
    return _table().architectures.get(ecosystem_of(label) or "", frozenset())


def is_few_steps(label: str | None) -> bool:
    """Whether models with this label are distilled for few sampling steps (Turbo, Lightning, LCM, Hyper …)."""
    return label_key(label or "") in _table().few_steps


def compatible_labels(checkpoint_label: str) -> tuple[str, ...]:
    """List the labels that CivitAI supports on checkpoints with this label, for at least one type of model."""
    kinds = (ModelType.LORA, ModelType.EMBEDDING, ModelType.VAE)
    return tuple(
        label
        for label in known_labels()
        if any(label_support(checkpoint_label, label, kind) is not Support.NONE for kind in kinds)
    )


def label_support(checkpoint_label: str, resource_label: str, model_type: ModelType) -> Support:
    """Return CivitAI's level of support for a resource with one label on a checkpoint with another label.

    >>> label_support("Illustrious", "Pony", ModelType.LORA).value
    'partial'
    """
    table = _table()
    checkpoint, resource = ecosystem_of(checkpoint_label), ecosystem_of(resource_label)
    if label_key(checkpoint_label) == label_key(resource_label) or (checkpoint is not None and checkpoint == resource):
        return Support.FULL
    if checkpoint is None or resource is None:
        return Support.NONE
    partial = table.partial.get(model_type.value, {}).get(checkpoint, frozenset())
    return Support.PARTIAL if resource in partial else Support.NONE
