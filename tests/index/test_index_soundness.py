"""`civman doctor` compares the database with the tables as they are written down."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from running import Civman

from civman.index import Index
from civman.index.schema_check import faults


def spoil(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(sql)
        connection.commit()


def test_a_new_library_is_sound(tmp_path: Path) -> None:
    Index.open(tmp_path / "library.db").close()

    assert faults(tmp_path / "library.db") == ()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("DROP INDEX ix_rendering_recipe_sha256", "index `ix_rendering_recipe_sha256` is missing"),
        ("ALTER TABLE asset ADD COLUMN odd TEXT", "column `odd` should not exist"),
        ("DROP TABLE pin", "table `pin` is missing"),
        (
            "INSERT INTO annotation VALUES (99, '', '[]', '[]', NULL, 0)",
            "a row of `annotation` refers to a missing row",
        ),
    ],
)
def test_what_is_odd_is_named(tmp_path: Path, sql: str, words: str) -> None:
    Index.open(tmp_path / "library.db").close()
    spoil(tmp_path / "library.db", sql)

    assert any(words in fault for fault in faults(tmp_path / "library.db"))


def test_doctor_says_so_and_how_to_go_on(civman: Civman, root: Path) -> None:
    Index.open(root / "library.db").close()
    assert "the database is intact" in civman("doctor", "--offline").out
    spoil(root / "library.db", "DROP TABLE pin")

    done = civman("doctor", "--offline")

    assert done.code == 1
    assert "table `pin` is missing" in done.out
    assert "civman verify --rebuild" in done.out + done.err
