"""civman killed again and again over one file; what each kill cost, and that it broke nothing."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import FaultyServer, Throttle, faulty_server
from rig import REF, assert_sound, rig_catalogue

from civman.store.resume_journal import Journal

CONNECTIONS = 4
LONGEST_START_S = 60.0


@dataclass(frozen=True)
class Kill:
    """One round. `lost_bytes` had been sent and will be fetched again."""

    held_bytes: int
    sent_bytes: int
    lost_bytes: int


def environment(server: FaultyServer, root: Path) -> dict[str, str]:
    """What a civman process needs to find the server and the library, and nothing else of this one's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CIVMAN_", "CIVITAI_"))}
    return kept | {
        "CIVMAN_CIVITAI_URL": server.url,
        "CIVITAI_API_TOKEN": server.token,
        "CIVMAN_LIBRARY": str(root),
        "CIVMAN_CONFIG_DIR": str(root.parent / "config"),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }


def start(server: FaultyServer, root: Path, *argv: str) -> subprocess.Popen[str]:
    """`civman download` in a process of its own."""
    words = [sys.executable, "-m", "civman", "download", *(argv or (REF,)), "--preview", "none"]
    return subprocess.Popen(
        words, env=environment(server, root), cwd=root.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until_sent(server: FaultyServer, wanted_bytes: int, process: subprocess.Popen[str]) -> None:
    """Return when the storage has sent so much in all, or when the process has ended."""
    deadline = time.monotonic() + LONGEST_START_S
    while server.sent_bytes < wanted_bytes and process.poll() is None:
        assert time.monotonic() < deadline, "the download does not move"
        time.sleep(0.002)


def kills(data: bytes, root: Path, rounds: int, *, seconds: float, seed: int) -> Iterator[Kill]:
    """Kill a download of `data` so many times at random moments, then let it finish.

    All rounds together have about `seconds` of transfer. One round in five is killed at a random moment from its
    start, maybe long before the first byte. Raises: AssertionError: something was broken.
    """
    chance = random.Random(seed)
    throttle = Throttle(bytes_per_s=len(data) / seconds / CONNECTIONS, piece_bytes=8192)
    key = hashlib.sha256(data).hexdigest()
    with faulty_server(rig_catalogue(data), throttle) as server:
        held = 0
        for number in range(rounds):
            before = server.sent_bytes
            process = start(server, root, REF, "--connections", str(CONNECTIONS))
            if number % 5 == 4:
                time.sleep(chance.uniform(0, 1.5))
            else:
                share = len(data) / (rounds + 2)
                wait_until_sent(server, before + 1 + int(chance.uniform(0, 2 * share)), process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            sent = server.sent_bytes - before
            now = held_soundly(root, key, data)
            yield Kill(now, sent, held + sent - now)
            held = now
        server.heal()
        last = start(server, root, REF)
        _, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
    assert_sound(root)
    assert [path.name.partition(".")[0] for path in (root / "blobs").rglob("*.safetensors")] == [key]
    assert list((root / "partial").iterdir()) == []


def held_soundly(root: Path, key: str, data: bytes) -> int:
    """Bytes that count for the next try; each of them is compared. Raises: AssertionError."""
    assert_sound(root, was_killed=True)
    memory = Journal(root / "partial", key).recall()
    if memory is None:
        return 0
    assert memory.size_bytes == len(data)
    on_disk = (root / "partial" / f"{key}.part").read_bytes()
    assert len(on_disk) == len(data)
    for low, high in memory.ranges:
        assert on_disk[low:high] == data[low:high]
    return memory.ranges.total_bytes
