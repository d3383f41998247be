"""Which refs mean a file whose ids are known."""

import pytest

from civman.domain.catalog import FileId, ModelId, VersionId
from civman.domain.digests import Sha256
from civman.domain.ref_matching import KnownIds, means

SHA256 = Sha256("ac83e9f734277dcce627046569dccac19cbd29a2632730b00b00cce0afd4267c")
KNOWN = KnownIds(SHA256, ModelId(10), VersionId(11), FileId(12), ("harbour", "A b.safetensors", "123"))


@pytest.mark.parametrize(
    "text",
    [
        "10", "11", "civitai:10", "civitai:10+12", "@11", "10@11", "10@11+12", "@11+12",
        "urn:air:sd1:lora:civitai:10@11", "civitai:10@11", "https://civitai.com/models/10?modelVersionId=11",
        SHA256, SHA256[:10], f"sha256:{SHA256[:12]}",
        "HARBOUR", "a b.SAFETENSORS", "name:123", "123",
    ],
)  # fmt: skip
def test_every_form_of_a_ref_is_recognised(text: str) -> None:
    assert means(text, KNOWN)


@pytest.mark.parametrize(
    "text",
    [
        "12", "9@11", "10@12", "10@11+13", "civitai:11", "civitai:10+13", "sha256:ac83e9f735", "harbou", "picture:10",
        "https://example.org/10", "", "@", "abc@", "crc32:ac83e9f7",
    ],
)  # fmt: skip
def test_other_refs_are_not(text: str) -> None:
    assert not means(text, KNOWN)


def test_a_file_without_names_and_ids_is_recognised_by_its_digest_only() -> None:
    bare = KnownIds(SHA256, names=("",))

    assert means(f"sha256:{SHA256[:10]}", bare)
    assert not any(means(text, bare) for text in ("", "10", "@11", "name:x"))
