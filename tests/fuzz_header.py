"""Throws damaged and random bytes at the header reader, and odd files at the commands that read headers.

    python tests/fuzz_header.py SECONDS [SEED]              the reader alone
    python tests/fuzz_header.py --commands SECONDS [SEED]   `inspect`, `check` and `render --dry-run` on odd files

Holds: only InvalidModelFile leaves `parse` and `needed_bytes`, what is accepted passes every check of the format, no
input takes more than a few seconds, and the memory that the process ever had stays under a bound.
"""

import contextlib
import io
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

from civman.cli.app import main
from civman.domain.files.header import BITS, parse, sniff
from civman.errors import InvalidModelFile
from tests.domain.rule_cases import CASES
from tests.headers import prefix

MAX_RSS_MIB = 512
MAX_TRACED_MIB = 160
MAX_FILE_BYTES = 1 << 26
"""The commands read a whole file to find its SHA-256: a larger one would take up the time of hundreds of others."""
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


TYPES = ["F16", "F32", "BF16", "F8_E4M3", "U8", "I8", "F64", "I64"]
PREFIXES = ["model.", "model.diffusion_model.", "first_stage_model.", "vae.", "lora_unet_", "unet.", "x.", "a..b."]
ENDINGS = [".scale_weight", ".weight_scale", ".weight.absmax", ".alpha", ".diff", ".lora_up.weight", ".dora_scale", ""]
MARKS = ["v_pred", "ztsnr", "edm_mean", "edm_std", "scaled_fp8", "emb_params", "lora_controlnet", ".", "0", "é\n"]
Tensors = dict[str, tuple[int, ...]]


def whole_checkpoints() -> list[Tensors]:
    """Names and shapes of tiny whole checkpoints of every family that civman draws."""
    import tiny_models

    return [
        {name: tuple(tensor.shape) for name, tensor in tiny_models.tensors_of(kind).items()}
        for kind in tiny_models.KINDS
    ]


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


def odd_tensors(rng: random.Random, tensors: Tensors) -> Tensors:
    """The tensors with a few changed, lost, renamed, doubled under a prefix or given a quantisation's neighbours."""
    found = {name: (rng.choice(TYPES), list(shape)) for name, shape in tensors.items()}
    kind = rng.choice(TYPES[:3])
    if rng.random() < 0.8:
        found = {name: (kind, shape) for name, (_, shape) in found.items()}
    for _ in range(rng.choice([0, 1, 1, 2, 5, 40])):
        if not found:
            break
        name = rng.choice(list(found))
        dtype, shape = found[name]
        match rng.randrange(8):
            case 0:
                del found[name]
            case 1:
                found[name] = (dtype, [rng.choice([0, 1, 3, 7, 320, 768, 1024, 2048]) for _ in range(rng.randrange(6))])
            case 2:
                found[name] = (dtype, shape[:-1])
            case 3:
                found[f"{rng.choice(PREFIXES)}{name}"] = found.pop(name)
            case 4:
                found[name.rpartition(".")[0] + rng.choice(ENDINGS)] = (rng.choice(TYPES), rng.choice([[], [1], shape]))
            case 5:
                found[name] = (rng.choice(TYPES), shape)
            case 6:
                begin = name.split(".")[0]
                found = {other: what for other, what in found.items() if not other.startswith(begin)}
            case _:
                found[rng.choice(MARKS)] = (dtype, rng.choice([[], [0], [1, 4, 1, 1]]))
    return found


def run_commands(seconds: float, seed: int) -> dict[str, float]:
    """No odd checkpoint or adapter makes a command end as a bug would. Gives how often each exit code came."""
    rng = random.Random(seed)
    checkpoints, adapters = whole_checkpoints(), [tensors for name, tensors in CASES.items() if name.startswith("on-")]
    others = list(CASES.values())
    codes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["CIVMAN_OFFLINE"] = "1"
        while time.monotonic() < end:
            state = rng.getstate()
            base = rng.choice(checkpoints) if rng.random() < 0.8 else rng.choice(others)
            part = rng.choice(adapters) if rng.random() < 0.8 else rng.choice(others)
            files = [root / "base.safetensors", root / "part.safetensors"]
            made = [prefix(odd_tensors(rng, tensors)) for tensors in (base, part)]
            if max(size for _, size in made) > MAX_FILE_BYTES:
                continue
            for path, (head, size) in zip(files, made, strict=True):
                with path.open("wb") as file:
                    file.write(head)
                    file.truncate(size)
            library = ("--library", root / "library")
            for command in (
                ("inspect", files[0]), ("inspect", files[1]), ("check", *files),
                ("render", files[0], "a word", "--dry-run"),
                ("render", files[0], "a word", "--dry-run", "--lora", files[1]),
                ("render", files[0], "a word", "--dry-run", "--vae", files[1]),
                ("render", files[0], "a word", "--dry-run", "--embedding", files[1]),
            ):  # fmt: skip
                said = io.StringIO()
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    code = main([str(word) for word in (*command, *library)])
                codes[f"exit {int(code)}"] += 1
                assert code != 70, (command, state[1][:3], said.getvalue()[-3000:], dict(list(base.items())[:3]))
    return dict(codes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--commands"]:
        counted = run_commands(float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
        print(", ".join(f"{name} {value:.0f}" for name, value in sorted(counted.items())))
        sys.exit()
    outcome = run(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(", ".join(f"{name} {value:.1f}" for name, value in outcome.items()))
