"""Opens adapter and embedding files: only safetensors, read tensor by tensor through a memory map."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from civman.errors import Cause, InvalidModelFile, Refused

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""The first bytes of a zip archive (torch.save since 1.6) and of a bare pickle of protocol 2 or later."""


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class TensorFile(Protocol):
    """The interface of an open safetensors file."""

    def keys(self) -> list[str]:
        """List the names of the tensors."""

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor as a view into the memory map."""

    def get_slice(self, name: str) -> _Slice:
        """Get one tensor's shape without reading its data."""

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata in the file's header."""


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file and close it at the end of the block.

    Raises:
        Refused: the file is a pickle, which can run code when it is read (`code` is `pickle`).
        InvalidModelFile: the file is not a safetensors file or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise InvalidModelFile(f"cannot read `{path.name}`: {error.strerror}", name=path.name) from error
    # rule out safetensors files: they start with the header's length in 8 bytes, whose first byte may be 0x80 as in a
    # pickle, but whose upper 4 bytes are 0
    if start.startswith(_PICKLE_STARTS) and start[4:] != bytes(4):
        raise Refused(
            f"`{path.name}` is a pickle, and a pickle can run code when it is read",
            code=Cause.PICKLE,
            hint="look for a .safetensors version of the file",
            name=path.name,
        )
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise InvalidModelFile(f"`{path.name}` is not a safetensors file: {error}", name=path.name) from error
    with opened as tensors:
        yield tensors
