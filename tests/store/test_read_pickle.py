"""Files of torch.save as containers: archives and sequences of pickles that are damaged, ambiguous or hostile."""

import struct
import time
import zipfile
import zlib
from pathlib import Path

import hostile_pickles as corpus
import pytest
from hostile_pickles import archive, sequence

from civman.errors import CivmanError, InvalidModelFile, Refused
from civman.store.read_pickle import read_pickle, require_readable, write_safetensors


def written(tmp_path: Path, data: bytes, name: str = "model.pt") -> Path:
    (path := tmp_path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("form", [archive, sequence])
def test_both_containers_give_the_tensor_and_its_bytes(tmp_path: Path, form: object) -> None:
    path = written(tmp_path, form())  # type: ignore[operator]
    found = read_pickle(path)

    with (tmp_path / "copy.safetensors").open("wb") as target:
        write_safetensors(path, found, target, {"from": "here"})

    copy = (tmp_path / "copy.safetensors").read_bytes()
    assert {name: (each.dtype, each.shape) for name, each in found.header.tensors.items()} == {"a": ("F32", (4,))}
    assert copy[8 + int.from_bytes(copy[:8], "little") :] == bytes(range(16))
    assert b'"from":"here"' in copy


def test_a_compressed_archive_gives_the_right_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, archive(method=zipfile.ZIP_DEFLATED))

    with (tmp_path / "copy.safetensors").open("wb") as target:
        write_safetensors(path, read_pickle(path), target, {})

    assert (tmp_path / "copy.safetensors").read_bytes().endswith(bytes(range(16)))


@pytest.mark.parametrize("case", ["REDUCE", "INST", "by exec", "STACK_GLOBAL"])
@pytest.mark.parametrize("form", [archive, sequence])
def test_a_hostile_pickle_is_named_with_the_part_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, form: object
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, form(corpus.RUNS[case]))  # type: ignore[operator]

    with pytest.raises(Refused) as refused:
        read_pickle(path)

    member = "data.pkl" if form is archive else "the main pickle"
    assert f"`{'builtins.exec' if case == 'by exec' else 'os.mkdir'}` in {member}" in refused.value.message
    assert not (tmp_path / corpus.CANARY).exists()


@pytest.mark.parametrize("place", range(5))
def test_each_pickle_of_a_sequence_is_read_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """A hostile pickle in place of torch's own number, version, system, object or list of storages."""
    monkeypatch.chdir(tmp_path)
    parts = [
        corpus.PROTO + corpus.number(0x1950A86A20F9469CFC6C) + b".", corpus.PROTO + b"M\xe9\x03.", corpus.PROTO + b"}.",
        corpus.HARMLESS, corpus.PROTO + b"](" + corpus.text("0") + b"e.",
    ]  # fmt: skip
    parts[place] = corpus.RUNS["REDUCE"]

    with pytest.raises(Refused, match=r"`os.mkdir` in the (first|second|third|main|list)"):
        read_pickle(written(tmp_path, b"".join(parts) + struct.pack("<q", 4) + bytes(16)))

    assert not (tmp_path / corpus.CANARY).exists()


@pytest.mark.parametrize("case", corpus.BROKEN_TENSORS)
@pytest.mark.parametrize("form", [archive, sequence])
def test_no_tensor_is_taken_at_its_word(tmp_path: Path, case: str, form: object) -> None:
    with pytest.raises((InvalidModelFile, Refused)):
        read_pickle(written(tmp_path, form(corpus.in_dict(corpus.BROKEN_TENSORS[case]))))  # type: ignore[operator]


def test_tensors_that_share_a_storage_do_not_grow_without_end(tmp_path: Path) -> None:
    whole = corpus.tensor(
        corpus.tuple_of(corpus.number(1 << 18)), corpus.tuple_of(b"K\x01"),
        storage=corpus.tuple_of(corpus.text("storage"), corpus.name("torch.FloatStorage"), corpus.text("0"),
                                corpus.text("cpu"), corpus.number(1 << 18)) + b"Q",
    )  # fmt: skip
    many = corpus.in_dict(b"](" + whole + b"q\x00" + b"h\x00" * 9 + b"e")

    with pytest.raises(InvalidModelFile, match="share their storages"):
        read_pickle(written(tmp_path, archive(many, **{"data/0": bytes(1 << 20)})))


def _changed(data: bytes, old: bytes, new: bytes, count: int = 1) -> bytes:
    assert old in data
    return data.replace(old, new, count)


def _with_entry(data: bytes, change: "object") -> bytes:
    """The archive with one field of the directory's first entry changed: (offset in the entry, format, value)."""
    offset, form, value = change  # type: ignore[misc]
    at = data.index(b"PK\x01\x02") + offset
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


PLAIN = archive()
END = PLAIN.rindex(b"PK\x05\x06")
ARCHIVES = {
    "cut": PLAIN[:-30],
    "a comment behind it": PLAIN[:-2] + b"\x04\0abcd",
    "bytes behind it": PLAIN + b"\0",
    "bytes before it": b"PK\x03\x04" + bytes(60) + PLAIN,
    "a second pickle": archive(**{"other.pkl": corpus.RUNS["REDUCE"]}),
    "a pickle one folder down": archive(**{"data/evil.pkl": corpus.RUNS["REDUCE"]}),
    "a program": archive(**{"code/__torch__.py": b"import os"}),
    "another file": archive(**{"setup.py": b"import os"}),
    "a member above the folder": _changed(PLAIN, b"archive/version", b"../../x/version", 2),
    "two folders": _changed(PLAIN, b"archive/version", b"brchive/version", 2),
    "two names of one member": _changed(PLAIN, b"archive/data.pkl", b"archive/version/", 1),
    "one name twice": archive(**{"data/1": bytes(16)}).replace(b"archive/data/1", b"archive/data/0"),
    "an encrypted member": _with_entry(PLAIN, (8, "<H", 1)),
    "an unknown compression": _with_entry(PLAIN, (10, "<H", 14)),
    "two sizes": _with_entry(PLAIN, (24, "<L", 5)),
    "a wrong checksum": _with_entry(PLAIN, (16, "<L", 5)),
    "a member that is elsewhere": _with_entry(PLAIN, (42, "<L", 30)),
    "a member beyond the file": _with_entry(PLAIN, (42, "<L", 0xFFFFFFF0)),
    "members that overlap": _with_entry(_with_entry(PLAIN, (20, "<L", 10_000)), (24, "<L", 10_000)),
    "a million members": PLAIN[:END] + PLAIN[END : END + 8] + b"\xfe\xff\xfe\xff" + PLAIN[END + 12 :],
    "an endless directory": PLAIN[:END] + PLAIN[END : END + 12] + b"\xff\xff\xff\x7f" + PLAIN[END + 16 :],
    "one part of several": PLAIN[:END] + PLAIN[END : END + 4] + b"\x01\0" + PLAIN[END + 6 :],
    "big-endian numbers": archive(byteorder=b"big"),
    "no pickle": _changed(PLAIN, b"archive/data.pkl", b"archive/data/123", 2),
    "a storage that is too short": archive(**{"data/0": bytes(15)}),
    "a storage that is too long": archive(**{"data/0": bytes(17)}),
    "a pickle that goes on": archive(corpus.HARMLESS + corpus.RUNS["REDUCE"]),
    "a pickle without end": archive(corpus.HARMLESS[:-1]),
    "a compressed pickle that expands": archive(corpus.PROTO + b"N0" * 20_000_000 + b"N.", method=zipfile.ZIP_DEFLATED),
    "a compressed storage that expands": archive(method=zipfile.ZIP_DEFLATED, **{"data/0": bytes(100_000_000)}),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_programs_could_read_in_two_ways_is_refused(tmp_path: Path, case: str) -> None:
    path, began = written(tmp_path, ARCHIVES[case]), time.process_time()

    with pytest.raises(CivmanError) as refused:
        read_pickle(path)

    assert isinstance(refused.value, InvalidModelFile | Refused)
    assert time.process_time() - began < 4.0


SEQUENCES = {
    "cut in a pickle": sequence()[:60], "cut in a storage": sequence()[:-1], "cut before a storage": sequence()[:-20],
    "bytes behind it": sequence() + b"\0",
    "another number": sequence().replace(corpus.number(0x1950A86A20F9469CFC6C), corpus.number(7)),
    "another version": sequence().replace(b"M\xe9\x03", b"M\xea\x03"),
    "big-endian": sequence().replace(corpus.text("little_endian") + b"\x88", corpus.text("little_endian") + b"\x89"),
    "a storage of another length": sequence().replace(struct.pack("<q", 4), struct.pack("<q", 3)),
    "a storage of negative length": sequence().replace(struct.pack("<q", 4), struct.pack("<q", -4)),
    "a storage that nothing uses": sequence().replace(b"](" + corpus.text("0"), b"](" + corpus.text("1")),
    "storages that are no list": sequence().replace(b"](" + corpus.text("0") + b"e", corpus.text("0")),
    "a plain pickle": corpus.HARMLESS, "nothing": b"", "text": b"hello", "numbers": bytes(300),
}  # fmt: skip


@pytest.mark.parametrize("case", SEQUENCES)
def test_a_sequence_that_is_not_whole_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(InvalidModelFile):
        read_pickle(written(tmp_path, SEQUENCES[case]))


def test_a_damaged_compressed_storage_is_found_when_it_is_read(tmp_path: Path) -> None:
    data = bytearray(archive(method=zipfile.ZIP_DEFLATED))
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    struct.pack_into("<L", data, at + 16, zlib.crc32(b"other"))
    path = written(tmp_path, bytes(data))

    with pytest.raises(InvalidModelFile, match="damaged"), (tmp_path / "copy").open("wb") as target:
        write_safetensors(path, read_pickle(path), target, {})


def test_a_gate_opens_for_what_is_read_whole(tmp_path: Path) -> None:
    require_readable(written(tmp_path, archive(), "a.pt"), "a.pt")
    require_readable(written(tmp_path, struct.pack("<Q", 2) + b"{}", "b.ckpt"), "b.ckpt")

    for data in (archive(corpus.RUNS["REDUCE"]), b"cos\nmkdir\n(S'canary'\ntR.", b"hello", archive()[:-1]):
        with pytest.raises(Refused) as refused:
            require_readable(written(tmp_path, data, "c.pt"), "c.pt")
        assert refused.value.code == "pickle"
        assert "`c.pt`" in refused.value.message
        assert "--allow-pickle" in refused.value.hint
