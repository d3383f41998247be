"""One small model on a server that misbehaves, and civman run against it through its front door."""

import hashlib
import json
import random
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from faults import Fault, FaultyServer
from running import Run

from civman.cli.app import main
from civman.demo.demo_catalog import Catalogue, Content, DemoFile, DemoImage, DemoModel, DemoVersion
from civman.domain.timeouts import Patience
from civman.index import Index
from civman.library import Library

MODEL, VERSION, FILE = 900, 901, 902
REF = f"@{VERSION}"
QUICK = Patience(
    connect_s=2.0,
    stall_s=0.5,
    idle_s=0.2,
    crawl_s=0.5,
    backoff_s=0.005,
    longest_backoff_s=0.02,
    longest_retry_after_s=2.0,
    site_timeout_s=2.0,
    site_backoff_s=0.005,
)
"""For a server on loopback: nothing there is slow for an honest reason."""


def model_bytes(size_bytes: int, seed: str = "rig") -> bytes:
    """A safetensors file of about that size; its one tensor holds noise."""
    rows = max(1, size_bytes // 128)
    tensor = {"dtype": "F16", "shape": [rows, 64], "data_offsets": [0, rows * 128]}
    header = json.dumps({"weight": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(rows * 128)


DATA = model_bytes(600_000)
OTHER_DATA = model_bytes(600_000, seed="another upload")


def rig_catalogue(data: bytes = DATA, **changes: object) -> Catalogue:
    """A catalogue of one model with one file; `changes` are fields of the file."""
    file = DemoFile(**{"id": FILE, "name": "rig.safetensors", "content": Content.of(data), **changes})
    version = DemoVersion(VERSION, "v1", "SD 1.5", (file,), (DemoImage(903),))
    return Catalogue([DemoModel(MODEL, "Rig", "LORA", (version,))])


def many_files(count: int, size_bytes: int) -> Catalogue:
    """A catalogue of so many models with a file each; version ids from `VERSION` on."""
    models = []
    for number in range(count):
        content = Content.of(model_bytes(size_bytes, seed=f"file {number}"))
        file = DemoFile(FILE + number, f"file_{number}.safetensors", content)
        version = DemoVersion(VERSION + number, "v1", "SD 1.5", (file,), (DemoImage(FILE + number),))
        models.append(DemoModel(MODEL + 1000 + number, f"Model {number}", "LORA", (version,)))
    return Catalogue(models)


class Rig:
    """A server and a library folder; every run of civman is checked for what must never happen."""

    def __init__(
        self,
        server: FaultyServer,
        root: Path,
        read: Callable[[], tuple[str, str]],
        patience: Patience = QUICK,
    ) -> None:
        self.server = server
        self.root = root
        self._read = read
        self._patience = patience

    def run(self, *argv: object) -> Run:
        """One command in this process."""
        self._read()
        before = set(threading.enumerate())
        code = main([str(word) for word in argv], make_library=partial(Library, patience=self._patience))
        out, err = self._read()
        assert self.server.token not in out + err
        assert "Traceback" not in err
        assert_sound(self.root)
        assert not [thread for thread in set(threading.enumerate()) - before if _is_ours(thread)]
        return Run(int(code), out, err)

    def download(self, *argv: object) -> Run:
        """`civman download` of the one file, or of what `argv` names."""
        named = any(str(word).startswith("@") for word in argv)
        return self.run("download", *([] if named else [REF]), "--preview", "none", *argv)

    def start(self, *faults: Fault) -> int:
        """Other faults from now on; how much the storage has sent so far."""
        self.server.heal()
        self.server.inject(*faults)
        return self.server.sent_bytes

    @property
    def partials(self) -> list[str]:
        """What lies in `partial/`."""
        return names_in(self.root / "partial")


MakeRig = Callable[..., Rig]
"""A rig with these faults from the start: `rigged(Cut(after=1), catalogue=…, patience=…)`."""


def names_in(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def blobs(root: Path) -> list[Path]:
    """The model files under `blobs/`."""
    found = (root / "blobs").rglob("*") if (root / "blobs").is_dir() else []
    return sorted(
        path for path in found if path.is_file() and ".civman." not in path.name and ".preview" not in path.name
    )


def assert_sound(root: Path, *, was_killed: bool = False) -> None:
    """No file under a wrong name, no row without its file, and unless its holder `was_killed` no lock left."""
    for path in blobs(root):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.partition(".")[0]
        assert not path.stat().st_mode & 0o222
    if (root / "library.db").is_file():
        with closing(Index.open(root / "library.db")) as index:
            rows: Sequence[Path] = [Path(asset.path) for asset in index.assets()]
        assert [row for row in rows if not row.is_file()] == []
    if not was_killed:
        assert [name for name in names_in(root / "partial") if name.endswith((".lock", ".new"))] == []


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith(("fetch-", "digester", "syncer", "file_"))
