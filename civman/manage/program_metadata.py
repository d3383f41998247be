"""Reads metadata files that other programs save next to a model: CivitAI's metadata, and the user's annotations.

Such a file stays where it is when its model is replaced, so a metadata file with the digest of another model file is
refused. From a metadata file without a digest, only the user's annotations are used, because it may describe another
version.

Formats, by the ending after the model's name: `.civitai.info` (Civitai Helper), `.metadata.json` (ComfyUI Lora
Manager), `.cm-info.json` (Stability Matrix), `.swarm.json` (SwarmUI), `.json` and `.txt` (A1111 and Forge).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from civman.civitai import wire_models
from civman.civitai.wire_values import trained_words
from civman.domain.catalog import NOTHING_SAID, ModelFile, ModelVersion, Own
from civman.domain.digests import Sha256, autov2
from civman.domain.html_text import plain_text
from civman.errors import CivmanError

METADATA_ENDINGS = (".civitai.info", ".metadata.json", ".cm-info.json", ".swarm.json", ".json", ".txt")
"""The file name endings of metadata files, in order of precedence."""
PREVIEW_ENDINGS = tuple(
    f"{middle}.{suffix}" for middle in (".preview", "", ".thumb") for suffix in ("png", "jpg", "jpeg", "webp")
)
"""The file name endings of preview images, in the order in which programs look for them."""
OTHER_ENDINGS = (
    ".yaml", ".yml", ".description.txt", ".api_info.json", ".civitai.json", ".html",
    *(f"{middle}.{suffix}" for middle in (".preview", "") for suffix in ("gif", "mp4", "webm")),
)  # fmt: skip
"""The file name endings of other files that belong to the model of the same name and are moved with it."""
_MOST_BYTES = 16 << 20
_MOST_PREVIEW_BYTES = 20 << 20
_LONGEST_NOTE = 10_000
_MARKUP = re.compile(r"</[a-z]|<(p|br|div|strong|em|ul|h[1-6])\b", re.IGNORECASE)
_PICTURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A metadata file that is not used, and the reason."""

    path: str
    message: str


@dataclass(slots=True)
class ProgramMetadata:
    """The contents of the metadata files next to a model. `version` is None if they do not prove the version."""

    version: ModelVersion | None = None
    file: ModelFile | None = None
    own: Own = NOTHING_SAID
    refused: list[Refused] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """A parsed metadata file. `digests`: the digests in it, which are those of the model file or of its tensors."""

    version: Mapping[str, Any] | None = None
    digests: tuple[str, ...] = ()
    own: Own = NOTHING_SAID


def companions(model: Path) -> list[Path]:
    """List the files next to a model that belong to it: metadata files, previews and configs."""
    endings = (*METADATA_ENDINGS, *PREVIEW_ENDINGS, *OTHER_ENDINGS)
    return [path for ending in endings if (path := model.with_name(model.stem + ending)).is_file()]


def read_metadata(
    paths: Iterable[Path], sha256: Sha256, autov3: Callable[[], str | None], *, now: datetime
) -> ProgramMetadata:
    """Read the metadata files next to the model files at `paths`, all of which have this SHA-256.

    `autov3` returns the digest of the tensors; it is called only if a metadata file may contain that digest.
    """
    beside = ProgramMetadata()
    for path in paths:
        for ending in METADATA_ENDINGS:
            place = path.with_name(path.stem + ending)
            text = _text_of(place)
            if text is not None:
                _add(beside, place, text, sha256, autov3, now)
    return beside


def read_preview(paths: Iterable[Path]) -> tuple[bytes, str] | None:
    """Read the first preview image next to the files at `paths`. Returns its contents and its suffix."""
    for path in paths:
        for ending in PREVIEW_ENDINGS:
            place = path.with_name(path.stem + ending)
            try:
                data = place.read_bytes() if place.is_file() and place.stat().st_size <= _MOST_PREVIEW_BYTES else b""
            except OSError:
                continue
            suffix = next((suffix for magic, suffix in _PICTURES.items() if data.startswith(magic)), None)
            if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
                suffix = ".webp"
            if suffix is not None:
                return data, suffix
    return None


def joined(own: Own, added: Own) -> Own:
    """Add annotations from another program's metadata file to the user's own annotations, which are never replaced."""
    return Own(
        own.note or added.note,
        tuple(dict.fromkeys((*own.tags, *added.tags))),
        tuple(dict.fromkeys((*own.trigger_words, *added.trigger_words))),
        own.rating or added.rating,
        own.is_favourite or added.is_favourite,
    )


def _add(
    beside: ProgramMetadata, place: Path, text: str, sha256: Sha256, autov3: Callable[[], str | None], now: datetime
) -> None:
    try:
        parsed = _read(place, text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "the file cannot be read"
        beside.refused.append(Refused(str(place), f"the metadata is not used: {reason}"))
        return
    if parsed is None:
        return
    stated = {digest for digest in parsed.digests if digest}
    proven = bool(stated) and _is_stated(stated, sha256, autov3)
    if stated and not proven:
        message = "the metadata belongs to another file, because its SHA-256 is not that of this file"
        beside.refused.append(Refused(str(place), message))
        return
    beside.own = joined(beside.own, parsed.own)
    if parsed.version is None or beside.version is not None:
        return
    if not proven:
        message = "the metadata names a version on CivitAI but contains no SHA-256, so it may belong to another file"
        beside.refused.append(Refused(str(place), message))
        return
    try:
        beside.version = wire_models.version(parsed.version, now=now, on_notice=lambda _: None)
    except CivmanError:
        return  # leave the version empty: the metadata file contains the model file's digest, but no valid version
    # ignore files without an id, because a later import could not match them to the files that CivitAI lists
    same = (file for file in beside.version.files if file.hashes.sha256 == sha256 and file.id is not None)
    beside.file = next(same, None)


def _is_stated(stated: set[str], sha256: Sha256, autov3: Callable[[], str | None]) -> bool:
    if sha256 in stated or autov2(sha256) in stated:
        return True
    tensors = autov3()
    return tensors is not None and any(digest.startswith(tensors) for digest in stated)


def _text_of(path: Path) -> str | None:
    """Read a file as UTF-16 if it starts with UTF-16's byte order mark, else as UTF-8; None if it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, "replace")


def _read(place: Path, text: str) -> _Metadata | None:
    """Parse a metadata file, recognising its format by its keys; None if it is unusable.

    Raises: ValueError, RecursionError.
    """
    if place.name.lower().endswith(".txt"):
        return _Metadata(own=Own(note=_short(text)))
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # replace half surrogate pairs in the text, because the database cannot store them
        value = json.loads(
            json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    except ValueError:
        raise ValueError(
            "the file is empty" if not text.strip() else "the file is not valid JSON; it may be incomplete"
        ) from None
    if not isinstance(value, dict):
        return None
    if any(name.startswith("modelspec.") for name in value):
        return _swarm(value)
    if "ModelId" in value or "VersionId" in value:
        return _stability_matrix(value)
    if isinstance(value.get("civitai"), dict) or "from_civitai" in value or "usage_tips" in value:
        return _lora_manager(value)
    if "modelId" in value and isinstance(value.get("id"), int):
        return _Metadata(value, _file_digests(value))
    return _webui(value)


def _webui(value: Mapping[str, Any]) -> _Metadata:
    """Parse the metadata file of A1111 or Forge. Some of their extensions add the SHA-256 of the model."""
    lines = [_text(value.get("notes")), _described(value.get("description"))]
    weight = value.get("preferred weight")
    lines += [f"preferred weight: {weight:g}"] if isinstance(weight, int | float) and weight else []
    lines += [f"negative prompt: {negative}"] if (negative := _text(value.get("negative text"))) else []
    own = Own(_joined_lines(lines), _words(value.get("tags")), trained_words([_text(value.get("activation text"))]))
    return _Metadata(None, (_digest(value.get("sha256")),), own)


def _lora_manager(value: Mapping[str, Any]) -> _Metadata:
    version = value.get("civitai") if isinstance(value.get("civitai"), dict) else None
    has_version = version is not None and isinstance(version.get("id"), int)
    tips = _text(value.get("usage_tips"))
    try:
        parsed = json.loads(tips) if tips else {}
        if isinstance(parsed, dict):
            tips = ", ".join(f"{str(name).replace('_', ' ')} {each}" for name, each in parsed.items())
    except ValueError:
        pass  # keep the usage tips as they are: they are plain text, not JSON
    notes = _joined_lines([_text(value.get("notes")), f"usage tips: {tips}" if tips else ""])
    own = Own(
        notes,
        _words(value.get("tags")),
        () if has_version or version is None else trained_words(_words(version.get("trainedWords"))),
        is_favourite=value.get("favorite") is True,
    )
    own_digest = _digest(value.get("sha256"))
    digests = (own_digest,) if own_digest else _file_digests(version or {})
    return _Metadata(version if has_version else None, digests, own)


def _stability_matrix(value: Mapping[str, Any]) -> _Metadata:
    hashes = value.get("Hashes") if isinstance(value.get("Hashes"), dict) else {}
    metadata = value.get("FileMetadata") if isinstance(value.get("FileMetadata"), dict) else {}
    version = {
        "id": value.get("VersionId"),
        "modelId": value.get("ModelId"),
        "name": value.get("VersionName"),
        "description": value.get("VersionDescription"),
        "baseModel": value.get("BaseModel"),
        "trainedWords": value.get("TrainedWords"),
        "stats": value.get("Stats"),
        "model": {"name": value.get("ModelName"), "type": value.get("ModelType"), "nsfw": value.get("Nsfw")},
        "files": [{"name": "", "type": "Model", "primary": True, "metadata": metadata, "hashes": hashes}],
    }
    has_version = isinstance(value.get("VersionId"), int) and isinstance(value.get("ModelId"), int)
    own = Own(_text(value.get("UserTitle")), _words(value.get("Tags")))
    if not has_version:
        own = replace(own, trigger_words=trained_words(_words(value.get("TrainedWords"))))
    return _Metadata(version if has_version else None, _file_digests(version), own)


def _swarm(value: Mapping[str, Any]) -> _Metadata:
    """Parse the metadata file of SwarmUI.

    The digest in it is that of the tensors, or that of the whole file if another program wrote the metadata file.
    """
    said = {name.removeprefix("modelspec."): _text(each) for name, each in value.items()}
    lines = [said.get("title", ""), said.get("usage_hint", ""), _described(said.get("description"))]
    tags = tuple(tag.strip() for tag in said.get("tags", "").split(",") if tag.strip())
    own = Own(_joined_lines(lines), tags, trained_words([said.get("trigger_phrase", "")]))
    return _Metadata(None, (_digest(said.get("hash_sha256")),), own)


def _file_digests(version: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the SHA-256 (or else the AutoV2) and the AutoV3 digest of each of a version's files."""
    files = version.get("files")
    digests = []
    for file in files if isinstance(files, list) else ():
        hashes = file.get("hashes") if isinstance(file, dict) else None
        if isinstance(hashes, dict):
            digests += [_digest(hashes.get("SHA256")) or _digest(hashes.get("AutoV2")), _digest(hashes.get("AutoV3"))]
    return tuple(digest for digest in digests if digest)


def _digest(stated: object) -> str:
    text = stated.strip().lower().removeprefix("0x") if isinstance(stated, str) else ""
    return text if len(text) in (10, 12, 64) and all(char in "0123456789abcdef" for char in text) else ""


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    listed = value if isinstance(value, list) else []
    return tuple(dict.fromkeys(word.strip() for word in listed if isinstance(word, str) and word.strip()))


def _joined_lines(lines: Iterable[str]) -> str:
    return _short("\n".join(dict.fromkeys(line for line in lines if line)))


def _described(value: object) -> str:
    """Remove HTML markup from a description, if it has any; `<lora:name:1>` does not count as markup."""
    text = _text(value)
    return plain_text(text) if _MARKUP.search(text) else text


def _short(text: str) -> str:
    text = "".join(char for char in text.strip() if char.isprintable() or char in "\n\t")
    return text if len(text) <= _LONGEST_NOTE else text[: _LONGEST_NOTE - 1] + "…"
