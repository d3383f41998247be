"""Throws damaged and random bytes at the header reader: `python tests/fuzz_header.py SECONDS [SEED]`.

Holds: only InvalidModelFile leaves `parse` and `needed_bytes`, what is accepted passes every check of the format, no
input takes more than a few seconds, and the memory that the process ever had stays under a bound.
"""

import json
import random
import resource
import struct
import sys
import time
import tracemalloc

from civman.domain.files.header import BITS, parse, sniff
from civman.errors import InvalidModelFile

MAX_RSS_MIB = 512
MAX_TRACED_MIB = 160
MAX_SECONDS_EACH = 8.0
"""Processor time under tracemalloc, which costs fivefold; a whole header of 65,000 tensors takes 0.4 s without."""


def valid(rng: random.Random) -> tuple[bytes, int]:
    at, document = 0, {}
    if rng.random() < 0.5:
        document["__metadata__"] = {
            f"k{i}": "v" * rng.randrange(40) + rng.choice(["", "é", '"', "\\", "\n", "😀"])
            for i in range(rng.randrange(6))
        }
    for index in range(rng.randrange(12)):
        dtype = rng.choice([name for name, bits in BITS.items() if bits >= 8])
        shape = [rng.choice([0, 1, 2, 3, 5, 320]) for _ in range(rng.randrange(4))]
        size = BITS[dtype] // 8
        for dim in shape:
            size *= dim
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        if rng.random() < 0.1:
            entry = dict(rng.sample(list(entry.items()), 3))
        document[f"{rng.choice(['a', 'b.weight', 'é', ''])}{index}"] = entry
        at += size
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1])).encode()
    text += b" " * rng.choice([0, 0, 3])
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + at


PIECES = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u0000", b"\\ud800", b"0", b"-1", b"1e9", b"NaN", b"null",
          b'"dtype"', b'"F16"', b'"shape"', b'"__metadata__"', b"18446744073709551616", b"9" * 30, b"\xff", b"\0",
          b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', b"  ", b"\t"]  # fmt: skip


def mutated(rng: random.Random, head: bytes) -> bytes:
    data = bytearray(head)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.choice(PIECES)
            case 2:
                del data[at : at + rng.randrange(1, 12)]
            case 3:
                piece = bytes(data[at : at + rng.randrange(1, 80)])
                data[at:at] = piece
            case 4:
                del data[at:]
            case _:
                data[at : at + 2] = rng.choice(PIECES)
    if rng.random() < 0.8 and len(data) >= 8:
        data[:8] = struct.pack("<Q", len(data) - 8)
    return bytes(data)


def bombs(rng: random.Random) -> bytes:
    size = rng.choice([1 << 10, 1 << 16, 1 << 20, 4 << 20])
    body = rng.choice([
        b"[" * size, b'{"a":' * (size // 5), b'{"a":[' + b"[]," * (size // 3), b'{"a":' + b"9" * size + b"}",
        b'{"' + b"k" * size + b'":1}', b'{"a":{"dtype":"F32","shape":[' + b"1," * (size // 2) + b"1]}}",
        b"{" + b",".join(b'"%d":0' % i for i in range(size // 12)) + b"}",
        b'{"__metadata__":{' + b",".join(b'"%d":"x"' % i for i in range(size // 14)) + b"}}",
        b'{"__metadata__":{"a":"' + b'\\"' * (size // 2) + b'"}}',
        b'{"__metadata__":{"a":"' + "😀".encode() * (size // 4) + b'"}}',
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(size // 60)) + b"}",
        b" " * size, b"{" + b" " * size + b"}", b'{"a":{"dtype":"F32","shape":[' + b"18446744073709551615," * 9
        + b'2],"data_offsets":[0,4]}}', rng.randbytes(size // 16),
    ])  # fmt: skip
    return struct.pack("<Q", len(body)) + body


def run(seconds: float, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # other tests of this process had their share
    accepted = refused = 0
    slowest = 0.0
    causes: set[str] = set()
    traced = not hasattr(sys, "gettrace") or sys.gettrace() is None
    if traced:
        tracemalloc.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kind = rng.random()
        head, size = valid(rng)
        if kind < 0.75:
            head = mutated(rng, head)
        elif kind < 0.77:
            head = bombs(rng)
        elif kind < 0.85:
            head = rng.randbytes(rng.randrange(200))
        if rng.random() < 0.3:
            size = max(0, size + rng.choice([-1, 1, 7, -8, len(head)]))
        size = max(size, len(head)) if rng.random() < 0.7 else size
        began = time.process_time()
        try:
            sniff(head)
            header = parse(head, file_size=size)
        except InvalidModelFile as error:
            refused += 1
            causes.add(str(error.facts["cause"]))
        else:
            accepted += 1
            assert header.header_bytes + sum(t.end - t.start for t in header.tensors.values()) == size
        slowest = max(slowest, time.process_time() - began)
        assert slowest < MAX_SECONDS_EACH, slowest
    peak = tracemalloc.get_traced_memory()[1] / 2**20 if traced else 0.0
    tracemalloc.stop()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    assert rss < MAX_RSS_MIB, rss
    assert peak < MAX_TRACED_MIB, peak
    assert len(causes) > 5, causes
    return {"accepted": accepted, "refused": refused, "slowest_ms": slowest * 1000, "traced_mib": peak, "rss_mib": rss}


if __name__ == "__main__":
    outcome = run(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(", ".join(f"{name} {value:.1f}" for name, value in outcome.items()))
