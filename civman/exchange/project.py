"""A project's models, in two files: civman.toml lists the wanted models (`[[models]]`), civman.lock the exact files.

civman.toml belongs to the user, so comments, order and spacing are preserved. civman.lock belongs to civman: it is
sorted, and the same content gives the same text on every machine.
"""

import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from civman.domain.catalog import Asset, FileId, ModelFile, ModelId, ModelVersion, VersionId
from civman.domain.digests import Sha256, sha256_from
from civman.domain.file_names import safe_name
from civman.domain.printed_refs import air_of
from civman.domain.ref_matching import KnownIds, means
from civman.domain.refs import FileSelector, VersionRef, parse_ref
from civman.errors import CivmanError, ConfigError, NotFound, UsageError
from civman.settings import PROJECT_FILE, nearest_project_file
from civman.system.move_files import replace_file

LOCK_FILE = "civman.lock"
_LOCK_VERSION = 1
_LOCK_HEAD = "# Written by civman; `civman add` and `civman sync --lock` change it. Keep it with civman.toml.\n\n"
_OTHER_LOCK = "update civman"


@dataclass(frozen=True, slots=True)
class Locked:
    """A file that the project needs, identified by its digest.

    `ref` is the entry of civman.toml that the file belongs to.
    """

    ref: str
    name: str
    sha256: Sha256
    size_bytes: int
    air: str = ""
    model_id: ModelId | None = None
    version_id: VersionId | None = None
    file_id: FileId | None = None
    title: str = ""
    base_model: str = ""

    @property
    def exact_ref(self) -> str | None:
        """The ref that identifies exactly this file on CivitAI; None if the file is not from CivitAI."""
        if self.version_id is None:
            return None
        return str(VersionRef(self.version_id, self.model_id, FileSelector(self.file_id)))

    @property
    def known_ids(self) -> KnownIds:
        """The ids and names by which `civman drop` recognises the file."""
        return KnownIds(self.sha256, self.model_id, self.version_id, self.file_id, (self.name, self.title))


@dataclass(frozen=True, slots=True)
class Stale:
    """The differences between civman.lock and civman.toml; false if there are none."""

    missing: tuple[str, ...] = ()
    """Refs in civman.toml that are not in the lock."""
    extra: tuple[str, ...] = ()
    """Refs in the lock that are no longer in civman.toml."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra)


class Project:
    """The two files of a project folder. They are read on request and always written as a whole."""

    def __init__(self, folder: Path) -> None:
        self.manifest = folder / PROJECT_FILE
        self.lock = folder / LOCK_FILE

    @classmethod
    def nearest(cls, folder: Path) -> "Project":
        """The project of `folder`: that of the nearest civman.toml in it or above it, or else `folder` itself."""
        found = nearest_project_file(folder)
        return cls(found.parent if found is not None else folder)

    def wanted(self) -> list[str]:
        """The refs of civman.toml in canonical form, in the file's order. Raises: ConfigError."""
        return [_canonical(ref) for ref in _refs(self._document_plain(), self.manifest)]

    def locked(self) -> list[Locked]:
        """The entries of the lock file; empty if there is none.

        Raises: ConfigError: the lock file is damaged, or from another version of civman.
        """
        try:
            raw = tomllib.loads(self.lock.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise self._spoilt(error) from error
        if raw.get("version") != _LOCK_VERSION:
            raise ConfigError(
                f"`{self.lock}` has format version {raw.get('version')}, but this civman reads version {_LOCK_VERSION}",
                hint=_OTHER_LOCK,
            )
        try:
            return [_locked_from(item) for item in raw.get("models", [])]
        except (KeyError, TypeError, ValueError, CivmanError) as error:
            raise self._spoilt(error) from error

    def stale(self) -> Stale:
        """Compare the lock file with civman.toml."""
        wanted, locked = self.wanted(), {entry.ref for entry in self.locked()}
        return Stale(
            tuple(ref for ref in dict.fromkeys(wanted) if ref not in locked), tuple(sorted(locked - set(wanted)))
        )

    def add(self, entries: Sequence[Locked]) -> list[str]:
        """Write entries to both files, replacing earlier entries with the same ref.

        Returns the refs that are new in civman.toml.
        """
        known = set(self.wanted())
        fresh = [entry for entry in entries if entry.ref not in known]
        if fresh:
            self._write(self.manifest, _with_models(self._document(), fresh))
        refs = {entry.ref for entry in entries}
        self.write_lock([*(entry for entry in self.locked() if entry.ref not in refs), *entries])
        return [entry.ref for entry in fresh]

    def find(self, ref: str) -> set[str]:
        """The entries of civman.toml that `ref` refers to."""
        locked = self.locked()
        return {entry for entry in self.wanted() if _means(ref, entry, locked)}

    def drop(self, refs: Sequence[str]) -> list[Locked]:
        """Remove entries from both files and return them. The library's files are not touched.

        Raises: NotFound: the project has no entry for a ref.
        """
        locked = self.locked()
        chosen: set[str] = set()
        for ref in refs:
            found = self.find(ref)
            if not found:
                wanted = self.wanted()
                raise NotFound(
                    f"`{ref}` is not in `{self.manifest}`",
                    hint=f"the entries of civman.toml are: {', '.join(wanted)}"
                    if wanted
                    else "civman.toml lists no models; `civman add REF` adds one",
                )
            chosen |= found
        self._write(self.manifest, _without_models(self._document(), chosen))
        self.write_lock([entry for entry in locked if entry.ref not in chosen])
        return [entry for entry in locked if entry.ref in chosen]

    def write_lock(self, entries: Iterable[Locked]) -> None:
        """Write the lock file with the entries in sorted order."""
        import tomlkit  # the import takes 0.04 s, and only writing needs it

        document = tomlkit.document()
        document["version"] = _LOCK_VERSION
        tables = tomlkit.aot()
        for entry in sorted(set(entries), key=_order):
            table = tomlkit.table()
            for key, value in _facts(entry):
                table[key] = value
            tables.append(table)
        if tables:
            document["models"] = tables
        self._write(self.lock, _LOCK_HEAD + tomlkit.dumps(document))

    def _document_plain(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"cannot read `{self.manifest}`: {error}", hint="check the file's permissions and its TOML syntax"
            ) from error

    def _document(self) -> str:
        self._document_plain()
        return self.manifest.read_text(encoding="utf-8") if self.manifest.exists() else ""

    def _spoilt(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"`{self.lock}` is damaged: {error}",
            hint="restore the file from version control, or write a new one with `civman sync --lock`",
        )

    @staticmethod
    def _write(path: Path, text: str) -> None:
        temporary = path.with_name(path.name + ".new")
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            replace_file(temporary, path)
        except OSError as error:
            raise ConfigError(f"cannot write `{path}`: {error.strerror}") from error


def locked_asset(ref: str, asset: Asset, version: ModelVersion | None) -> Locked:
    """Create the lock entry for a stored file. Its bytes were verified when it was stored."""
    return Locked(
        ref=_canonical(ref),
        name=asset.name,
        sha256=asset.blob.sha256,
        size_bytes=asset.blob.size_bytes,
        air=str(air_of(version, file_id=asset.file_id)) if version is not None else "",
        model_id=asset.model_id,
        version_id=asset.version_id,
        file_id=asset.file_id,
        title=f"{asset.model_name} {asset.version_name}".strip(),
        base_model=asset.base_model or "",
    )


def locked_file(ref: str, version: ModelVersion, file: ModelFile) -> Locked:
    """Create the lock entry for a file on CivitAI. Raises: UsageError: CivitAI declares no digest or size."""
    if file.hashes.sha256 is None or file.size_bytes is None:
        raise UsageError(
            f"CivitAI declares no SHA-256 for `{file.name}`, so it cannot be locked without downloading it first",
            hint="leave out --no-download, so that civman computes the SHA-256",
        )
    return Locked(
        ref=_canonical(ref),
        name=safe_name(file.name),
        sha256=file.hashes.sha256,
        size_bytes=file.size_bytes,
        air=str(air_of(version, file_id=file.id)),
        model_id=version.model.id,
        version_id=version.id,
        file_id=file.id,
        title=f"{version.model.name} {version.name}".strip(),
        base_model=version.base_model or "",
    )


def _canonical(ref: str) -> str:
    return str(parse_ref(ref))


def _refs(document: dict[str, Any], path: Path) -> list[str]:
    models = document.get("models", [])
    refs = []
    for item in models if isinstance(models, list) else [None]:
        ref = item.get("ref") if isinstance(item, dict) else item
        if not isinstance(ref, str) or not ref.strip():
            raise ConfigError(
                f'`models` in `{path}` must be a list of tables that each have `ref = "…"`', hint=f"correct `{path}`"
            )
        refs.append(ref)
    return refs


def _with_models(text: str, entries: Sequence[Locked]) -> str:
    import tomlkit  # the import takes 0.04 s, and only writing needs it
    from tomlkit.items import AoT, Array

    document = tomlkit.parse(text)
    models = document.get("models")
    for entry in entries:
        if isinstance(models, Array):  # `models = [{ref = "…"}]` on a single line is valid too
            inline = tomlkit.inline_table()
            inline.update({"ref": entry.ref, **({"name": entry.title} if entry.title else {})})
            models.append(inline)
            continue
        table = tomlkit.table()
        table["ref"] = entry.ref
        if entry.title:
            table["name"] = entry.title
        if not isinstance(models, AoT):
            if document.as_string().strip():
                document.add(tomlkit.nl())
            models = tomlkit.aot()
            models.append(table)
            document["models"] = models
        else:
            models.append(table)
    return tomlkit.dumps(document)


def _without_models(text: str, refs: set[str]) -> str:
    import tomlkit  # the import takes 0.04 s, and only writing needs it

    document = tomlkit.parse(text)
    models: Any = document["models"]
    for place in reversed(range(len(models))):
        item = models[place]
        ref = item["ref"] if isinstance(item, dict) else item
        if _canonical(str(ref)) in refs:
            del models[place]
    if not models:
        del document["models"]
    return tomlkit.dumps(document)


def _means(typed: str, entry: str, locked: Sequence[Locked]) -> bool:
    """Whether `typed` identifies the project's entry `entry`: by ref, model, version, file, digest or name."""
    if _canonical(typed) == entry:
        return True
    return any(each.ref == entry and means(typed, each.known_ids) for each in locked)


def _order(entry: Locked) -> tuple[int, int, int, str, str]:
    return entry.model_id or 0, entry.version_id or 0, entry.file_id or 0, entry.sha256, entry.ref


def _facts(entry: Locked) -> list[tuple[str, str | int]]:
    facts: list[tuple[str, str | int | None]] = [
        ("ref", entry.ref),
        ("title", entry.title or None),
        ("air", entry.air or None),
        ("model_id", entry.model_id),
        ("version_id", entry.version_id),
        ("file_id", entry.file_id),
        ("name", entry.name),
        ("base_model", entry.base_model or None),
        ("sha256", entry.sha256),
        ("size_bytes", entry.size_bytes),
    ]
    return [(key, value) for key, value in facts if value is not None]


def _locked_from(item: dict[str, Any]) -> Locked:
    ids = {key: int(item[key]) if key in item else None for key in ("model_id", "version_id", "file_id")}
    return Locked(
        ref=_canonical(str(item["ref"])),
        name=safe_name(str(item["name"])),
        sha256=sha256_from(str(item["sha256"])),
        size_bytes=int(item["size_bytes"]),
        air=str(item.get("air", "")),
        model_id=ModelId(ids["model_id"]) if ids["model_id"] is not None else None,
        version_id=VersionId(ids["version_id"]) if ids["version_id"] is not None else None,
        file_id=FileId(ids["file_id"]) if ids["file_id"] is not None else None,
        title=str(item.get("title", "")),
        base_model=str(item.get("base_model", "")),
    )
