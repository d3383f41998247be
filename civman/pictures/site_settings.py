"""The settings of an image as CivitAI's API lists them (`meta`). Records which entries have been read.

CivitAI's reader splits quoted values with commas into several entries; these fragments keep their odd names here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from civman.pictures.metadata import loads, number, whole

_API_NAMES: Final = {
    "steps": "Steps", "sampler": "Sampler", "cfgscale": "CFG scale", "seed": "Seed", "clipskip": "Clip skip",
    "negativeprompt": "Negative prompt",
}  # fmt: skip
"""Maps the names that only CivitAI's API uses, in lower case, to A1111's names."""
_VERSION: Final = re.compile(r"(?:f[0-9.]+)?v?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?")
_HASH: Final = re.compile(r"[0-9a-fA-F]{8,64}")
_FORGE: Final = re.compile(r"f[0-9]|(classic|neo)\b")
"""Matches the versions of Forge and of its forks Classic and Neo."""
_MODULE: Final = re.compile(r"Module [0-9]+")


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A model named in the settings. `hash` is empty if the settings contain none."""

    role: str
    name: str
    hash: str = ""
    weight: float | None = None


class Entries:
    """The entries of the API's `meta`, under A1111's names. Reading an entry marks it as used."""

    def __init__(self, meta: object) -> None:
        values = meta if isinstance(meta, dict) else {}
        self._values: dict[str, Any] = {}
        for key, value in values.items():
            self._values.setdefault(_API_NAMES.get(str(key).casefold(), str(key)), value)
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> Any:
        """Return the entry unchanged; None if it is missing."""
        self._used.add(name)
        return self._values.get(name)

    def text(self, name: str) -> str:
        """Return the entry as text without surrounding spaces and quotes; "" if it is missing."""
        value = self.value(name)
        return "" if value is None or isinstance(value, dict | list) else str(value).strip().strip('"').strip()

    def whole(self, name: str) -> int | None:
        """Return the entry as an integer; None if it is missing or not an integer."""
        return whole(self.value(name))

    def number(self, name: str) -> float | None:
        """Return the entry as a number; None if it is missing or not a number."""
        return number(self.value(name))

    def is_on(self, name: str) -> bool:
        """Whether the entry exists and is not "False", "None" or "0"."""
        return self.text(name).casefold() not in ("", "false", "none", "0")

    def take(self, pattern: re.Pattern[str]) -> list[str]:
        """Mark the entries whose names match `pattern` as used, and return their names."""
        found = [name for name in self._values if pattern.match(name)]
        self._used.update(found)
        return found

    def ending(self, text: str) -> list[str]:
        """Mark the entries whose value ends with `text` as used, and return their names."""
        found = [name for name, value in self._values.items() if isinstance(value, str) and value.endswith(text)]
        self._used.update(found)
        return found

    def names(self) -> list[str]:
        """The names of all entries."""
        return list(self._values)

    def unused(self) -> list[str]:
        """The names of the entries that were not read."""
        return [name for name in self._values if name not in self._used]

    @property
    def is_own(self) -> bool:
        """Whether civman made the image."""
        return self.text("Version").startswith("civman")

    @property
    def is_forge(self) -> bool:
        """Whether Forge or one of its forks Classic and Neo made the image."""
        return _FORGE.match(self.text("Version")) is not None

    @property
    def follows_comfyui(self) -> bool:
        """Whether the image was made by ComfyUI or by CivitAI's generator, which uses ComfyUI."""
        version = self.text("Version").casefold()
        by_site = "Civitai resources" in self or ("civitaiResources" in self and "workflow" in self)
        return version.startswith(("comfyui", "swarmui")) or (not version and by_site)

    @property
    def version(self) -> tuple[int, int] | None:
        """The version of A1111 that made the image, or None if the settings do not show it.

        Forge and civman count as 1.10.
        """
        found = self._release
        return found if found is None else found[:2]

    @property
    def _release(self) -> tuple[int, int, int] | None:
        found = _VERSION.match(self.text("Version"))
        if self.is_own or self.is_forge or self.text("Version").casefold().startswith("f"):
            return (1, 10, 0)
        return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None

    def is_before(self, release: tuple[int, ...], commits: int = 0) -> bool:
        """Whether A1111 was older than this many commits after a release; True if its version is unknown.

        `release`: the first two or all three numbers of a version.
        """
        version = self._release
        if version is None or version[: len(release)] != release:
            return version is None or version[: len(release)] < release
        found = re.search(r"-([0-9]+)-g[0-9a-f]", self.text("Version"))
        return (int(found[1]) if found else 0) < commits

    def files(self) -> Iterator[NamedFile]:
        """Yield the checkpoint, VAE, LoRAs and embeddings that the entries name, with their hashes if given."""
        hashes = {**_pairs(self.value("hashes")), **_quoted(self.text("Lora hashes"), "lora")}
        hashes |= _quoted(self.text("TI hashes"), "embed") | self._torn_hashes()
        listed = next((item for item in self._resources() if item.get("type") in ("model", "checkpoint")), {})
        yield NamedFile(
            "checkpoint", self.text("Model") or str(listed.get("name") or ""),
            self._hash(self.text("Model hash") or hashes.get("model") or str(listed.get("hash") or "")),
        )  # fmt: skip
        vae = self.text("VAE") or self._forge_vae()
        digest = self._hash(self.text("VAE hash") or hashes.get("vae", ""))
        if digest or vae.casefold() not in ("", "none", "automatic"):
            yield NamedFile("vae", vae, digest)
        for item in self._resources():
            kind, name = str(item.get("type") or "").casefold(), str(item.get("name") or "")
            hashes.setdefault(f"{_KINDS.get(kind, kind)}:{name}", str(item.get("hash") or ""))
        for key, value in hashes.items():
            kind, _, name = key.partition(":")
            if name and kind in ("lora", "embed"):
                yield NamedFile("embedding" if kind == "embed" else "lora", name, self._hash(value))

    def _forge_vae(self) -> str:
        """The VAE that Forge lists as an additional module; "" if it lists none, or also lists text encoders."""
        modules = [name for name in self._values if _MODULE.fullmatch(name)]
        return self.text(modules[0]) if self.is_forge and len(modules) == 1 else ""

    def listed_hash(self, key: str) -> str:
        """Return the hash of `key` in `Hashes`, such as "controlnet:canny"; "" if there is none."""
        listed = {**_pairs(loads(self.text("Hashes"))), **_pairs(self.value("hashes"))}
        return self._hash(listed.get(key, ""))

    def listed(self, kind: str) -> list[NamedFile]:
        """The files of a kind such as "lora" in the API's list of resources, with their weights in that list."""
        return [
            NamedFile(
                kind, str(item.get("name") or ""), self._hash(str(item.get("hash") or "")), number(item.get("weight"))
            )
            for item in self._resources()
            if item.get("type") == kind
        ]

    def _resources(self) -> list[dict[str, Any]]:
        value = self.value("resources")
        return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

    def _torn_hashes(self) -> dict[str, str]:
        """Collect hashes of LoRAs from a quoted list that CivitAI's reader split; some entries still have a quote."""
        found = {}
        for name, value in self._values.items():
            if isinstance(value, str) and (name.startswith('"') or value.endswith('"')):
                plain = value.strip().strip('"')
                if _HASH.fullmatch(plain):
                    self._used.add(name)
                    found[f"lora:{name.strip(chr(34)).strip()}"] = plain
        return found

    @staticmethod
    def _hash(text: str) -> str:
        plain = text.strip().removeprefix("0x")
        return plain.casefold() if _HASH.fullmatch(plain) else ""


_KINDS: Final = {"lora": "lora", "lycoris": "lora", "locon": "lora", "embed": "embed", "textualinversion": "embed"}


def _pairs(value: object) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {str(key).replace("LORA:", "lora:"): str(item) for key, item in items if isinstance(item, str)}


def _quoted(text: str, kind: str) -> dict[str, str]:
    """Parse a list such as `name: hash, name: hash`; the keys of the result are `kind:name`."""
    found = {}
    for item in text.split(","):
        name, colon, value = item.rpartition(":")
        if colon and name.strip():
            found[f"{kind}:{name.strip()}"] = value.strip()
    return found
