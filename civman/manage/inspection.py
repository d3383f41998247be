"""Identifies a model file from its header alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from civman.domain.adapters.adapter_tensors import deltas_of
from civman.domain.architecture import Identity, Kind
from civman.domain.catalog import Asset, FileFacts, ModelType
from civman.domain.compatibility import Part
from civman.domain.file_suffixes import GGUF_SUFFIX, SAFETENSORS_SUFFIXES
from civman.domain.files.gguf import GgufHeader
from civman.domain.files.header import Header, Sniffed, sniff
from civman.domain.files.packed_weights import require_computable
from civman.domain.files.weight_forms import weight_form
from civman.domain.identification.claims import Claims, claims
from civman.domain.identification.identify import conflicts, facts, identify
from civman.errors import CannotRender, CivmanError, InvalidModelFile, NotFound
from civman.store.read_header import (
    plain_header,
    read_first,
    read_gguf,
    read_header,
    read_numbers,
    read_tokenizer,
)
from civman.store.read_pickle import PickleFile, looks_like_pickle, read_or_refusal, read_pickled_numbers


@dataclass(frozen=True, slots=True)
class Inspected:
    """What is known about a model file, from three separate sources.

    `label`: its base model according to CivitAI; `claims`: what its metadata claims; `identity`: what its tensors show.
    `claims` and `identity` are None for a file whose tensors cannot be read; `content` is the format of the file.
    """

    name: str
    path: str | None
    """The file's path; None if the header was read from CivitAI and the file is not on this disk."""
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
    """The header of a GGUF file; `header` lists the same tensors. None for all other formats."""
    pickle: PickleFile | None = field(default=None, repr=False)
    """What a pickle contains, read without running it. `header` then describes a safetensors file with the same
    tensors.
    """
    refusal: CivmanError | None = field(default=None, repr=False)
    """Why civman does not read a pickle: it could run code, or it is broken."""

    @property
    def part(self) -> Part:
        """The file as an argument for the compatibility check.

        Raises: StoreError: an adapter's alphas cannot be read.
        """
        unread = "" if self.header is not None else str(self.content)
        return Part(
            self.name, self.model_type, self.label, self.identity, self._unpacked(), self._numbers(), content=unread
        )  # fmt: skip

    def _unpacked(self) -> Header | None:
        try:
            return self.model_header()
        # ignore the error: it is reported when the checkpoint itself is examined
        except (CannotRender, InvalidModelFile):
            return self.header

    def model_header(self) -> Header | None:
        """Return the header with the tensors as the model sees them, unpacked by `read_header.plain_header`.

        If the file itself is not on this disk, the header is returned unchanged. Raises: the errors of `plain_header`.
        """
        if self.header is None:
            return None
        if self.path is None:
            require_computable(weight_form(self.header.tensors), self.name)
            return self.header
        if "plain" not in self.header.notes:
            self.header.notes["plain"] = plain_header(Path(self.path), self.header)
        return cast("Header", self.header.notes["plain"])

    def _numbers(self) -> dict[str, float] | None:
        """Read an adapter's alphas and flags, which are stored as tensor values, not in the header.

        None if the file is not an adapter, is a GGUF file, or is not on this disk.
        """
        if self.header is None or self.path is None or self.identity is None or self.identity.kind is not Kind.ADAPTER:
            return None
        if self.gguf is not None:
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
        if self.pickle is not None:
            notes["numbers"] = found = read_pickled_numbers(Path(self.path), self.pickle, names)
        else:
            notes["numbers"] = found = read_numbers(Path(self.path), self.header, names)
        return found


def path_of(text: str) -> Path | None:
    """The local file that `text` refers to, or None if it is not the path of a file."""
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    # the text is not a valid path: it is too long, names an unknown home folder, or contains a null character
    except (OSError, RuntimeError, ValueError):
        return None


def inspect_path(path: Path) -> Inspected:
    """Inspect the file at `path`. Raises: NotFound. InvalidModelFile: a broken safetensors file. StoreError."""
    if not path.is_file():
        raise NotFound(
            f"there is no file `{path}`", hint="for a file of the library or CivitAI, use a ref such as 51207@114620"
        )
    return _inspected(path, path.name, None, None, None)


def inspect_asset(asset: Asset) -> Inspected:
    """Inspect a stored file. Raises: the errors of `inspect_path`."""
    path = Path(asset.path)
    if not path.is_file():
        raise NotFound(f"the file of `{asset.name}` is missing: {path}", hint="`civman verify` lists all missing files")
    return _inspected(path, asset.name, asset.base_model, asset.type, asset)


def inspect_header(
    header: Header, *, name: str, label: str | None, model_type: ModelType, content: Sniffed = Sniffed.SAFETENSORS
) -> Inspected:
    """Inspect a file on CivitAI whose header was downloaded."""
    said = claims(header.metadata)
    identity = identify(header, said)
    return Inspected(
        name, None, header.file_size or None, content, label, model_type, identity, said,
        conflicts(identity, said, label), header,
    )  # fmt: skip


def facts_of_file(path: Path, base_model: str | None) -> FileFacts:
    """Read the facts about the file at `path` that the index stores. `base_model` is CivitAI's label.

    The facts are empty for a pickle that civman refuses to read. Raises: InvalidModelFile: a `.safetensors` file
    without a valid header. StoreError.
    """
    if path.suffix.lower() in SAFETENSORS_SUFFIXES:
        return facts(read_header(path), base_model)
    if path.suffix.lower() == GGUF_SUFFIX and sniff(read_first(path)) is Sniffed.GGUF:
        return facts(read_gguf(path).as_header, base_model)
    if sniff(read_first(path)) is Sniffed.TOKENIZER:
        return facts(read_tokenizer(path), base_model)
    found = read_or_refusal(path, path.name) if looks_like_pickle(path) else None
    return facts(found.header, base_model) if isinstance(found, PickleFile) else FileFacts()


def _inspected(
    path: Path, name: str, label: str | None, model_type: ModelType | None, asset: Asset | None
) -> Inspected:
    size = path.stat().st_size
    content = sniff(read_first(path))
    if content is not Sniffed.SAFETENSORS:
        if path.suffix.lower() in SAFETENSORS_SUFFIXES:
            raise InvalidModelFile(f"`{name}` is not a safetensors file: its content is {content}", name=name)
        if looks_like_pickle(path):
            return _inspected_pickle(path, name, label, model_type, asset)
        if content not in (Sniffed.GGUF, Sniffed.TOKENIZER):
            return Inspected(name, str(path), size, content, label, model_type or ModelType.OTHER, asset=asset)
    gguf = read_gguf(path) if content is Sniffed.GGUF else None
    read = read_tokenizer if content is Sniffed.TOKENIZER else read_header
    header = gguf.as_header if gguf is not None else read(path)
    said = claims(header.metadata)
    identity = identify(header, said)
    cut = (gguf.cut_words,) if gguf is not None and gguf.cut_words else ()
    return Inspected(
        name, str(path), size, content, label, model_type or identity.model_type, identity, said,
        (*cut, *conflicts(identity, said, label)), header, asset, gguf,
    )  # fmt: skip


def _inspected_pickle(
    path: Path, name: str, label: str | None, model_type: ModelType | None, asset: Asset | None
) -> Inspected:
    size, found = path.stat().st_size, read_or_refusal(path, name)
    if isinstance(found, CivmanError):
        other = model_type or ModelType.OTHER
        return Inspected(name, str(path), size, Sniffed.PICKLE, label, other, asset=asset, refusal=found)
    said = claims(found.header.metadata)
    identity = identify(found.header, said)
    return Inspected(
        name, str(path), size, Sniffed.PICKLE, label, model_type or identity.model_type, identity, said,
        conflicts(identity, said, label), found.header, asset, pickle=found,
    )  # fmt: skip
