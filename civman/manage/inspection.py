"""What a file is and what it claims to be, from its header alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from civman.domain.adapters.adapter_tensors import deltas_of
from civman.domain.architecture import Identity, Kind
from civman.domain.catalog import Asset, FileFacts, ModelType
from civman.domain.compatibility import Part
from civman.domain.files.gguf import GgufHeader
from civman.domain.files.header import Header, Sniffed, sniff
from civman.domain.identification.claims import Claims, claims
from civman.domain.identification.identify import conflicts, facts, identify
from civman.errors import InvalidModelFile, NotFound
from civman.store.read_header import read_first, read_gguf, read_header, read_numbers

_SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Inspected:
    """One file, by three witnesses kept apart: CivitAI's `label`, the metadata's `claims`, the tensors' `identity`.

    `identity` and `claims` are None for what is no safetensors file; `content` then says what it looks like.
    """

    name: str
    path: str | None
    """None: the header was read over the network, nothing is stored."""
    size_bytes: int | None
    content: Sniffed
    label: str | None = None
    model_type: ModelType = ModelType.OTHER
    identity: Identity | None = None
    claims: Claims | None = None
    conflicts: tuple[str, ...] = ()
    header: Header | None = field(default=None, repr=False)
    asset: Asset | None = None
    gguf: GgufHeader | None = field(default=None, repr=False)
    """Set for a GGUF file alone, which civman can describe but not draw from."""

    @property
    def part(self) -> Part:
        """The file as the compatibility check takes it. Raises: StoreError: an adapter's numbers cannot be read."""
        return Part(self.name, self.model_type, self.label, self.identity, self.header, self._numbers())

    def _numbers(self) -> dict[str, float] | None:
        """An adapter's alphas and flags, which no header shows; None where only a header is at hand."""
        if self.header is None or self.path is None or self.identity is None or self.identity.kind is not Kind.ADAPTER:
            return None
        notes = self.header.notes
        if "numbers" in notes:
            return cast("dict[str, float]", notes["numbers"])
        names = [
            delta.parts[part]
            for delta in deltas_of(self.header).modules
            for part in ("alpha", "on_input")
            if part in delta.parts
        ]
        notes["numbers"] = found = read_numbers(Path(self.path), self.header, names)
        return found


def path_of(text: str) -> Path | None:
    """The file on this disk that `text` names; None where it names none."""
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a null in it: no path
        return None


def inspect_path(path: Path) -> Inspected:
    """What the file at `path` is. Raises: NotFound. InvalidModelFile: a broken safetensors file. StoreError."""
    if not path.is_file():
        raise NotFound(f"no file `{path}`", hint="a ref such as 51207@114620 names a file of the library or of CivitAI")
    return _inspected(path, path.name, None, None, None)


def inspect_asset(asset: Asset) -> Inspected:
    """What a held file is. Raises: as `inspect_path`."""
    path = Path(asset.path)
    if not path.is_file():
        raise NotFound(f"the file of `{asset.name}` is gone: {path}", hint="`civman verify` tells what else is missing")
    return _inspected(path, asset.name, asset.base_model, asset.type, asset)


def inspect_header(header: Header, *, name: str, label: str | None, model_type: ModelType) -> Inspected:
    """What a file is whose header was read over the network."""
    said = claims(header.metadata)
    identity = identify(header, said)
    return Inspected(
        name, None, header.file_size or None, Sniffed.SAFETENSORS, label, model_type, identity, said,
        conflicts(identity, said, label), header,
    )  # fmt: skip


def facts_of_file(path: Path, base_model: str | None) -> FileFacts:
    """What the index keeps of the file at `path`; `base_model` is CivitAI's label.

    Raises: InvalidModelFile: a `.safetensors` file without a sound header. StoreError.
    """
    return facts(read_header(path), base_model) if path.suffix == _SAFETENSORS else FileFacts()


def _inspected(
    path: Path, name: str, label: str | None, model_type: ModelType | None, asset: Asset | None
) -> Inspected:
    size = path.stat().st_size
    content = sniff(read_first(path))
    if content is not Sniffed.SAFETENSORS:
        if path.suffix == _SAFETENSORS:
            raise InvalidModelFile(f"`{name}` is no safetensors file: it looks like {content}", name=name)
        gguf = read_gguf(path) if content is Sniffed.GGUF else None
        return Inspected(name, str(path), size, content, label, model_type or ModelType.OTHER, asset=asset, gguf=gguf)
    header = read_header(path)
    said = claims(header.metadata)
    identity = identify(header, said)
    return Inspected(
        name, str(path), size, content, label, model_type or identity.model_type, identity, said,
        conflicts(identity, said, label), header, asset,
    )  # fmt: skip
