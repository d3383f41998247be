"""Searches CivitAI for models that fit a checkpoint, by CivitAI's base model labels."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from civman.civitai.client import CivitaiClient
from civman.domain.base_models import Support, architectures_of, known_labels, label_support
from civman.domain.catalog import ModelType, ModelVersion
from civman.domain.part_families import same_scale
from civman.domain.search_query import ModelPage, SearchQuery
from civman.errors import UsageError
from civman.manage.inspection import Inspected

_PLAIN_LABELS = ("SD 1.5", "SD 2.1", "SDXL 1.0", "Flux.1 D")
"""The most general labels, which are preferred if several labels have the same architecture."""


def search_fitting(
    client: CivitaiClient, query: SearchQuery, label: str, before_page: Callable[[], None]
) -> Iterator[ModelPage]:
    """Find models that match the query and have a version that fits, at least in part, a checkpoint with this label."""
    pages = (
        page
        for page in client.search(replace(query, limit=None), before_page=before_page)
        if any(support_of(version, label, page.model.type) is not Support.NONE for version in page.versions)
    )
    return islice(pages, query.limit)


def support_of(version: ModelVersion, label: str, model_type: ModelType) -> Support:
    """How well a version works with a checkpoint that has this label, judged by CivitAI's base model labels.

    CivitAI's table does not list all VAEs that work. Those for other models with the same scale of latents, such as
    SDXL's for Pony V7, count as partly supported.
    """
    said = version.base_model or ""
    support = label_support(label, said, model_type)
    if support is Support.NONE and model_type is ModelType.VAE:
        theirs = architectures_of(said)
        if any(same_scale(ours, theirs) for ours in architectures_of(label)):
            return Support.PARTIAL
    return support


def label_of(checkpoint: Inspected) -> str:
    """The base model label of a checkpoint: CivitAI's label, or else a general label for its architecture.

    Raises: UsageError: CivitAI has no label for the architecture.
    """
    labels = [label for label in known_labels() if checkpoint.part.architecture in architectures_of(label)]
    label = checkpoint.label or next((name for name in _PLAIN_LABELS if name in labels), next(iter(labels), None))
    if label is None:
        raise UsageError(
            f"CivitAI has no base model label for `{checkpoint.name}`", hint="`civman inspect` shows what the file is"
        )
    return label
