"""Read a pickle without running anything: civman's own machine for the opcodes, with an allow-list and limits.

A normal unpickler imports and calls what the file names. This machine imports nothing and calls nothing: a name in
`civman.domain.files.pickle_globals` has a fixed meaning, every other name is refused, and so is every opcode that is
not in `_OPCODES`. No file can take much time or memory, because the number of opcodes, the depth of nesting and the
length of texts and numbers are limited, keys are never hashed, and nothing is copied that the file does not contain.

Source: the opcodes as Python's `pickletools` describes them.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from civman.domain.files.header_text import refuse, short
from civman.domain.files.pickle_cursor import MAX_NUMBER_BYTES, MAX_PICKLE_BYTES, Cursor, NeedsMore
from civman.domain.files.pickle_globals import ALLOWED, Global, Meaning
from civman.domain.files.pickle_values import Pairs, Placeholder, Storage, StoredTensor, storage_of, tensor_of
from civman.errors import Cause, InvalidModelFile, Refused

__all__ = ["MAX_OPCODES", "MAX_PICKLE_BYTES", "NeedsMore", "Unpickled", "run"]

MAX_OPCODES = 1_000_000
"""civman's limit on the number of opcodes. A checkpoint with its optimizer's state takes about 200,000."""
_MAX_MARKS = 1_000
_MAX_NAME_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class Unpickled:
    """The value of a pickle.

    `end` is the offset after the pickle's last byte. `storages` are the storages that the value refers to.
    """

    value: Any
    end: int
    storages: Mapping[str, Storage]


def run(data: bytes, *, member: str) -> Unpickled:
    """Read the pickle at the beginning of `data`.

    `member` is the pickle's name in messages, such as `data.pkl`.

    Raises: Refused (`pickle`): it contains a name that is not allowed, given in the message and `facts["global"]`.
        InvalidModelFile: it is broken, exceeds a limit or uses an opcode that torch does not write.
        NeedsMore: the pickle continues beyond the end of `data`.
    """
    return _Machine(data, 0, member).run()


class _Machine(Cursor):
    def __init__(self, data: bytes, start: int, member: str) -> None:
        super().__init__(data, start, member)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0
        self._storages: dict[str, Storage] = {}

    def run(self) -> Unpickled:
        data, opcodes = self.data, _OPCODES
        for _ in range(MAX_OPCODES):
            if self.at >= len(data):
                raise NeedsMore
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._end()
            handler = opcodes.get(code)
            if handler is None:
                self._refuse_opcode(code)
            try:
                handler(self)
            except (IndexError, KeyError):
                refuse(f"{self.member} is broken at byte {self.at}", cause="bad-pickle")
        raise self._too_long()

    def _too_long(self) -> InvalidModelFile:
        return InvalidModelFile(f"{self.member} has more than {MAX_OPCODES:,} opcodes", cause="too-long-pickle")

    def _end(self) -> Unpickled:
        if len(self._stack) != 1 or self._marks:
            refuse(f"{self.member} ends with an unfinished value", cause="bad-pickle")
        return Unpickled(self._stack[0], self.at, self._storages)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _marked(self) -> list[Any]:
        """Remove the last mark from the stack and return the values that were pushed after it."""
        found, self._stack = self._stack, self._marks.pop()
        return found

    # --- methods for the opcodes that load names or make calls

    def _refuse_opcode(self, code: int) -> NoReturn:
        name = _REFUSED.get(code)
        if name is None:
            refuse(f"{self.member} has the unknown opcode 0x{code:02x}", cause="bad-pickle")
        raise Refused(
            f"the pickle opcode {name} in {self.member} can run code, and models do not need it",
            code=Cause.PICKLE, opcode=name, member=self.member,
        )  # fmt: skip

    def _named(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            refuse(f"{self.member} refers to a global whose name is not text", cause="bad-pickle")
        found = ALLOWED.get(f"{module}.{name}") if len(module) + len(name) < _MAX_NAME_BYTES else None
        if found is None:
            raise Refused(
                f"`{short(module)}.{short(name)}` in {self.member} is not allowed: it could run code",
                code=Cause.PICKLE, member=self.member, **{"global": f"{short(module)}.{short(name)}"},
            )  # fmt: skip
        return found

    def _not_callable(self, what: Any) -> NoReturn:
        name = what.name if isinstance(what, Global) else type(what).__name__
        raise Refused(
            f"{self.member} calls `{short(name)}`, which is not allowed",
            code=Cause.PICKLE, member=self.member, **{"global": short(name)},
        )  # fmt: skip

    def call(self, what: Any, arguments: Any) -> Any:
        """Return an inert value in place of the result of calling `what`."""
        if not isinstance(what, Global) or what.meaning in (Meaning.NAME, Meaning.STORAGE, Meaning.DTYPE):
            self._not_callable(what)
        if not isinstance(arguments, tuple):
            refuse(f"{self.member} passes arguments that are not a tuple", cause="bad-pickle")
        match what.meaning:
            case Meaning.DICT:
                return self._dict(arguments)
            case Meaning.PARAMETERS:
                return Pairs(holds_parameters=True)
            case Meaning.TENSOR:
                return tensor_of(arguments)
            case Meaning.TENSOR_WITH_DTYPE:
                return _tensor_with_dtype(arguments)
            case Meaning.TENSOR_OF_CLASS:
                return self._tensor_of_class(arguments)
            case Meaning.PARAMETER:
                return _parameter(arguments)
            case Meaning.SEQUENCE:
                return self._sequence(what, arguments)
            case Meaning.TEXT_TO_BYTES if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
                self._not_callable(what)  # refuse other encodings, because they decompress or load modules
        return Placeholder(what.name)

    def _charge(self, count: int) -> None:
        """Count the values that an opcode copies or searches, because a single opcode may do so with a long list."""
        self._copied += count
        if self._copied > MAX_OPCODES:
            refuse(f"{self.member} copies more values than the pickle of any real model", cause="too-long-pickle")

    def _dict(self, arguments: tuple[Any, ...]) -> Pairs:
        found = Pairs()
        for argument in arguments[:2]:
            if isinstance(argument, Pairs):
                self._charge(len(argument.items))
                found.items += argument.items
            elif isinstance(argument, list):
                self._charge(len(argument))
                pairs = [tuple(each) for each in argument if isinstance(each, list | tuple) and len(each) == 2]
                if len(pairs) != len(argument):
                    refuse(f"{self.member} builds a dictionary from items that are not pairs", cause="bad-pickle")
                found.items += pairs
        return found

    def _tensor_of_class(self, arguments: tuple[Any, ...]) -> Any:
        made = arguments[0]
        if not (isinstance(made, Global) and made.meaning in (Meaning.TENSOR, Meaning.TENSOR_WITH_DTYPE)):
            self._not_callable(made)
        return self.call(made, arguments[2])

    def _sequence(self, what: Global, arguments: tuple[Any, ...]) -> Any:
        first = arguments[0] if arguments else []
        if not isinstance(first, list | tuple):
            return Placeholder(what.name)
        self._charge(len(first))
        return tuple(first) if what.name in ("torch.Size", "builtins.tuple", "__builtin__.tuple") else list(first)

    # opcodes

    def global_(self) -> None:
        self._push(self._named(self.line(_MAX_NAME_BYTES), self.line(_MAX_NAME_BYTES)))

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._named(module, name))

    def reduce(self) -> None:
        arguments, what = self._stack.pop(), self._stack.pop()
        self._push(self.call(what, arguments))

    def newobj_ex(self) -> None:
        keywords, arguments, what = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if not isinstance(keywords, Pairs):
            refuse(f"{self.member} passes keyword arguments that are not a dictionary", cause="bad-pickle")
        self._push(self.call(what, arguments))

    def inst(self) -> None:
        what = self._named(self.line(_MAX_NAME_BYTES), self.line(_MAX_NAME_BYTES))
        self._push(self.call(what, tuple(self._marked())))

    def obj(self) -> None:
        found = self._marked()
        self._push(self.call(found[0], tuple(found[1:])))

    def build(self) -> None:
        state, what = self._stack.pop(), self._stack[-1]
        if not isinstance(what, Pairs | Placeholder | StoredTensor):
            self._not_callable(what)
        self._check_state(state)
        if isinstance(what, Pairs) and what.holds_parameters:
            self._add_parameters(what, state)

    def _check_state(self, state: Any) -> None:
        """Refuse a state that replaces special methods such as `__setstate__`: a normal unpickler would call them."""
        for part in state if isinstance(state, tuple) else (state,):
            entries = part.items if isinstance(part, Pairs) else ()
            self._charge(1 + len(entries))
            named = next((key for key, _ in entries if _is_method(key)), "")
            if named:
                raise Refused(
                    f"{self.member} replaces the method `{short(named)}`, which is not allowed: it could run code",
                    code=Cause.PICKLE, member=self.member, **{"global": short(named)},
                )  # fmt: skip

    def _add_parameters(self, module: Pairs, state: Any) -> None:
        if not isinstance(state, Pairs):
            return
        self._charge(len(state.items))
        found = state.by_name().get("_parameters")
        if isinstance(found, Pairs):
            self._charge(len(found.items))
            module.items += found.items

    def persistent(self) -> None:
        said = self._stack.pop()
        if isinstance(said, tuple) and len(said) == 4 and said[0] == "module" and isinstance(said[1], Global):
            # torch.save before 1.6 stored a class with its source code; the second item is the class itself
            self._push(said[1])
            return
        found = storage_of(said)
        known = self._storages.setdefault(found.key, found)
        if (known.dtype, known.count) != (found.dtype, found.count):
            refuse(f"{self.member} contains two descriptions of storage {short(found.key)}", cause="bad-pickle")
        self._push(found)

    def persistent_text(self) -> None:
        refuse(f"{self.member} contains a persistent id as text, which torch does not write",
               cause="bad-pickle")  # fmt: skip

    def protocol(self) -> None:
        version = self.size("<B")
        if version > 5:
            refuse(f"{self.member} states pickle protocol {version}, which does not exist", cause="bad-pickle")

    def frame(self) -> None:
        self.size("<Q")

    def mark(self) -> None:
        if len(self._marks) >= _MAX_MARKS:
            refuse(f"{self.member} nests its values too deeply", cause="too-deep")
        self._marks.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def pop_mark(self) -> None:
        self._marked()

    def dup(self) -> None:
        self._push(self._stack[-1])

    def put(self) -> None:
        self._keep(self.integer(self.line()))

    def binput(self) -> None:
        self._keep(self.size("<B"))

    def long_binput(self) -> None:
        self._keep(self.size("<I"))

    def memoize(self) -> None:
        self._keep(len(self._memo))

    def _keep(self, number: Any) -> None:
        if not 0 <= number < MAX_OPCODES:
            refuse(f"{self.member} uses memo number {number}, which no real model needs", cause="bad-pickle")
        self._memo[number] = self._stack[-1]

    def get(self) -> None:
        self._push(self._memo[self.integer(self.line())])

    def binget(self) -> None:
        self._push(self._memo[self.size("<B")])

    def long_binget(self) -> None:
        self._push(self._memo[self.size("<I")])

    def int_(self) -> None:
        text = self.line()
        self._push(text == "01" if text in ("00", "01") else self.integer(text))

    def long(self) -> None:
        self._push(self.integer(self.line()))

    def binint(self) -> None:
        self._push(self.size("<i"))

    def binint1(self) -> None:
        self._push(self.size("<B"))

    def binint2(self) -> None:
        self._push(self.size("<H"))

    def long1(self) -> None:
        self._push(int.from_bytes(self.take(self.size("<B")), "little", signed=True))

    def long4(self) -> None:
        size = self.size("<i")
        if not 0 <= size <= MAX_NUMBER_BYTES:
            refuse(f"{self.member} contains an integer of {size:,} bytes, which is not allowed", cause="bad-pickle")
        self._push(int.from_bytes(self.take(size), "little", signed=True))

    def float_(self) -> None:
        text = self.line()
        try:
            self._push(float(text))
        except ValueError:
            refuse(f"{self.member} contains an invalid number", cause="bad-pickle")

    def binfloat(self) -> None:
        self._push(struct.unpack(">d", self.take(8))[0])

    def string(self) -> None:
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
            refuse(f"{self.member} contains an invalid string", cause="bad-pickle")
        self._push(text[1:-1])

    def unicode(self) -> None:
        text = self.line()
        if "\\" in text:
            refuse(f"{self.member} contains an invalid string", cause="bad-pickle")
        self._push(text)

    def binstring(self) -> None:
        size = self.size("<i")
        if size < 0:
            refuse(f"{self.member} contains a string of negative length", cause="bad-pickle")
        self._push(self.take(size).decode("utf-8", errors="replace"))

    def short_binstring(self) -> None:
        self._push(self.take(self.size("<B")).decode("utf-8", errors="replace"))

    def short_binunicode(self) -> None:
        self._push(self.text(self.take(self.size("<B"))))

    def binunicode(self) -> None:
        self._push(self.text(self.take(self.size("<I"))))

    def binunicode8(self) -> None:
        self._push(self.text(self.take(self.size("<Q"))))

    def short_binbytes(self) -> None:
        self._push(self.take(self.size("<B")))

    def binbytes(self) -> None:
        self._push(self.take(self.size("<I")))

    def binbytes8(self) -> None:
        self._push(self.take(self.size("<Q")))

    def none(self) -> None:
        self._push(None)

    def true(self) -> None:
        self._push(True)

    def false(self) -> None:
        self._push(False)

    def empty_list(self) -> None:
        self._push([])

    def empty_tuple(self) -> None:
        self._push(())

    def empty_dict(self) -> None:
        self._push(Pairs())

    def list_(self) -> None:
        self._push(self._marked())

    def tuple_(self) -> None:
        self._push(tuple(self._marked()))

    def tuple1(self) -> None:
        self._tuple_of(1)

    def tuple2(self) -> None:
        self._tuple_of(2)

    def tuple3(self) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        found = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._push(found)

    def dict_(self) -> None:
        found, made = self._marked(), Pairs()
        self._add_pairs(made, found)
        self._push(made)

    def append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target += values
        else:
            refuse(f"{self.member} appends to something that is not a list", cause="bad-pickle")

    def setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._add_pairs(self._stack[-1], [key, value])

    def setitems(self) -> None:
        found = self._marked()
        self._add_pairs(self._stack[-1], found)

    def _add_pairs(self, target: Any, values: list[Any]) -> None:
        if len(values) % 2:
            raise IndexError
        if isinstance(target, Pairs):
            target.items += zip(values[::2], values[1::2], strict=True)
        else:
            refuse(f"{self.member} sets an item of something that is not a dictionary",
                   cause="bad-pickle")  # fmt: skip


def _tensor_with_dtype(arguments: tuple[Any, ...]) -> StoredTensor:
    dtype = arguments[6]
    if not (isinstance(dtype, Global) and dtype.meaning is Meaning.DTYPE):
        refuse("a tensor in the pickle has a type that civman does not know", cause="unknown-dtype")
    return tensor_of(arguments, dtype.dtype)


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not isinstance(arguments[0], StoredTensor):
        refuse("a parameter in the pickle is not a tensor", cause="bad-pickle")
    return arguments[0]


def _is_method(key: Any) -> bool:
    return isinstance(key, str) and (key.startswith("__") or key in ("append", "extend", "add"))


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord("("): _Machine.mark, ord("0"): _Machine.pop, ord("1"): _Machine.pop_mark, ord("2"): _Machine.dup,
    ord("F"): _Machine.float_, ord("I"): _Machine.int_, ord("J"): _Machine.binint, ord("K"): _Machine.binint1,
    ord("L"): _Machine.long, ord("M"): _Machine.binint2, ord("N"): _Machine.none, ord("P"): _Machine.persistent_text,
    ord("Q"): _Machine.persistent, ord("R"): _Machine.reduce, ord("S"): _Machine.string,
    ord("T"): _Machine.binstring, ord("U"): _Machine.short_binstring, ord("V"): _Machine.unicode,
    ord("X"): _Machine.binunicode, ord("a"): _Machine.append, ord("b"): _Machine.build, ord("c"): _Machine.global_,
    ord("d"): _Machine.dict_, ord("}"): _Machine.empty_dict, ord("e"): _Machine.appends, ord("g"): _Machine.get,
    ord("h"): _Machine.binget, ord("i"): _Machine.inst, ord("j"): _Machine.long_binget, ord("l"): _Machine.list_,
    ord("]"): _Machine.empty_list, ord("o"): _Machine.obj, ord("p"): _Machine.put, ord("q"): _Machine.binput,
    ord("r"): _Machine.long_binput, ord("s"): _Machine.setitem, ord("t"): _Machine.tuple_,
    ord(")"): _Machine.empty_tuple, ord("u"): _Machine.setitems, ord("G"): _Machine.binfloat,
    ord("B"): _Machine.binbytes, ord("C"): _Machine.short_binbytes,
    0x80: _Machine.protocol, 0x81: _Machine.reduce, 0x85: _Machine.tuple1, 0x86: _Machine.tuple2,
    0x87: _Machine.tuple3, 0x88: _Machine.true, 0x89: _Machine.false, 0x8A: _Machine.long1, 0x8B: _Machine.long4,
    0x8C: _Machine.short_binunicode, 0x8D: _Machine.binunicode8, 0x8E: _Machine.binbytes8,
    0x8F: _Machine.empty_list, 0x90: _Machine.appends, 0x91: _Machine.list_, 0x92: _Machine.newobj_ex,
    0x93: _Machine.stack_global, 0x94: _Machine.memoize, 0x95: _Machine.frame, 0x96: _Machine.binbytes8,
}  # fmt: skip
"""Maps every opcode that the machine executes to its method. Sets are built as lists, so that nothing is hashed."""
_REFUSED = {0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER"}
