"""Names in a view: never two alike where case does not count, never too long, never one that Windows refuses."""

from dataclasses import replace
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stock import stock

from civman.domain.catalog import Asset
from civman.domain.digests import Sha256
from civman.exchange.view_names import free_name, stem_key
from civman.index import Index

NAMES = st.one_of(
    st.sampled_from(
        ["a.safetensors", "A.SafeTensors", "a.ckpt", "CON", "con.ckpt", "x" * 300 + ".pt", "", "ß.pt", "SS.pt"]
    ),
    st.text(alphabet="aAbB.é漢: ", max_size=90),
)


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Asset:
    root = tmp_path_factory.mktemp("named")
    stock(root, 1)
    with Index.open(root / "library.db") as index:
        return index.assets()[0]


@given(names=st.lists(NAMES, min_size=1, max_size=8), most_bytes=st.integers(min_value=40, max_value=200))
def test_names_in_one_folder_differ_by_more_than_case(asset: Asset, names: list[str], most_bytes: int) -> None:
    taken: dict[tuple[str, str], Asset] = {}
    for number, name in enumerate(names):
        sha256 = Sha256(f"{number:064x}"[::-1])
        each = replace(asset, name=name, blob=replace(asset.blob, sha256=sha256))
        rival = taken.get(stem_key("loras", free_name(each, "loras", (), None, most_bytes)))
        made = free_name(each, "loras", taken.keys(), rival, most_bytes)

        assert stem_key("Loras", made) not in taken
        assert len(made.encode()) <= most_bytes + 1
        assert Path(made).name == PureWindowsPath(made).name == made
        assert made == made.strip(" .")
        taken[stem_key("loras", made)] = each
