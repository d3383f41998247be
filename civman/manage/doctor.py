"""Checks this installation: settings, API key, library folder, disk space, index and renderer."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from civman import __version__
from civman.civitai import credentials
from civman.domain.plurals import counted
from civman.errors import CivmanError
from civman.index import Index
from civman.settings import Settings
from civman.system.system_facts import computes_bfloat16, gpu_names

_LITTLE_SPACE_BYTES = 20_000_000_000
_REBUILD = "move the database away, then rebuild it from the files with `civman verify --rebuild`"


class State(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was found, which setting it comes from, and how to fix it."""

    name: str
    state: State
    value: str
    source: str = ""
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks, the fastest first. Errors are returned as findings."""
    yield Finding("civman", State.OK, f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield _folder(settings)
    yield _disk(settings)
    yield _index(settings)
    yield Finding("civitai", State.OK, settings.civitai_url, settings.sources.get("civitai_url", ""))
    if settings.offline:
        yield Finding("offline", State.NOTE, "the network is switched off", settings.sources.get("offline", ""))
    yield _key(settings)
    yield from _renderer()


def _folder(settings: Settings) -> Finding:
    place = settings.library
    source = settings.sources.get("library", "")
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding(
            "library",
            State.BAD,
            f"{place} is not writable",
            source,
            "make the folder writable, or choose another with --library or CIVMAN_LIBRARY",
        )
    return Finding("library", State.OK, f"{place}{'' if place.exists() else ' (created on first use)'}", source)


def _disk(settings: Settings) -> Finding:
    existing = next(folder for folder in (settings.library, *settings.library.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    words = f"{free / 1e9:,.0f} GB free"
    if free < _LITTLE_SPACE_BYTES:
        return Finding(
            "disk", State.NOTE, words, remedy="a checkpoint takes 2 to 24 GB: free some space, or use another disk"
        )
    return Finding("disk", State.OK, words)


def _index(settings: Settings) -> Finding:
    database = settings.library / "library.db"
    if not database.exists():
        return Finding("index", State.OK, "no index yet (created on first use)")
    try:
        with Index.open(database) as index:
            count = index.count()
        from civman.index.schema_check import faults  # imported here: it imports SQLModel and Alembic, which takes 1 s

        if wrong := faults(database):
            return Finding("index", State.BAD, "; ".join(wrong[:5]), str(database), _REBUILD)
        return Finding("index", State.OK, f"{counted(count, 'file')}; the database is intact")
    except CivmanError as error:
        return Finding(
            "index",
            State.BAD,
            error.message,
            str(database),
            error.hint or _REBUILD,
        )


def _key(settings: Settings) -> Finding:
    try:
        credential = credentials.load(settings)
    except CivmanError as error:
        return Finding("key", State.BAD, error.message, remedy=error.hint)
    if credential.token is None:
        return Finding(
            "key",
            State.NOTE,
            "no API key; CivitAI requires one for downloads",
            remedy="create a key at https://civitai.com/user/account, then run `civman login`",
        )
    if settings.offline:
        return Finding(
            "key", State.NOTE, "an API key is present, but was not checked because civman is offline", credential.source
        )
    from civman.civitai.client import CivitaiClient  # imported here: it imports httpx and pydantic, which takes 0.3 s
    from civman.civitai.transport import Transport

    try:
        with CivitaiClient(Transport(settings.civitai_url, token=credential.token, tries=1)) as client:
            return Finding("key", State.OK, f"belongs to {client.me().name}", credential.source)
    except CivmanError as error:
        return Finding("key", State.BAD, error.message, credential.source, error.hint)


def _renderer() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            "renderer",
            State.NOTE,
            "not installed",
            remedy="run `pip install 'civman[render]'` to be able to render images",
        )
        return
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "diffusers", "transformers")
        if importlib.util.find_spec(name) is not None
    )
    devices = gpu_names()
    yield Finding("renderer", State.OK, versions)
    yield Finding(
        "gpu", State.OK if devices else State.NOTE, ", ".join(devices) or "no GPU found: rendering uses the CPU"
    )
    if not devices and computes_bfloat16():
        yield Finding(
            "cpu", State.NOTE, "the CPU has instructions for bfloat16 (AVX512_BF16)",
            remedy="`--precision bfloat16` renders faster; images differ from those in float32 (by 36 to 37 dB PSNR)",
        )  # fmt: skip
