"""What the embedded CivitAI offers: models, versions and files as plain values, and a catalogue that can change.

Everything is frozen; the catalogue swaps whole models, so a request that is being answered sees one state.
A version's place in its model is CivitAI's `index`: the first is the default, not necessarily the newest.
"""

import dataclasses
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

PG, PG13, R, X, XXX = 1, 2, 4, 8, 16
"""CivitAI's browsing levels."""

_AUTOV1_START, _AUTOV1_END = 0x100000, 0x110000


def utc(text: str) -> datetime:
    """The moment an ISO date names: `utc("2025-03-01")`, `utc("2025-03-01T10:30:00")`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Content:
    """A file's bytes, made on first use and kept; its digests are computed from them, never made up.

    With `folder` the bytes are kept there under `name` rather than made anew by the next process.
    """

    def __init__(self, make: Callable[[], bytes], *, folder: Path | None = None, name: str = "") -> None:
        self._make = make
        self._cached_at = folder / name if folder else None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, data: bytes) -> "Content":
        """Content that is given."""
        return cls(lambda: data)

    @cached_property
    def data(self) -> bytes:
        """The bytes."""
        with self._lock:
            if self._cached_at is None:
                return self._make()
            if not self._cached_at.exists():
                self._cached_at.parent.mkdir(parents=True, exist_ok=True)
                whole = self._cached_at.with_suffix(".new")
                whole.write_bytes(self._make())
                whole.replace(self._cached_at)
            return self._cached_at.read_bytes()

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Digests by CivitAI's names, upper case. BLAKE3 is left out: the standard library has none.

        AutoV1 is absent for files that end before its window, AutoV3 for all but safetensors.
        """
        sha256 = hashlib.sha256(self.data).hexdigest()
        found = {"AutoV2": sha256[:10], "SHA256": sha256, "CRC32": f"{zlib.crc32(self.data):08x}"}
        if len(self.data) >= _AUTOV1_END:
            found["AutoV1"] = hashlib.sha256(self.data[_AUTOV1_START:_AUTOV1_END]).hexdigest()[:8]
        header_end = 8 + int.from_bytes(self.data[:8], "little")
        if self.data[8:9] == b"{" and header_end <= len(self.data):
            found["AutoV3"] = hashlib.sha256(memoryview(self.data)[header_end:]).hexdigest()[:12]
        return {name: value.upper() for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class DemoFile:
    """One file. `declared` are the bytes whose size and digests CivitAI states: `content` unless it is to lie."""

    id: int
    name: str
    content: Content = field(repr=False)
    type: str = "Model"
    format: str | None = "SafeTensor"
    fp: str | None = "fp16"
    size: str | None = None
    quant_type: str | None = None
    override_name: str | None = None
    visibility: str = "Public"
    has_hashes: bool = True
    pickle_scan: str = "Success"
    pickle_message: str | None = "No Pickle imports"
    virus_scan: str = "Success"
    scanned_at: datetime | None = None
    declared: Content | None = field(default=None, repr=False)

    @property
    def hashes(self) -> dict[str, str]:
        """What CivitAI declares; empty for uploads that were not scanned yet."""
        return dict((self.declared or self.content).hashes) if self.has_hashes else {}

    @property
    def size_kb(self) -> float:
        """Declared size in units of 1024 bytes, exact."""
        return len((self.declared or self.content).data) / 1024


@dataclass(frozen=True, slots=True)
class DemoImage:
    """A preview. `id` is the last part of its address; `drawn` names the file in previews/, None: a plain gradient."""

    id: int
    level: int = PG
    width: int = 512
    height: int = 768
    type: str = "image"
    meta: dict[str, Any] | None = None
    drawn: str | None = None
    blur: str | None = None
    """Its BlurHash, where the picture is a drawn one."""


@dataclass(frozen=True, slots=True)
class DemoGate:
    """Paid or early access."""

    permanent: bool = False
    ends_at: datetime | None = None

    def is_active(self, now: datetime) -> bool:
        """Whether it still holds."""
        return self.permanent or self.ends_at is None or self.ends_at > now


@dataclass(frozen=True, slots=True)
class DemoVersion:
    """One version of a model."""

    id: int
    name: str
    base_model: str
    files: tuple[DemoFile, ...] = ()
    images: tuple[DemoImage, ...] = ()
    published_at: datetime = datetime(2025, 1, 15, 12, tzinfo=UTC)
    trained_words: tuple[str, ...] = ()
    description: str | None = None
    base_model_type: str | None = "Standard"
    gate: DemoGate | None = None
    usage_control: str = "Download"
    status: str = "Published"
    availability: str = "Public"
    upload_type: str = "Created"
    vae_version: int | None = None
    """The version whose files CivitAI appends as this one's VAE."""
    supports_generation: bool = False
    downloads: int | None = 0
    thumbs_up: int | None = 0

    @property
    def nsfw_level(self) -> int:
        """Bit mask over its pictures; 0 where it has none."""
        level = 0
        for image in self.images:
            level |= image.level
        return level


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One model. `allow_commercial_use` is sent as given: CivitAI answers in three forms."""

    id: int
    name: str
    type: str
    versions: tuple[DemoVersion, ...] = ()
    creator: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    nsfw: bool = False
    minor: bool = False
    poi: bool = False
    mode: str | None = None
    status: str = "Published"
    availability: str = "Public"
    checkpoint_type: str | None = None
    allow_no_credit: bool = True
    allow_commercial_use: list[str] | str = "{Image,RentCivit,Rent,Sell}"
    allow_derivatives: bool = True
    allow_different_license: bool = True
    downloads: int | None = 0
    thumbs_up: int | None = 0
    comments: int | None = 0
    user_id: int = 1

    @property
    def published(self) -> tuple[DemoVersion, ...]:
        """The versions everybody can see, in the creator's order."""
        return tuple(version for version in self.versions if version.status == "Published")

    @property
    def nsfw_level(self) -> int:
        """Bit mask over all pictures; 0 means unrated and keeps it out of lists."""
        level = 0
        for version in self.published:
            level |= version.nsfw_level
        return level


class Catalogue:
    """Models by id, with the lookups CivitAI offers. Safe to change while it is being served."""

    def __init__(self, models: Sequence[DemoModel] = ()) -> None:
        self._lock = threading.Lock()
        self._models: dict[int, DemoModel] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[DemoModel]:
        return iter(tuple(self._models.values()))

    def add(self, model: DemoModel) -> DemoModel:
        """The model, now offered; one of the same id is replaced."""
        with self._lock:
            self._models[model.id] = model
        return model

    def remove(self, model_id: int) -> None:
        """Delete a model as its creator would: from now on nobody finds it. Raises: KeyError: it is not there."""
        with self._lock:
            del self._models[model_id]

    def change_model(self, model_id: int, **changes: Any) -> DemoModel:
        """The model with these fields changed. Raises: KeyError: it is not there."""
        with self._lock:
            self._models[model_id] = dataclasses.replace(self._models[model_id], **changes)
            return self._models[model_id]

    def change_version(self, version_id: int, **changes: Any) -> DemoVersion:
        """The version with these fields changed. Raises: KeyError: it is not there."""
        model, version = self._owner(version_id)
        changed = dataclasses.replace(version, **changes)
        versions = tuple(changed if each.id == version_id else each for each in model.versions)
        self.change_model(model.id, versions=versions)
        return changed

    def change_file(self, file_id: int, **changes: Any) -> DemoFile:
        """The file with these fields changed. Raises: KeyError: it is not there."""
        version = next((v for m in self for v in m.versions if any(f.id == file_id for f in v.files)), None)
        if version is None:
            raise KeyError(file_id)
        files = tuple(dataclasses.replace(f, **changes) if f.id == file_id else f for f in version.files)
        self.change_version(version.id, files=files)
        return next(file for file in files if file.id == file_id)

    def replace_bytes(self, file_id: int, data: bytes, *, declare: bool = True) -> DemoFile:
        """The file with other bytes; with `declare=False` CivitAI goes on stating the old size and digests."""
        old = self.file(file_id)
        if old is None:
            raise KeyError(file_id)
        declared = None if declare else old.declared or old.content
        return self.change_file(file_id, content=Content.of(data), declared=declared)

    def archive(self, model_id: int) -> DemoModel:
        """The model, archived: its page stays, its files are gone. Raises: KeyError: it is not there."""
        return self.change_model(model_id, mode="Archived")

    def publish(self, model_id: int, version: DemoVersion, *, as_default: bool = True) -> DemoModel:
        """The model with one more version, placed first unless `as_default=False`. Raises: KeyError: no model."""
        old = self._models[model_id].versions
        return self.change_model(model_id, versions=(version, *old) if as_default else (*old, version))

    def model(self, model_id: int) -> DemoModel | None:
        """The model of that id."""
        return self._models.get(model_id)

    def version(self, version_id: int) -> tuple[DemoModel, DemoVersion] | None:
        """The version of that id, with its model."""
        return next(((m, v) for m in self for v in m.versions if v.id == version_id), None)

    def file(self, file_id: int) -> DemoFile | None:
        """The file of that id."""
        return next((f for _, _, f in self.files() if f.id == file_id), None)

    def files(self) -> Iterator[tuple[DemoModel, DemoVersion, DemoFile]]:
        """Every file with its version and model."""
        for model in self:
            for version in model.versions:
                for file in version.files:
                    yield model, version, file

    def by_hash(self, digest: str) -> list[tuple[DemoModel, DemoVersion, DemoFile]]:
        """Public files of published versions that declare this digest in any kind, first published first."""
        wanted = digest.upper()
        found = [
            (model, version, file)
            for model, version, file in self.files()
            if (model.status, version.status, file.visibility) == ("Published", "Published", "Public")
            and wanted in file.hashes.values()
        ]
        return sorted(found, key=lambda hit: (hit[1].published_at, hit[1].id))

    def _owner(self, version_id: int) -> tuple[DemoModel, DemoVersion]:
        found = self.version(version_id)
        if found is None:
            raise KeyError(version_id)
        return found
