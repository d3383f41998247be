"""The format of a bundle: an uncompressed tar file in which the manifest determines every byte except file contents.

`civman-bundle.json` comes first and lists the blobs by SHA-256. It is followed, for each blob, by its sidecar, preview
and contents, in this order. The reader knows from the manifest which tar header comes at which offset and accepts no
other, so path traversal, links, duplicates and extra members are impossible. `tar tf` can list a bundle.

Source: POSIX.1-1988 ustar; sizes of 8 GiB and more in GNU's base 256.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from civman.domain.digests import Sha256, sha256_from
from civman.errors import Cause, IntegrityError, StoreError
from civman.store.partial import store_error

MANIFEST = "civman-bundle.json"
BLOCK = 512
MOST_MANIFEST_BYTES = 64 << 20
MOST_SIDECAR_BYTES = 16 << 20
MOST_PREVIEW_BYTES = 32 << 20
_FORMAT = 1
_OCTAL_LIMIT = 8 << 30
_SUFFIX = re.compile(r"\.[a-z0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Small:
    """The SHA-256 and size of a sidecar or preview in a bundle."""

    sha256: Sha256
    size_bytes: int
    suffix: str = ".json"


@dataclass(frozen=True, slots=True)
class Packed:
    """One blob of a bundle with its sidecar and preview."""

    sha256: Sha256
    size_bytes: int
    suffix: str
    sidecar: Small
    preview: Small | None = None

    def members(self) -> Iterator[tuple[str, int]]:
        """The names and sizes of the tar members for this blob, in order."""
        yield f"sidecars/{self.sha256}.json", self.sidecar.size_bytes
        if self.preview is not None:
            yield f"previews/{self.sha256}{self.preview.suffix}", self.preview.size_bytes
        yield f"blobs/{self.sha256}{self.suffix}", self.size_bytes


def is_bundle(path: Path) -> bool:
    """Whether the file starts like a bundle; False if it is not a regular file or cannot be read."""
    try:
        if not path.is_file():  # do not open a named pipe, because reading it could block forever
            return False
        with path.open("rb") as file:
            block = file.read(BLOCK)
    except OSError:
        return False
    return len(block) == BLOCK and block.startswith(MANIFEST.encode() + b"\0") and block[257:262] == b"ustar"


def bad_bundle(why: str, **facts: str | int) -> IntegrityError:
    """Build the error for a bundle that is damaged or was modified."""
    hint = "export the bundle again with `civman export`, and compare its SHA-256 on both computers after copying it"
    return IntegrityError(f"the bundle is invalid: {why}", code=Cause.BAD_BUNDLE, hint=hint, **facts)


def header(name: str, size_bytes: int) -> bytes:
    """Build the tar header of a member, which is independent of when, where and by whom the bundle was made."""
    is_small = size_bytes < _OCTAL_LIMIT
    size = f"{size_bytes:011o}\0".encode() if is_small else b"\x80" + size_bytes.to_bytes(11, "big")
    start = name.encode().ljust(100, b"\0") + b"0000444\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    end = (b"0" + bytes(100) + b"ustar\0" + b"00").ljust(BLOCK - 156, b"\0")
    checksum = sum(start) + 8 * 32 + sum(end)
    return start + f"{checksum:06o}\0 ".encode() + end


def padding(size_bytes: int) -> bytes:
    """The zero bytes that fill up the last tar block of a member of this size."""
    return bytes(-size_bytes % BLOCK)


def manifest_bytes(packed: list[Packed]) -> bytes:
    """Write the manifest of these blobs as sorted JSON, so that the same content always gives the same bytes."""
    facts = {"format": _FORMAT, "blobs": [asdict(each) for each in sorted(packed, key=lambda each: each.sha256)]}
    return json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n"


def total_bytes(manifest_size: int, packed: list[Packed]) -> int:
    """The size in bytes of the whole bundle file."""
    sizes = [manifest_size, *(size for each in packed for _, size in each.members())]
    return sum(BLOCK + size + -size % BLOCK for size in sizes) + 2 * BLOCK


class Reader:
    """Reads a bundle from start to end. Contents have the declared size; the caller must check the digests.

    Every method raises IntegrityError (`bad-bundle`) if the bundle is truncated, has extra data or a modified
    structure.
    """

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        """Read and check the manifest. `size_bytes` is the size of the whole file."""
        self._file = file
        block = self._take(BLOCK)
        declared = _declared_size(block)
        if declared is None or declared > MOST_MANIFEST_BYTES or block != header(MANIFEST, declared):
            raise bad_bundle("the file does not start with a manifest")
        data = self._take(declared)
        self._end_member(declared)
        self.packed = _packed_from(data)
        expected = total_bytes(declared, self.packed)
        if size_bytes != expected:
            if size_bytes < expected:
                raise bad_bundle(f"the file is truncated: it has {size_bytes} of {expected} bytes")
            raise bad_bundle(f"the file has {size_bytes - expected} bytes after the end of the bundle")

    def small(self, name: str, size_bytes: int) -> bytes:
        """Read the whole contents of a sidecar or preview."""
        self._begin(name, size_bytes)
        data = self._take(size_bytes)
        self._end_member(size_bytes)
        return data

    def blob(self, name: str, size_bytes: int, view: memoryview) -> Iterator[memoryview]:
        """Read a blob's contents into `view` piece by piece; yields the filled part of `view` for each piece."""
        self._begin(name, size_bytes)
        left = size_bytes
        while left:
            count = self._read_into(view[: min(len(view), left)])
            left -= count
            yield view[:count]
        self._end_member(size_bytes)

    def end(self) -> None:
        """Check that nothing but the end marker of a tar file follows."""
        if self._take(2 * BLOCK) != bytes(2 * BLOCK) or self._file.read(1):
            raise bad_bundle("there is data after the last file")

    def _begin(self, name: str, size_bytes: int) -> None:
        if self._take(BLOCK) != header(name, size_bytes):
            raise bad_bundle(f"the entry at the place of `{name}` is a different one", name=name)

    def _end_member(self, size_bytes: int) -> None:
        zeros = padding(size_bytes)
        if zeros and self._take(len(zeros)) != zeros:
            raise bad_bundle("there is data between the files")

    def _take(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise StoreError(f"the bundle cannot be read: {error.strerror}") from error
        if len(data) != count:
            raise bad_bundle("it is truncated")
        return data

    def _read_into(self, view: memoryview) -> int:
        data = self._file.read(len(view))
        if not data:
            raise bad_bundle("it is truncated")
        view[: len(data)] = data
        return len(data)


def open_bundle(path: Path) -> IO[bytes]:
    """Open the file at `path` for reading. Raises: StoreError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise store_error(error, path) from error


def _declared_size(block: bytes) -> int | None:
    digits = block[124:135]
    return int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else None


def _packed_from(data: bytes) -> list[Packed]:
    try:
        facts = json.loads(data)
        if facts["format"] != _FORMAT:
            raise bad_bundle(
                f"format {facts['format']!r} is not supported; this version of civman reads only format {_FORMAT}"
            )
        packed = [_packed(item) for item in facts["blobs"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise bad_bundle("the manifest cannot be read") from error
    if [each.sha256 for each in packed] != sorted({each.sha256 for each in packed}):
        raise bad_bundle("the manifest lists a file twice or out of order")
    return packed


def _packed(item: dict[str, Any]) -> Packed:
    preview = item["preview"]
    return Packed(
        sha256=_digest(item["sha256"]),
        size_bytes=_size(item["size_bytes"], None),
        suffix=_suffix(item["suffix"], may_lack=True),
        sidecar=_small(item["sidecar"], MOST_SIDECAR_BYTES),
        preview=None if preview is None else _small(preview, MOST_PREVIEW_BYTES),
    )


def _small(item: dict[str, Any], most_bytes: int) -> Small:
    return Small(_digest(item["sha256"]), _size(item["size_bytes"], most_bytes), _suffix(item["suffix"]))


def _digest(text: object) -> Sha256:
    digest = sha256_from(str(text))
    if digest != text:
        raise ValueError(text)
    return digest


def _size(number: object, most: int | None) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or number >= 1 << 60:
        raise ValueError(number)
    if most is not None and number > most:
        raise bad_bundle(f"a file that accompanies a model has {number} bytes; the limit is {most}")
    return number


def _suffix(text: object, *, may_lack: bool = False) -> str:
    if not isinstance(text, str) or not (_SUFFIX.fullmatch(text) or (may_lack and not text)):
        raise ValueError(text)
    return text
