"""The package's map: one name once, nothing loose at the top, every room on the architecture page."""

import ast
import re
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "civman"
LOOSE = {"__init__.py", "__main__.py", "error_codes.py", "errors.py", "settings.py"}


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]


def test_no_module_name_occurs_twice() -> None:
    twice = [name for name, count in Counter(path.name for path in modules()).items() if count > 1]

    assert twice == []


def test_nothing_is_loose_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == LOOSE


def test_the_map_has_a_line_for_every_room_and_no_other() -> None:
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")

    listed = re.findall(r"^\| `([a-z_/]+)/` \|", page, re.MULTILINE)

    assert sorted(listed) == sorted(rooms)


def test_no_module_is_longer_than_500_lines() -> None:
    long = {path.name: count for path in modules() if (count := len(path.read_text("utf-8").splitlines())) > 500}

    assert long == {}


def test_only_a_family_s_own_module_asks_which_family_it_is() -> None:
    """Everything that differs between families is an answer of the family, so that a new one is one new module."""
    rooms = [PACKAGE / "diffusion", PACKAGE / "planning", PACKAGE / "rendering"]
    asking = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for room in rooms
        for path in sorted(room.rglob("*.py"))
        if path.parent.name != "families"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare | ast.Match) and _names_a_family(node)
    ]

    assert asking == []


def _names_a_family(node: ast.Compare | ast.Match) -> bool:
    sides = [node.subject] if isinstance(node, ast.Match) else [node.left, *node.comparators]
    if any(isinstance(side, ast.Constant) and side.value is None for side in sides):
        return False  # whether there is a family at all
    words = [side.attr if isinstance(side, ast.Attribute) else getattr(side, "id", "") for side in sides]
    inner = [side.value for side in sides if isinstance(side, ast.Attribute) and side.attr == "name"]
    words += [side.attr if isinstance(side, ast.Attribute) else getattr(side, "id", "") for side in inner]
    return "family" in words
