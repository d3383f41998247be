"""Joins the settings of an image on CivitAI, or of a `parameters` text, with the model versions they name by id.

CivitAI names a model version by its id where other programs write a name and a hash. Joining finds out which version
belongs to which name, so that no LoRA is applied twice and the rest of civman needs only names and hashes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from civman.domain.catalog import Asset, ModelFile, ModelId, ModelType, ModelVersion, VersionId
from civman.domain.file_choice import WEIGHT_TYPES, choose_file
from civman.domain.refs import LARGEST_ID, Air, parse_ref
from civman.errors import InvalidRef
from civman.index import Index
from civman.pictures import infotext
from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.graph_values import stem
from civman.planning.redraw_programs import is_known
from civman.planning.redraw_prompts import read_tags

_ROLES: Final = {
    "checkpoint": "checkpoint", "model": "checkpoint", "lora": "lora", "lycoris": "lora", "locon": "lora",
    "dora": "lora", "embed": "embedding", "embedding": "embedding", "textualinversion": "embedding", "vae": "vae",
    "hypernetwork": "hypernetwork", "hypernet": "hypernetwork", "upscaler": "upscaler",
}  # fmt: skip
_AIR: Final = re.compile(r"urn:air:[\w.:@-]{1,200}")
_LISTS: Final = ("civitaiResources", "Civitai resources", "additionalResources")
"""The entries of an image's settings that list model versions by their ids on CivitAI."""
_ADDNET: Final = re.compile(r"(.*?)\s*\(([0-9a-fA-F]{8,12})\)")


@dataclass(frozen=True, slots=True)
class SiteImage:
    """An image on CivitAI.

    `path`: the downloaded original; `has_recipe`: whether the original contains a civman recipe.

    `text`: A1111's `parameters` in the original, or None. This text is preferred to `meta`, the API's response, in
    which CivitAI splits some entries wrongly. `version_ids`: the model versions that CivitAI found in the image.
    """

    id: int
    path: Path
    meta: Mapping[str, Any] | None
    base_model: str
    has_recipe: bool
    text: str | None
    version_ids: tuple[VersionId, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """A model version that an image names by its id.

    `weight`: the scale of a LoRA, 1 by default. `is_listed`: the image's maker listed the version; otherwise CivitAI
    detected it in the image, so its role ("") and weight are unknown. `name`: the name of the model or of the version.
    """

    role: str
    id: VersionId
    weight: float = 1.0
    model_id: ModelId | None = None
    name: str = ""
    is_listed: bool = True


@dataclass(frozen=True, slots=True)
class SettingsRow:
    """The settings of an image as a row for `civman.planning.redraw.redraw`.

    `versions`: maps a file's role and name in the row to the model version that the image names for the file.
    `notices`: notices about the settings for the user.
    """

    row: dict[str, Any]
    versions: Mapping[tuple[str, str], NamedVersion] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def row_of(text: str) -> dict[str, Any]:
    """Convert A1111's `parameters` text to a row for `civman.planning.redraw.redraw`, in the form of CivitAI's API."""
    parsed = infotext.read(text)
    meta: dict[str, Any] = dict(parsed.details)
    return {"meta": meta | {"prompt": parsed.prompt, "negativePrompt": parsed.negative, "hashes": parsed.hashes}}


def settings_row(index: Index | None, settings: "str | SiteImage") -> SettingsRow:
    """Join the settings of a `parameters` text or of an image on CivitAI with the model versions that they list.

    CivitAI's generator writes no tags, so a listed LoRA that the prompt does not name gets a tag in the prompt. The
    files of a version come from the index; an unknown version is named "version 123", for example.
    """
    if isinstance(settings, str) and is_known(settings):
        versions = {(each.role, stem(air)): each for air, each in _named_in(settings)}
        return SettingsRow({"foreign": settings}, versions, ())
    row, notices = (row_of(settings), ()) if isinstance(settings, str) else _of_site(settings)
    joined = _Join(row["meta"])
    known = [(each, _Known.of(index, each)) for each in listed_versions(settings)]
    for each, about in sorted(known, key=lambda pair: pair[1].version is None):
        joined.add(each, about)
    if Entries(row["meta"]).follows_comfyui:
        row["by_comfyui"] = True
    for name in _LISTS:
        row["meta"].pop(name, None)
    return SettingsRow(row, joined.versions, notices)


def _of_site(image: SiteImage) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of an image on CivitAI as a row: from the text in its file or, without one, from the API."""
    own = dict(image.meta or {})
    notices: tuple[str, ...] = ()
    if image.text is not None:
        meta = row_of(image.text)["meta"]
        page, file = Entries(own), Entries(meta)
        apart = [name for name in ("Seed", "Steps", "prompt") if name in page and page.text(name) != file.text(name)]
        if apart:
            named = ", ".join(name.lower() for name in apart)
            notices = (
                f"CivitAI's page and the image's file have different settings ({named}); those in the file are used",
            )
        own = meta | {name: own[name] for name in _LISTS if name in own and name not in meta}
    return {"id": image.id, "meta": own, "baseModel": image.base_model}, notices


def listed_versions(settings: "str | SiteImage") -> list[NamedVersion]:
    """List the model versions that a `parameters` text or an image on CivitAI names by id."""
    if isinstance(settings, str):
        if is_known(settings):
            return [each for _, each in _named_in(settings)]
        return list(versions_of(row_of(settings)["meta"]))
    return list(versions_of(_of_site(settings)[0]["meta"], settings.version_ids))


def versions_of(meta: Mapping[str, Any] | None, extra: "tuple[VersionId, ...]" = ()) -> Iterator[NamedVersion]:
    """List the model versions that an image's settings name by id or AIR, then those in `extra`, each once."""
    seen: set[int] = set()
    for name in _LISTS:
        for entry in _entries((meta or {}).get(name)):
            found = _version(entry)
            if found is not None and found.id not in seen:
                seen.add(found.id)
                yield found
    for number in extra:
        if number not in seen:
            seen.add(number)
            yield NamedVersion("", number, is_listed=False)


def _named_in(text: str) -> Iterator[tuple[str, NamedVersion]]:
    """Yield each AIR in a ComfyUI graph with its model version, because CivitAI's generator names files by AIR."""
    for air in dict.fromkeys(_AIR.findall(text)):
        found = _version({"air": air})
        if found is not None:
            yield air, found


def _entries(value: object) -> list[dict[str, Any]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _version(entry: Mapping[str, Any]) -> NamedVersion | None:
    number, model_id, kind = entry.get("modelVersionId"), None, str(entry.get("type") or "")
    for text in (entry.get("air"), entry.get("name")):
        if isinstance(text, str) and text.startswith("urn:air:"):
            try:
                air = parse_ref(text)
            except InvalidRef:
                continue
            if isinstance(air, Air) and air.version_id is not None:
                number, model_id, kind = int(air.version_id), air.model_id, air.type or kind
                break
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= LARGEST_ID:
        return None
    weight = next((entry[key] for key in ("weight", "strength") if key in entry), None)
    scale = float(weight) if isinstance(weight, int | float) and not isinstance(weight, bool) else 1.0
    name = " ".join(str(entry[key]) for key in ("modelName", "modelVersionName", "versionName") if entry.get(key))
    role = _ROLES.get(kind.casefold(), kind.casefold())
    return NamedVersion(role, VersionId(number), scale, model_id, name)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the index knows about a model version: CivitAI's metadata, and the stored files."""

    version: ModelVersion | None
    held: tuple[Asset, ...]

    @classmethod
    def of(cls, index: Index | None, named: NamedVersion) -> "_Known":
        if index is None:
            return cls(None, ())
        return cls(index.version(named.id), tuple(index.find_by_version(named.id)))

    @property
    def role(self) -> str:
        """The role that CivitAI's model type implies; "" if the version is unknown."""
        return role_of(self.version.model.type) if self.version is not None else ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the version's files without suffixes, the default file first."""
        files = [*self._files(), *(asset.name for asset in self.held)]
        return tuple(dict.fromkeys(Path(name).stem for name in files))

    @property
    def words(self) -> tuple[str, ...]:
        """The words by which a prompt may name an embedding: the names of its files and its trigger words."""
        return (*self.names, *(self.version.trained_words if self.version is not None else ()))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the version's default file, or of another file of the version if only that one is stored."""
        default = self._default
        declared = str(default.hashes.sha256 or "") if default is not None else ""
        stored = {str(asset.blob.sha256) for asset in self.held}
        return next(iter(stored)) if len(stored) == 1 and declared not in stored else declared

    def has(self, digest: str) -> bool:
        """Whether a file of the version has this hash, which may be of any hash type."""
        known = [str(asset.blob.sha256) for asset in self.held]
        known += [
            each for file in (self.version.files if self.version else ()) for each in file.hashes.known().values()
        ]
        return bool(digest) and any(each == digest or (len(each) == 64 and each.startswith(digest)) for each in known)

    @property
    def _default(self) -> ModelFile | None:
        return choose_file(self.version) if self.version is not None and self.version.files else None

    def _files(self) -> list[str]:
        if self.version is None or self._default is None:
            return []
        weights = [file.name for file in self.version.files if file.type in WEIGHT_TYPES]
        return [self._default.name, *weights]


class _Join:
    """Assigns model versions to the files in the settings, and adds a file to the settings for every other version."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self._meta = meta
        self.versions: dict[tuple[str, str], NamedVersion] = {}

    def add(self, named: NamedVersion, known: _Known) -> None:
        """Assign one version to a file. A version that CivitAI only detected is not added as a new file."""
        match named.role or known.role:
            case "checkpoint":
                self._single(named, known, "Model", "Model hash")
            case "vae":
                self._single(named, known, "VAE", "VAE hash")
            case "lora":
                self._lora(named, known)
            case "embedding":
                self._embedding(named, known)

    def _single(self, named: NamedVersion, known: _Known, key: str, hash_key: str) -> None:
        role = "checkpoint" if key == "Model" else "vae"
        told = next((each for each in Entries(self._meta).files() if each.role == role), NamedFile(role, ""))
        is_same = known.has(told.hash) or (not told.hash and told.name.casefold() in map(str.casefold, known.names))
        if not is_same and not named.is_listed:
            return
        if (role, told.name) in self.versions:
            return
        name = told.name or next(iter(known.names), "") or named.name or f"version {named.id}"
        self._meta[key] = name
        if not told.hash and known.sha256:
            self._meta[hash_key] = known.sha256
        self.versions[role, name] = named

    def _lora(self, named: NamedVersion, known: _Known) -> None:
        told = [each for each in Entries(self._meta).files() if each.role == "lora"] + self._additional()
        prompt = str(self._meta.get("prompt") or "")
        tags = {tag.name: tag.unet for tag in read_tags(prompt, (1, 5)).loras}
        told += [NamedFile("lora", name, "", weight) for name, weight in tags.items()]
        free = [each for each in told if ("lora", each.name) not in self.versions]
        same = next((each for each in free if known.has(each.hash)), None)
        same = same or next((each for each in free if each.name.casefold() in map(str.casefold, known.names)), None)
        if same is None and known.version is None and named.is_listed:
            alike = [each for each in free if not each.hash and tags.get(each.name) == named.weight]
            same = alike[0] if len({each.name for each in alike}) == 1 else None
        if same is not None:
            self.versions["lora", same.name] = named
            if not any(each.hash for each in told if each.name == same.name) and known.sha256:
                self._list("lora", same.name, known.sha256)
            return
        if not named.is_listed or any(known.has(each.hash) for each in told):
            return
        names = [each for each in (*known.names, named.name) if re.fullmatch(r"[\w .-]+", each)]
        name = names[0] if names else f"version {named.id}"
        self._meta["prompt"] = f"{prompt}<lora:{name}:{named.weight:g}>"
        self._list("lora", name, known.sha256)
        self.versions["lora", name] = named

    def _embedding(self, named: NamedVersion, known: _Known) -> None:
        told = [each for each in Entries(self._meta).files() if each.role == "embedding"]
        same = next((each.name for each in told if known.has(each.hash)), None)
        if same is None:
            prompts = f"{self._meta.get('prompt') or ''}\n{Entries(self._meta).text('Negative prompt')}".casefold()
            same = next((word for word in known.words if word and word.casefold() in prompts), None)
        if same is None:
            return
        self.versions["embedding", same] = named
        if not any(each.hash for each in told if each.name == same) and known.sha256:
            self._list("embed", same, known.sha256)

    def _additional(self) -> list[NamedFile]:
        """List the LoRAs of the extension Additional Networks in the settings."""
        values = [str(value) for key, value in self._meta.items() if key.startswith("AddNet Model")]
        found = [_ADDNET.fullmatch(value) for value in values]
        return [NamedFile("lora", each[1], each[2].casefold()) for each in found if each is not None]

    def _list(self, kind: str, name: str, digest: str) -> None:
        listed = self._meta.get("resources")
        entry = {"type": kind, "name": name, "hash": digest}
        self._meta["resources"] = [*(listed if isinstance(listed, list) else []), entry]


def role_of(kind: ModelType) -> str:
    """Return the role of a model of this type in an image: "checkpoint", "lora", "vae" …; "" for other types."""
    return "lora" if kind.is_adapter else _ROLES.get(kind.value.casefold(), "")
