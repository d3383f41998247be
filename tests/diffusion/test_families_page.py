# ruff: noqa: E402  (imports that need torch come after the question whether it is there)
"""The page of families lists what the registry has, with the parts that each family asks for."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import test_flow_maps
import tiny_flows

from civman.diffusion.families.registry import FLOW_FAMILIES, UNET_FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ROWS = {
    cells[0]: cells
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
}


def test_every_family_has_a_row_and_no_other() -> None:
    assert set(ROWS) - {"family"} == {family.title for family in (*UNET_FAMILIES, *FLOW_FAMILIES)}


@pytest.mark.parametrize("family", FLOW_FAMILIES, ids=str)
def test_a_row_names_the_parts_and_what_is_proven(family: object) -> None:
    title, needs, name = family.title, family.needs, family.name  # type: ignore[attr-defined]
    cells = ROWS[title]

    assert set(re.findall(r"`([\w.-]+)`", cells[3])) == {need.kind.role for need in needs if need.kind.role != "vae"}
    assert "image" in cells[5]
    assert any(each.startswith(name) for each in tiny_flows.TINY)
    assert ("key table" in cells[5]) == any(each.startswith(name) for each in test_flow_maps.FULL)
