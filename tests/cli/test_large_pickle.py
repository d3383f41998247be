"""A checkpoint of more than 4 GB as a pickle is inspected in the time and memory that its names take."""

import json
import math
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import headers
import hostile_pickles as parts
import pytest

from civman.store.read_pickle import read_pickle


def _pickle(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries = []
    for number, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = parts.tuple_of(
            parts.text("storage"), parts.name("torch.FloatStorage"), parts.text(str(number)), parts.text("cpu"),
            parts.number(math.prod(shape)),
        ) + b"Q"  # fmt: skip
        tensor = parts.tensor(
            parts.tuple_of(*map(parts.number, shape)), parts.tuple_of(*map(parts.number, strides)), storage=storage
        )
        entries.append(parts.text(name) + tensor)
    return parts.PROTO + b"}" + parts.text("state_dict") + b"}(" + b"".join(entries) + b"us."


def _sparse_archive(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write an archive whose storages are holes in the file, with the zip64 fields that its size needs."""
    data, directory = _pickle(shapes), []
    sizes = {"data.pkl": len(data)} | {f"data/{i}": math.prod(shape) * 4 for i, shape in enumerate(shapes.values())}
    with path.open("wb") as file:
        for member, size in sizes.items():
            at, name, crc = file.tell(), f"archive/{member}".encode(), zlib.crc32(data) if member == "data.pkl" else 0
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0, 0, 0, 0, crc, size, size, len(name), 0) + name)
            if member == "data.pkl":
                file.write(data)
            else:
                file.seek(size, os.SEEK_CUR)
            extra = struct.pack("<2HQ", 1, 8, at) if at >= 0xFFFFFFFF else b""
            place = min(at, 0xFFFFFFFF)
            head = (b"PK\1\2", 0, 0, 0, 0, 0, 0, crc, size, size, len(name), len(extra), 0, 0, 0, 0, place)
            directory.append(struct.pack("<4s6H3L5H2L", *head) + name + extra)
        at, entries, count = file.tell(), b"".join(directory), len(directory)
        file.write(entries)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, count, count, len(entries), at))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(entries), min(at, 0xFFFFFFFF), 0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_four_gigabytes_are_inspected_in_half_a_second_and_60_megabytes(tmp_path: Path) -> None:
    shapes = {name: tuple(shape) for name, (_, shape) in headers.case("own/ckpt-sd15")["tensors"].items()}
    shapes["model_ema.another"] = (1 << 13, 1 << 13)  # places beyond 4 GiB need the fields of zip64
    path = tmp_path / "model.ckpt"
    _sparse_archive(path, shapes)
    assert path.stat().st_size > 4 << 30

    began = time.process_time()
    assert len(read_pickle(path).header.tensors) == len(shapes)
    assert time.process_time() - began < 0.5

    code = f"from civman.cli.app import main; main(['inspect', {str(path)!r}, '--json', '--offline']); import sys;"
    code += "print(open('/proc/self/status').read(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)["inspect"]["tensors_show"]
    assert (shown["kind"], shown["architecture"]) == ("checkpoint", "sd1")
    (peak,) = (line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    assert int(peak.split()[1]) * 1024 < 60e6, peak
