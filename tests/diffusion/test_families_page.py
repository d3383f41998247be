# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The tables of the page of families are made from the registry, the published sizes and the tests' own lists."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("gguf")

import published_sizes

from civman.diffusion.families.registry import FLOW_FAMILIES, UNET_FAMILIES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_are_what_the_registry_and_the_tests_say() -> None:
    spec = importlib.util.spec_from_file_location("family_tables", DOCS / "family_tables.py")
    assert spec
    assert spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)

    assert tables.page() == tables.PAGE.read_text(encoding="utf-8"), "run `python docs/generate.py`"


def test_every_family_has_a_published_size() -> None:
    assert published_sizes.MODELS.keys() == {family.name for family in FLOW_FAMILIES}
    assert published_sizes.UNETS.keys() == {family.name for family in UNET_FAMILIES}
