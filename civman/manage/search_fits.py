"""Searching CivitAI for models that go with a checkpoint, by CivitAI's labels."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from civman.civitai.client import CivitaiClient
from civman.domain.base_models import Support, architectures_of, known_labels, label_support
from civman.domain.search_query import ModelPage, SearchQuery
from civman.errors import UsageError
from civman.manage.inspection import Inspected

_PLAIN_LABELS = ("SD 1.5", "SD 2.1", "SDXL 1.0", "Flux.1 D")
"""Where several labels share an architecture, the one that says least beyond it."""


def search_fitting(client: CivitaiClient, query: SearchQuery, label: str) -> Iterator[ModelPage]:
    """Models that match and have a version that supports a checkpoint with this label, in part at least."""
    pages = (
        page
        for page in client.search(replace(query, limit=None))
        if any(
            label_support(label, version.base_model or "", page.model.type) is not Support.NONE
            for version in page.versions
        )
    )
    return islice(pages, query.limit)


def label_of(checkpoint: Inspected) -> str:
    """CivitAI's label for a checkpoint: as CivitAI says, else the plainest one for what its tensors show.

    Raises: UsageError: there is none.
    """
    labels = [label for label in known_labels() if checkpoint.part.architecture in architectures_of(label)]
    label = checkpoint.label or next((name for name in _PLAIN_LABELS if name in labels), next(iter(labels), None))
    if label is None:
        raise UsageError(f"CivitAI has no label for what `{checkpoint.name}` is", hint="try `civman inspect` on it")
    return label
