"""Throws damaged, random and hostile pickles at the reader.

    python tests/fuzz_pickle.py SECONDS [SEED]

Holds: only InvalidModelFile and Refused leave the reader, no canary appears, no file takes more than a few seconds, and
the memory that the process ever had stays under a bound. A file that is accepted is written as safetensors, and the
header must be the promised one. Where torch's own restricted loader accepts the file too, the tensors must be equal.
"""

import io
import os
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import hostile_pickles as corpus

from civman.domain.files import pickle_globals
from civman.errors import InvalidModelFile, Refused
from civman.store.read_header import read_header
from civman.store.read_pickle import read_pickle, write_safetensors

MAX_GROWTH_MIB = 400
MAX_SECONDS_EACH = 6.0
"""Processor time; a file of a million steps takes under a second on an idle core."""
OPCODES = b"(012FIJKLMNPQRSTUVXabcd}eghijl]oprst)uGBC\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8f\x90\x91\x92\x93\x94."


def seeds() -> list[bytes]:
    """Pickles to start from: harmless, hostile, and with tensors that cannot be."""
    parts = [corpus.HARMLESS, *corpus.RUNS.values(), *(data for data, _ in corpus.NAMES.values())]
    parts += [corpus.in_dict(data) for data in corpus.BROKEN_TENSORS.values()]
    parts += [data for data in corpus.BOMBS.values() if len(data) < 5_000]
    return [data for data in parts if len(data) < 20_000]


def torch_files() -> list[bytes]:
    """Whole files of torch, in both containers."""
    import torch

    value = {"state_dict": {f"m.{i}.weight": torch.randn(3, i + 1) for i in range(6)}, "epoch": 1, "n": [1, 2.5, "x"]}
    value["state_dict"]["t"] = torch.randn(4, 5).T
    made = []
    for is_zip in (True, False):
        for protocol in (2, 4):
            torch.save(value, stream := io.BytesIO(), _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
            made.append(stream.getvalue())
    return made


def piece(rng: random.Random) -> bytes:
    match rng.randrange(9):
        case 0:
            return bytes([rng.choice(OPCODES)])
        case 1:
            return corpus.name(rng.choice([*pickle_globals.ALLOWED, "os.mkdir", "builtins.eval", "builtins.getattr"]))
        case 2:
            return corpus.text(rng.choice(["a", "storage", "0", "_parameters", "latin1", "state_dict", "x" * 300]))
        case 3:
            return corpus.number(rng.choice([0, 1, 4, -1, 1 << 31, 1 << 62, 1 << 200]))
        case 4:
            return rng.choice([corpus.STORAGE, corpus.TENSOR, corpus.CALL])
        case 5:
            return b"h" + bytes([rng.randrange(8)])
        case 6:
            return b"q" + bytes([rng.randrange(8)])
        case 7:
            return corpus.tuple_of(*[bytes([75, rng.randrange(6)]) for _ in range(rng.randrange(4))])
        case _:
            return rng.randbytes(rng.randrange(1, 6))


def mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at:at] = piece(rng)
            case 1:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                del changed[at : at + rng.randrange(1, 20)]
            case 3:
                changed[at:at] = changed[at : at + rng.randrange(1, 60)]
            case _:
                changed[at : at + 4] = struct.pack(
                    "<L", rng.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, rng.randrange(1 << 20)])
                )
    return bytes(changed)


def built(rng: random.Random) -> bytes:
    """A pickle of random steps."""
    return corpus.PROTO + b"".join(piece(rng) for _ in range(rng.randrange(1, 60))) + corpus.STOP


def file(rng: random.Random, starts: list[bytes], whole: list[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.3:
        return mutated(rng, rng.choice(whole))
    data = built(rng) if kind < 0.5 else mutated(rng, rng.choice(starts))
    form = rng.random()
    if form < 0.45:
        found = corpus.archive(data, method=rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    else:
        found = corpus.sequence(data) if form < 0.9 else data
    return mutated(rng, found) if rng.random() < 0.2 else found


def check_accepted(path: Path, copy: Path) -> bool:
    """Write the copy of an accepted file, and compare it with torch's tensors if torch accepts the file too."""
    found = read_pickle(path)
    with copy.open("wb") as target:
        write_safetensors(path, found, target, {})
    assert read_header(copy).tensors == found.header.tensors
    import torch
    from safetensors.torch import load_file

    try:
        value = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:
        return False
    ours = load_file(copy)
    state = value.get("state_dict", value) if isinstance(value, dict) else {}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        if isinstance(tensor, torch.Tensor) and isinstance(name, str) and name in ours:
            mine = ours[name]
            assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), name
            is_equal = mine.equal(tensor) or bool((mine != mine).any())
            assert is_equal or not torch_is_sure(path, name, tensor), name
    return True


def torch_is_sure(path: Path, name: str, tensor: Any) -> bool:
    """Whether torch reads the same values again after memory of that size held others.

    From some damaged archives torch returns memory that it never wrote.
    """
    import torch

    for filling in (1.0, 2.0, 3.0):
        blocks = [torch.full((tensor.untyped_storage().nbytes(),), int(filling), dtype=torch.uint8) for _ in range(64)]
        del blocks
        value = torch.load(path, weights_only=True, map_location="cpu")
        if not value.get("state_dict", value)[name].equal(tensor):
            return False
    return True


def run(seconds: float, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    warnings.simplefilter("ignore")
    starts, whole = seeds(), torch_files()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts: Counter[str] = Counter()
    slowest, end = 0.0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        path, copy = Path(folder, "model.pt"), Path(folder, "copy.safetensors")
        while time.monotonic() < end:
            state = rng.getstate()
            data = file(rng, starts, whole)
            path.write_bytes(data)
            began = time.process_time()
            try:
                read_pickle(path)
            except (InvalidModelFile, Refused) as error:
                counts["refused" if isinstance(error, Refused) else "broken"] += 1
                said = error.message
            except BaseException:
                print("seed", seed, "state", state[1][:3], "file", data[:2000], file=sys.stderr)
                raise
            else:
                said = "accepted"
                counts[said] += 1
                try:
                    counts["equal to torch's"] += check_accepted(path, copy)
                except InvalidModelFile:
                    counts["damaged when read"] += 1
            assert 0 < len(said) < 500, said
            slowest = max(slowest, time.process_time() - began)
            assert slowest < MAX_SECONDS_EACH, data[:2000]
            assert not Path(folder, corpus.CANARY).exists(), data[:2000]
    os.chdir("/")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    assert grown < MAX_GROWTH_MIB, grown
    return {**counts, "slowest s": slowest, "MiB grown": grown}


if __name__ == "__main__":
    outcome = run(float(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(", ".join(f"{name} {value:.1f}" for name, value in outcome.items()))
