"""The values that `civman.domain.files.pickle_machine` builds. None of them can run anything.

Every number that a file states about a tensor is checked here before it is used in a computation.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from civman.domain.files.header_text import BITS, refuse
from civman.domain.files.pickle_globals import Global, Meaning

MAX_DIMS: Final = 64
_MOST_ELEMENTS: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers that tensors refer to.

    `key` identifies the block within the file, `count` is its number of elements, and `start` is the first element of a
    view of it. `dtype` None means untyped bytes.
    """

    key: str
    dtype: str | None
    count: int
    start: int = 0
    view_count: int = -1
    """The number of elements, from `start` on, that tensors may use; -1 means all of them."""

    @property
    def usable(self) -> int:
        """The number of elements that tensors may use: those of the view or, without a view, of the whole storage."""
        return self.count if self.view_count < 0 else self.view_count


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in `storage`: its shape, its strides, and the index of its first element in the whole storage."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """The size in bytes of one element."""
        return BITS[self.dtype] // 8

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are stored one after the other, in the order of the tensor."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Pairs:
    """A dictionary as a list of pairs, because hashing keys from a file could take arbitrarily long."""

    __slots__ = ("holds_parameters", "items")

    def __init__(self, *, holds_parameters: bool = False) -> None:
        self.items: list[tuple[Any, Any]] = []
        self.holds_parameters = holds_parameters

    def by_name(self) -> dict[str, Any]:
        """Return the entries whose keys are text or integers. If a name occurs twice, its last entry is used."""
        return {
            str(key): value for key, value in self.items if isinstance(key, str | int) and not isinstance(key, bool)
        }


class Placeholder:
    """Stands in for an object that civman does not need; it contains only the name of the object's class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def storage_of(said: Any) -> Storage:
    """Build the storage that a persistent id describes. Raises: InvalidModelFile: it does not describe a storage."""
    if not (isinstance(said, tuple) and len(said) in (5, 6) and said[0] == "storage"):
        refuse("a persistent id in the pickle does not describe a storage of torch", cause="bad-pickle")
    kind, key, count = said[1], said[2], said[4]
    if not (isinstance(kind, Global) and kind.meaning is Meaning.STORAGE):
        refuse("a storage in the pickle has a class that civman does not know", cause="bad-pickle")
    if not (isinstance(key, str | int) and not isinstance(key, bool) and _is_size(count)):
        refuse("a storage in the pickle has no valid key or size", cause="bad-pickle")
    view = said[5] if len(said) == 6 else None
    if view is None:
        return Storage(str(key), kind.dtype, count)
    if not (isinstance(view, tuple) and len(view) == 3 and _is_size(view[1]) and _is_size(view[2])):
        refuse("the pickle contains an invalid view of a storage", cause="bad-pickle")
    if view[1] + view[2] > count:
        refuse("a view of a storage goes beyond its end", cause="bad-size")
    return Storage(str(key), kind.dtype, count, view[1], view[2])


def tensor_of(arguments: tuple[Any, ...], dtype: str | None = None) -> StoredTensor:
    """Build the tensor that torch would build from these arguments: storage, offset, sizes, strides.

    `dtype` is given for tensors over untyped storages. Raises: InvalidModelFile: the numbers do not fit the storage.
    """
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        refuse("a tensor in the pickle has no storage", cause="bad-pickle")
    storage, offset, shape, strides = arguments[:4]
    kind = dtype or storage.dtype
    if kind is None:
        refuse("a tensor in the pickle has no type", cause="bad-pickle")
    if not (_is_size(offset) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        refuse("a tensor in the pickle has no valid offset or shape", cause="bad-shape")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        refuse("a tensor in the pickle has an impossible number of axes", cause="bad-shape")
    if not all(map(_is_size, shape)):
        refuse("a tensor in the pickle has an impossible shape", cause="bad-shape")
    if not all(map(_is_size, strides)):
        refuse("a tensor in the pickle has negative or impossible strides", cause="bad-strides")
    usable = storage.usable
    if storage.dtype is None:
        usable //= BITS[kind] // 8
    _check_extent(offset, shape, strides, usable)
    return StoredTensor(storage, kind, shape, strides, storage.start + offset)


def _check_extent(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], usable: int) -> None:
    """Check that all elements are inside the storage and that no two elements overlap."""
    if 0 in shape:
        if math.prod(size for size in shape if size) > _MOST_ELEMENTS:
            refuse("a tensor in the pickle has an impossible shape", cause="bad-shape")
        return
    last = offset
    for size, stride in zip(shape, strides, strict=True):
        last += (size - 1) * stride
    if last >= usable:
        refuse("a tensor in the pickle goes beyond the end of its storage", cause="bad-size")
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride <= reach:
            refuse("a tensor in the pickle overlaps itself", cause="bad-strides")
        reach += (size - 1) * stride


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_ELEMENTS
