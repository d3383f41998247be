"""Other digests of a file. BLAKE3 is compared with the test vectors that its authors publish."""

from pathlib import Path

import pytest
from running import Civman

from civman.store.other_digests import computed_kinds, other_digests

pytest.importorskip("blake3", reason="needs the extra blake3")

VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}
"""Length of the input 0, 1, 2 … 250, 0, 1 … → BLAKE3. Source: test_vectors.json of the BLAKE3 team."""


@pytest.mark.parametrize("length", VECTORS)
def test_blake3_is_that_of_its_authors(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(number % 251 for number in range(length)))
    assert "blake3" in computed_kinds()
    assert other_digests(path, whole=True).blake3 == VECTORS[length]


def test_an_imported_file_is_found_by_its_blake3_without_a_network(civman: Civman, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    header = b'{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    assert civman("import", "--offline", path).code == 0
    digest = other_digests(path, whole=True).blake3
    assert digest is not None
    assert "mine.safetensors" in civman("show", digest, "--offline").out
    assert civman("show", f"{digest[:-1]}{'0' if digest[-1] != '0' else '1'}", "--offline").code == 3
