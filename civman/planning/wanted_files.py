"""Finds in the library the files that an image's settings name.

A file is searched for by its hash, then by the version on CivitAI that the image names, and last by its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from civman.domain.catalog import Asset
from civman.domain.known_upscalers import known_upscaler
from civman.domain.refs import HashKind
from civman.index import Index
from civman.pictures.site_settings import NamedFile
from civman.planning.find_files import plays
from civman.planning.site_image import NamedVersion

_AUTOV3_DIGITS = 12
_TITLES = {"lora": "LoRA", "vae": "VAE", "hires-checkpoint": "checkpoint of the second pass"}


class By(StrEnum):
    """How a stored file was recognised: by its hash, its version or its name."""

    HASH = "its hash"
    VERSION = "its version's id"
    NAME = "its name only"
    NOTHING = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model file that an image's settings name.

    `version`: its version on CivitAI, or None if the settings contain none. `held`: the stored file that is used for
    it, or None; `by`: how that stored file was recognised.
    """

    file: NamedFile
    version: NamedVersion | None = None
    held: Asset | None = None
    by: By = By.NOTHING

    @property
    def is_certain(self) -> bool:
        """Whether the stored file is certainly the right one, or cannot be checked because only a name is known."""
        is_identified = bool(self.file.hash) or self.version is not None
        return self.held is not None and (self.by is not By.NAME or not is_identified)

    @property
    def words(self) -> str:
        """A description of the file for messages: its role, name and hash."""
        shown = f" ({self.file.hash[:12]}{'…' if len(self.file.hash) > 12 else ''})" if self.file.hash else ""
        role = _TITLES.get(self.file.role, self.file.role)
        return f"{role} `{self.file.name}`{shown}" if self.file.name else f"{role}{shown}"

    @property
    def notice(self) -> str:
        """A notice for the user about the stored file; empty if it is certainly the right one."""
        if self.by is By.NAME:
            mismatch = f"; its hash is not {self.file.hash[:12]}, the one in the settings" if self.file.hash else ""
            return f"the {self.words} was found by its name only{mismatch}"
        if self.by is By.VERSION and self.file.hash:
            return f"instead of the {self.words}, another file of the same version on CivitAI is used"
        if self.held is None and self.file.role == "embedding":
            return f"the {self.words} is not in the library, so its name is read as plain text"
        return ""


def wanted_files(
    index: Index | None, named: Sequence[NamedFile], versions: Mapping[tuple[str, str], NamedVersion]
) -> list[Wanted]:
    """Find the files that settings name in the library.

    `versions`: maps a file's role and name to the version on CivitAI that the settings name for it.
    """
    return [_wanted(index, each, versions.get((each.role, each.name))) for each in named]


def _wanted(index: Index | None, file: NamedFile, version: NamedVersion | None) -> Wanted:
    if index is None:
        return Wanted(file, version)
    if found := _by_hash(index, file):
        return Wanted(file, version, found[0], By.HASH)
    if version is not None:
        held = [asset for asset in index.find_by_version(version.id) if plays(asset, file.role)]
        if held:
            return Wanted(file, version, held[0], By.VERSION)
    if file.name and (found := _by_name(index, file)):
        return Wanted(file, version, found[0], By.NAME)
    return Wanted(file, version)


def _by_hash(index: Index, wanted: NamedFile) -> Sequence[Asset]:
    """Return the stored files of the right kind with this hash.

    A hash of a LoRA with more than 12 digits may be an AutoV3 hash, of which the index stores 12 digits.
    """
    if not wanted.hash:
        return []
    if wanted.role == "upscaler" and (known := known_upscaler(wanted.name)):
        held = [index.find_sha256(digest) for digest in known.sha256]
        return [asset for asset in held if asset is not None and plays(asset, wanted.role)]
    found = index.find_by_digest(wanted.hash)
    if not found and len(wanted.hash) > _AUTOV3_DIGITS:
        found = index.find_by_digest(wanted.hash[:_AUTOV3_DIGITS], HashKind.AUTOV3)
    return [asset for asset in found if plays(asset, wanted.role)]


def _by_name(index: Index, wanted: NamedFile) -> Sequence[Asset]:
    """Return the stored file of the right kind with exactly this name; empty if no file or several files match.

    For an upscaler, A1111's name and the names of the published file are accepted, too.
    """
    known = known_upscaler(wanted.name) if wanted.role == "upscaler" else None
    for name in (wanted.name, *(known.files if known is not None else ())):
        found = [
            asset
            for asset in index.find_by_name(name)
            if plays(asset, wanted.role)
            and name.casefold()
            in {Path(asset.name).stem.casefold(), asset.name.casefold(), (asset.alias or "").casefold()}
        ]
        if len({asset.blob.sha256 for asset in found}) == 1:
            return found
    return []
