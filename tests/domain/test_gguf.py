"""GGUF headers, written here by the format's description, are read within limits; damaged ones are refused."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from civman.domain.files.gguf import NeedsMore, parse_gguf
from civman.errors import InvalidModelFile
from civman.manage.inspection import inspect_path


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def written(tensors, *, architecture="flux", extra=()):
    entries = [text("general.architecture") + struct.pack("<I", 8) + text(architecture), *extra]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries)
    for name, (kind, shape) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, 0)
    return head


TENSORS = {"double_blocks.0.img_attn.qkv.weight": (12, (9216, 3072)), "img_in.bias": (0, (3072,))}
SMALL = {"double_blocks.0.img_attn.qkv.weight": (12, (24, 256)), "img_in.bias": (0, (16,))}
ARRAY = text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")


def test_architecture_quantisation_and_tensors_are_read():
    header = parse_gguf(written(TENSORS, extra=[ARRAY]))

    assert (header.architecture, header.quantisation, header.version) == ("flux", "Q4_K", 3)
    assert header.tensors["double_blocks.0.img_attn.qkv.weight"] == ("Q4_K", (9216, 3072))
    assert header.words == "GGUF, flux, Q4_K, 2 tensors"


def test_a_cut_header_asks_for_more_and_a_whole_one_is_refused():
    head = written(TENSORS, extra=[ARRAY])

    for end in range(4, len(head)):
        with pytest.raises(NeedsMore):
            parse_gguf(head[:end])
    with pytest.raises(InvalidModelFile, match="truncated"):
        parse_gguf(head[:-1], is_whole=True)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 50), "longer"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), "unknown type"),
        (b"no mark at all", "magic bytes"),
    ],
)
def test_what_no_real_file_holds_is_refused(head, said):
    with pytest.raises(InvalidModelFile, match=said):
        parse_gguf(head)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 150))
def test_damaged_headers_are_refused_or_read_and_never_fail_otherwise(noise, at):
    head = bytearray(written(TENSORS, extra=[ARRAY]))
    head[at : at + len(noise)] = noise
    try:
        parse_gguf(bytes(head), is_whole=True)
    except InvalidModelFile:
        return


def test_inspection_names_a_gguf_file(tmp_path):
    path = tmp_path / "flux-Q4_K.gguf"
    path.write_bytes(written(SMALL) + bytes(4096))

    found = inspect_path(path)

    assert found.gguf is not None
    assert found.gguf.words == "GGUF, flux, Q4_K, 2 tensors"
    assert found.header is not None
    assert found.header.shapes == {name: shape for name, (_, shape) in SMALL.items()}
    assert found.identity is not None


def test_of_a_file_that_ends_before_its_last_tensor_the_header_is_read_and_the_weights_are_not(tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(written(TENSORS) + bytes(4096))

    found = inspect_path(path)

    assert found.gguf is not None
    assert found.conflicts[0].startswith("truncated: according to its header")
    with pytest.raises(InvalidModelFile, match="truncated"):
        found.gguf.require_complete()
