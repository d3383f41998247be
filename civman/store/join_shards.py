"""Joins a model that is split into several safetensors files (shards) into one file in the store.

Source: the index file of transformers and diffusers, `model.safetensors.index.json`: `weight_map` maps each tensor to
the shard that contains it.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from civman.domain.digests import Sha256
from civman.domain.files.header import Header
from civman.errors import IntegrityError, InvalidModelFile, NotFound, StoreError
from civman.store.blobs import BlobStore, StoredBlob, digest_of
from civman.store.partial import Partial, store_error
from civman.store.read_header import read_header

_INDEX = re.compile(r"(.+)\.safetensors\.index(\.[\w-]+)?\.json", re.IGNORECASE)
_GENERAL_NAMES = ("model", "pytorch_model", "diffusion_pytorch_model")
_MOST_INDEX_BYTES = 64 << 20
_READ_BYTES = 4 << 20


def is_shard_index(path: Path) -> bool:
    """Whether the file exists and is named like the index of a sharded safetensors model."""
    return _INDEX.fullmatch(path.name) is not None and path.is_file()


def joined_name(index_file: Path) -> str:
    """The name of the joined file: the name of the index file or, if that is a generic name, the name of its folder."""
    match = _INDEX.fullmatch(index_file.name)
    stem = match[1] if match is not None else index_file.stem
    folder = index_file.absolute().parent.name
    return f"{folder if stem.lower() in _GENERAL_NAMES and folder else stem}.safetensors"


def join_shards(index_file: Path, store: BlobStore, on_progress: Callable[[int, int], None]) -> StoredBlob:
    """Write one safetensors file with all tensors of the shards into the store. The shards are not changed.

    The same shards always give the same bytes. `on_progress` is called with the numbers of bytes written and in total.

    Raises: InvalidModelFile: the index or a shard is invalid, or they disagree. NotFound: a shard is missing.
    StoreError, DiskFull.
    """
    headers = _shards(index_file)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, pieces = 0, []
    for path, header in headers.items():
        for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].start):
            size = tensor.end - tensor.start
            entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
            pieces.append((path, header.header_bytes + tensor.start, size))
            at += size
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    partial = store.partial(f"joined-{digest_of(index_file)}")
    if not partial.acquire():
        raise StoreError(
            "another civman process is joining these files",
            hint="wait until the other process has finished, then try again",
        )
    try:
        return _written(partial, store, start, pieces, len(start) + at, joined_name(index_file), on_progress)
    finally:
        partial.close(discard=True)


def _written(
    partial: Partial, store: BlobStore, start: bytes, pieces: list[tuple[Path, int, int]], total: int, name: str,
    on_progress: Callable[[int, int], None],
) -> StoredBlob:  # fmt: skip
    if partial.held_bytes:
        partial.reset()
    partial.reserve(total)
    partial.write(0, start)
    done = len(start)
    for path, offset, size in pieces:
        for piece in _read(path, offset, size):
            partial.write(done, piece)
            done += len(piece)
            on_progress(done, total)
    read_header(partial.path)
    actual: Sha256 = digest_of(partial.path)
    return store.commit(partial, expected=None, actual=actual, name=name, suffix=".safetensors")


def _read(path: Path, offset: int, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while size:
                piece = file.read(min(size, _READ_BYTES))
                if not piece:
                    raise IntegrityError(f"`{path.name}` became shorter while it was read", hint="try again")
                size -= len(piece)
                yield piece
    except OSError as error:
        raise store_error(error, path) from error


def _shards(index_file: Path) -> dict[Path, Header]:
    """Read the headers of all shards that the index lists, sorted by file name, and compare them with the index."""
    where = _weight_map(index_file)
    headers: dict[Path, Header] = {}
    for shard in sorted(set(where.values())):
        path = index_file.parent / shard
        if not path.is_file():
            raise NotFound(f"`{shard}` is missing next to `{index_file.name}`", hint="download all files of the model")
        headers[path] = read_header(path)
        named = {tensor for tensor, other in where.items() if other == shard}
        if named != set(headers[path].tensors):
            different = min(named ^ set(headers[path].tensors))
            raise InvalidModelFile(f"only one of `{index_file.name}` and `{shard}` lists the tensor `{different}`")
    return headers


def _weight_map(index_file: Path) -> dict[str, str]:
    try:
        if index_file.stat().st_size > _MOST_INDEX_BYTES:
            raise InvalidModelFile(f"`{index_file.name}` is too large to be the index of a sharded model")
        found = json.loads(index_file.read_bytes())["weight_map"]
        where = {str(tensor): str(shard) for tensor, shard in found.items()}
    except OSError as error:
        raise store_error(error, index_file) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelFile(f"`{index_file.name}` is not the index of a sharded model") from error
    for shard in where.values():
        if Path(shard).name != shard or not shard.lower().endswith(".safetensors"):
            raise InvalidModelFile(f"`{index_file.name}` lists `{shard}`, which is not a safetensors file next to it")
    if not where:
        raise InvalidModelFile(f"`{index_file.name}` lists no tensors")
    return where
