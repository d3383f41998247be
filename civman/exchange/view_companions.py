"""Small files next to a model for another program: CivitAI metadata in the program's own format, and a preview."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from civman.domain.architecture import Architecture
from civman.domain.catalog import Asset, ModelVersion
from civman.domain.file_suffixes import CONFIG_SUFFIXES
from civman.domain.html_text import plain_text
from civman.exchange.view_folders import Companion
from civman.index import Index

_MOST_CONFIG = 1 << 20
_PICTURES = {b"\x89PNG": ".preview.png", b"\xff\xd8\xff": ".preview.jpg"}
_WEBUI_VERSIONS = {Architecture.SD1: "SD1", Architecture.SD2: "SD2", Architecture.SDXL: "SDXL"}
"""Maps base models of adapters to the names that A1111 uses for them."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A small file next to a model: its kind, the suffix after the model's name, and its contents."""

    kind: Companion
    ending: str
    data: bytes


def companions(
    asset: Asset, version: ModelVersion | None, picture: bytes | None, wanted: tuple[Companion, ...]
) -> list[Beside]:
    """Create the companion files of one model. Files that would be empty are left out."""
    found = []
    for kind in wanted:
        match kind:
            case Companion.PREVIEW:
                ending = _picture_ending(picture)
                data = picture if ending else None
            case Companion.CIVITAI_INFO:
                ending, data = ".civitai.info", _civitai_info(version) if version is not None else None
            case Companion.WEBUI_JSON:
                ending, data = ".json", _webui_json(asset, version)
            case Companion.SWARM_JSON:
                ending, data = ".swarm.json", _swarm_json(asset, version)
            case Companion.CONFIG:
                continue  # the model's config is not created here; `config_of` finds it
        if data is not None:
            found.append(Beside(kind, ending, data))
    return found


def config_of(asset: Asset, index: Index) -> Beside | None:
    """Find a model's config: a stored file of the same version, or a file next to the model."""
    of_version = index.find_by_version(asset.version_id) if asset.version_id is not None else []
    paths = [Path(other.path) for other in of_version if other.blob.suffix in CONFIG_SUFFIXES]
    paths += [Path(asset.path).with_suffix(suffix) for suffix in sorted(CONFIG_SUFFIXES)]
    for path in paths:
        try:
            if path.is_file() and path.stat().st_size <= _MOST_CONFIG:
                return Beside(Companion.CONFIG, ".yaml", path.read_bytes())
        except OSError:
            continue
    return None


def _picture_ending(picture: bytes | None) -> str:
    if picture is None:
        return ""
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return ".preview.webp"
    return next((ending for magic, ending in _PICTURES.items() if picture.startswith(magic)), "")


def _civitai_info(version: ModelVersion) -> bytes:
    """The version as CivitAI's endpoint `/model-versions` returns it, which is what programs expect in this file."""
    raw: dict[str, Any] = json.loads(version.raw)
    model = version.model
    said = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    raw["modelId"] = model.id
    raw["model"] = {
        **(said or {}),
        "name": model.name,
        "type": model.type_raw,
        "nsfw": model.nsfw,
        "poi": model.real_person,
        "description": model.description,
        "tags": list(model.tags),
    }
    raw.setdefault("id", version.id)
    raw.setdefault("trainedWords", list(version.trained_words))
    return _json(raw)


def _webui_json(asset: Asset, version: ModelVersion | None) -> bytes | None:
    words = ", ".join(asset.trained_words)
    description = plain_text(version.description or version.model.description) if version is not None else ""
    if not words and not description:
        return None
    known = {member.value: word for member, word in _WEBUI_VERSIONS.items()}
    return _json(
        {
            "description": description,
            "sd version": known.get(asset.facts.architecture, "Unknown"),
            "activation text": words,
            "preferred weight": 0,
            "notes": "",
        }
    )


def _swarm_json(asset: Asset, version: ModelVersion | None) -> bytes:
    facts = {
        "title": f"{asset.model_name} {asset.version_name}".strip() or asset.name.rpartition(".")[0] or asset.name,
        "author": asset.creator,
        "trigger_phrase": ", ".join(asset.trained_words),
        "hash_sha256": f"0x{asset.blob.sha256}",
    }
    if version is not None:
        texts = (plain_text(version.description), plain_text(version.model.description))
        facts["description"] = "\n".join(text for text in texts if text)
        facts["tags"] = ",".join(version.model.tags)
        facts["date"] = version.published_at.date().isoformat() if version.published_at else None
    return _json({f"modelspec.{name}": value for name, value in facts.items() if value})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).encode()
