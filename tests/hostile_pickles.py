"""Pickles that try to run code, and pickles that try to take all time or memory, written opcode by opcode.

The payload of everything that runs is `os.mkdir(CANARY)` in the current folder, so a real unpickler shows that a file
of this corpus does what it is said to do.
"""

import io
import struct
import zipfile

CANARY = "canary"
PROTO = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


MKDIR, WORD = name("os.mkdir"), text(CANARY)
CALL = MKDIR + tuple_of(WORD) + b"R"
"""What leaves `os.mkdir(CANARY)`'s result on the stack."""
STORAGE = tuple_of(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), b"K\x04") + b"Q"


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\0", storage: bytes = STORAGE) -> bytes:
    return (
        name("torch._utils._rebuild_tensor_v2")
        + tuple_of(storage, offset, shape, strides, b"\x89", name("collections.OrderedDict") + b")R")
        + b"R"
    )


def in_dict(value: bytes, key: bytes = text("a")) -> bytes:
    return PROTO + b"}" + key + value + b"s" + STOP


TENSOR = tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"))
HARMLESS = in_dict(TENSOR)

RUNS = {
    "REDUCE": PROTO + CALL + STOP,
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + tuple_of(WORD) + b"R" + STOP,
    "INST": PROTO + b"(" + WORD + b"ios\nmkdir\n" + STOP,
    "OBJ": PROTO + b"(" + MKDIR + WORD + b"o" + STOP,
    "memo": PROTO + MKDIR + b"q\x07" + b"0" + b"h\x07" + tuple_of(WORD) + b"R" + STOP,
    "text memo": PROTO + MKDIR + b"p300\n0g300\n" + tuple_of(WORD) + b"R" + STOP,
    "long memo": PROTO + MKDIR + b"r\x00\x01\x00\x00" + b"0j\x00\x01\x00\x00" + tuple_of(WORD) + b"R" + STOP,
    "MEMOIZE": b"\x80\x04" + MKDIR + b"\x940h\x00" + tuple_of(WORD) + b"R" + STOP,
    "protocol 0": b"cos\nmkdir\n(S'canary'\ntR.",
    "thrown away": PROTO + CALL + b"0N" + STOP,
    "thrown away with a mark": PROTO + b"(" + CALL + b"1N" + STOP,
    "inside a list in a dictionary": in_dict(b"](" + b"K\x01" + CALL + b"e"),
    "as a key": in_dict(b"N", CALL),
    "as an argument": in_dict(name("collections.OrderedDict") + b"(](" + tuple_of(text("a"), CALL) + b"etR"),
    "as the state of a dictionary": PROTO + name("collections.OrderedDict") + b")R" + b"}" + text("a") + CALL
    + b"sb" + STOP,
    "by a copy of the name": PROTO + MKDIR + b"2" + tuple_of(WORD) + b"R" + STOP,
    "in a frame": b"\x80\x04\x95" + struct.pack("<Q", len(CALL) + 1) + CALL + STOP,
    "by exec": PROTO + name("builtins.exec") + tuple_of(text(f"import os; os.mkdir('{CANARY}')")) + b"R" + STOP,
    "by eval": PROTO + name("builtins.eval") + tuple_of(text(f"__import__('os').mkdir('{CANARY}')")) + b"R" + STOP,
    "by Python 2's name": PROTO + name("__builtin__.eval") + tuple_of(text(f"__import__('os').mkdir('{CANARY}')"))
    + b"R" + STOP,
    "by getattr": PROTO + name("builtins.getattr") + tuple_of(
        name("builtins.__import__") + tuple_of(text("os")) + b"R", text("mkdir")) + b"R" + tuple_of(WORD) + b"R" + STOP,
    "by a partial": PROTO + name("functools.partial") + tuple_of(MKDIR, WORD) + b"R)R" + STOP,
    "by map": PROTO + name("collections.deque") + tuple_of(
        name("builtins.map") + tuple_of(MKDIR, b"](" + WORD + b"e") + b"R") + b"R" + STOP,
    "by a dotted name": b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + tuple_of(WORD) + b"R" + STOP,
    "by another pickle": PROTO + name("pickle.loads") + tuple_of(
        name("_codecs.encode") + tuple_of(text((PROTO + CALL + STOP).decode("latin1")), text("latin1")) + b"R")
    + b"R" + STOP,
    "by subprocess": PROTO + name("subprocess.call") + tuple_of(b"](" + text("mkdir") + WORD + b"e") + b"R" + STOP,
    "by another function": PROTO + name("os.makedirs") + tuple_of(WORD) + b"R" + STOP,
    "by operator": PROTO + name("operator.methodcaller") + tuple_of(text("mkdir"), WORD) + b"R" + tuple_of(
        name("builtins.__import__") + tuple_of(text("os")) + b"R") + b"R" + STOP,
    "by NEWOBJ": PROTO + name("collections.deque") + tuple_of(
        name("builtins.map") + tuple_of(MKDIR, b"](" + WORD + b"e") + b"\x81") + b"R" + STOP,
    "by NEWOBJ_EX": b"\x80\x04" + name("collections.deque") + tuple_of(
        name("builtins.map") + tuple_of(MKDIR, b"](" + WORD + b"e") + b"}\x92") + b"R" + STOP,
    "as the state of an object": PROTO + name("argparse.Namespace") + b")R}" + text("a") + CALL + b"sb" + STOP,
}  # fmt: skip
"""Pickles with which a real unpickler makes the canary."""

NAMES = {
    "persistent id by text": (PROTO + b"Pos.mkdir\n" + STOP, "persistent id"),
    "storage of a foreign class": (
        in_dict(tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
            text("storage"), MKDIR, text("0"), text("cpu"), b"K\x04") + b"Q")), "os.mkdir"),
    "called within a persistent id": (
        in_dict(tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
            text("storage"), name("torch.FloatStorage"), CALL, text("cpu"), b"K\x04") + b"Q")), "os.mkdir"),
    "a module with its source": (
        PROTO + tuple_of(text("module"), name("torch.nn.Linear"), text("a.py"), text("code")) + b"Q" + STOP,
        "torch.nn.Linear"),
    "a whole module": (PROTO + name("torch.nn.modules.linear.Linear") + b")\x81}b" + STOP, "torch.nn.modules.linear"),
    "before a harmless tensor": (PROTO + CALL + b"0" + HARMLESS[2:], "os.mkdir"),
    "after a harmless tensor": (PROTO + TENSOR + b"0" + CALL + STOP, "os.mkdir"),
    "a method that is replaced": (
        PROTO + name("argparse.Namespace") + b")R}" + text("__setstate__") + name("builtins.int") + b"sb}b" + STOP,
        "__setstate__"),
    "an append that is replaced": (
        PROTO + name("argparse.Namespace") + b")RN}" + text("append") + name("builtins.int") + b"s\x86bNa" + STOP,
        "append"),
    "an item of a placeholder": (PROTO + name("argparse.Namespace") + b")RNNs" + STOP, "not a dictionary"),
    "EXT1": (PROTO + b"\x82\x01" + STOP, "EXT1"), "EXT2": (PROTO + b"\x83\x01\x00" + STOP, "EXT2"),
    "EXT4": (PROTO + b"\x84\x01\0\0\0" + STOP, "EXT4"), "NEXT_BUFFER": (b"\x80\x05\x97" + STOP, "NEXT_BUFFER"),
    "READONLY_BUFFER": (b"\x80\x05\x97\x98" + STOP, "NEXT_BUFFER"),
    "torch.load": (PROTO + name("torch.serialization.load") + tuple_of(text("x")) + b"R" + STOP,
                   "torch.serialization.load"),
    "numpy.load": (PROTO + name("numpy.load") + b")R" + STOP, "numpy.load"),
    "torch.hub": (PROTO + name("torch.hub.load") + b")R" + STOP, "torch.hub.load"),
    "lightning's loader": (PROTO + name("pytorch_lightning.utilities.cloud_io.load") + b")R" + STOP,
                           "pytorch_lightning.utilities.cloud_io.load"),
    "a callback that is called": (
        PROTO + name("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") + b")R" + STOP, "ModelCheckpoint"),
    "a callback that is built": (
        PROTO + name("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint") + b"}b" + STOP, "ModelCheckpoint"),
    "an attribute of an allowed name": (
        b"\x80\x04" + text("collections") + text("OrderedDict.__init__") + b"\x93" + STOP, "OrderedDict.__init__"),
    "globals of an allowed function": (
        b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93" + STOP, "__globals__"),
    "another encoding": (
        PROTO + name("_codecs.encode") + tuple_of(text("a"), text("zlib")) + b"R" + STOP, "_codecs.encode"),
    "state of a function": (PROTO + name("torch._utils._rebuild_tensor_v2") + b"}b" + STOP, "_rebuild_tensor_v2"),
    "a class that is given a function": (
        PROTO + name("torch._tensor._rebuild_from_type_v2") + tuple_of(
            name("collections.OrderedDict"), name("torch.Tensor"), b")", b"N") + b"R" + STOP, "OrderedDict"),
    "a dtype that is called": (PROTO + name("torch.float32") + b")R" + STOP, "torch.float32"),
    "a text that is called": (PROTO + text("os.mkdir") + tuple_of(WORD) + b"R" + STOP, "str"),
    "a name with line breaks": (b"\x80\x04" + text("os\n") + text("mkdir") + b"\x93" + STOP, "os?.mkdir"),
    "a very long name": (b"\x80\x04" + text("o" * 100_000) + text("s") + b"\x93" + STOP, "ooo"),
}  # fmt: skip
"""Pickles that must be refused for the name or opcode given, though no interpreter here can run them."""


def _laughs(leaf: bytes, doubles: bytes, times: int) -> bytes:
    """A value that contains itself twice on every level, by memo: 2**times leaves."""
    data = PROTO + leaf + b"q\x00"
    for _ in range(times):
        data += b"0h\x00h\x00" + doubles + b"q\x00"
    return data + STOP


def _many(parts: list[bytes]) -> bytes:
    return PROTO + b"](" + b"".join(parts) + b"e" + STOP


BOMBS = {
    "nested lists": _laughs(b"]", b"\x86", 40),
    "nested tuples with a tensor": _laughs(TENSOR, b"\x86", 40),
    "a key that takes for ever to hash": _laughs(b"K\x01", b"\x86", 60)[:-1] + b"0}h\x00Ns" + STOP,
    "a set of a value that takes for ever to hash": b"\x80\x04" + _laughs(b"K\x01", b"\x86", 60)[2:-1]
    + b"0(h\x00\x91" + STOP,
    "keys that collide": in_dict(
        b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(100_000)) + b"u"),
    "a million steps": PROTO + b"N0" * 600_000 + b"N" + STOP,
    "marks in marks": PROTO + b"(" * 100_000 + STOP,
    "a list in itself": PROTO + b"]q\x00h\x00a" + STOP,
    "a dictionary in itself": PROTO + b"}q\x00" + text("a") + b"h\x00s" + STOP,
    "a number of two gigabytes": PROTO + b"\x8b\xff\xff\xff\x7f" + STOP,
    "a number of a megabyte": PROTO + b"\x8b\x00\x00\x10\x00" + b"\xff" * (1 << 20) + STOP,
    "a number in a million digits": PROTO + b"I" + b"9" * 1_000_000 + b"\n" + STOP,
    "a text of 4 exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + STOP,
    "bytes of 4 exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + STOP,
    "a bytearray of 4 exabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + STOP,
    "a text of negative length": PROTO + b"T\xff\xff\xff\xff" + STOP,
    "a memo of four billion places": PROTO + b"Nr\xff\xff\xff\xff" + STOP,
    "a memo place in many digits": PROTO + b"Np" + b"9" * 2000 + b"\n" + STOP,
    "a dictionary copied again and again": PROTO + b"}(" + b"K\x01N" * 20_000 + b"uq\x000" + (
        name("collections.OrderedDict") + b"h\x00\x85R0") * 20_000 + b"N" + STOP,
    "a list copied again and again": PROTO + b"](" + b"N" * 20_000 + b"eq\x000" + (
        name("builtins.set") + b"h\x00\x85R0") * 20_000 + b"N" + STOP,
    "a state searched again and again": PROTO + b"}(" + b"K\x01N" * 20_000 + b"uq\x000" + name(
        "torch.nn.modules.container.ParameterDict") + b")\x81" + b"h\x00b" * 100_000 + STOP,
    "as many tensors as steps": _many([TENSOR + b"q\x00"] + [b"h\x00"] * 400_000),
}  # fmt: skip
"""Small files that would take very long, or very much memory, in a reader without limits."""

BROKEN_TENSORS = {
    "a negative stride": tensor(tuple_of(b"K\x04"), tuple_of(b"J\xff\xff\xff\xff"), b"K\x03"),
    "a negative size": tensor(tuple_of(b"J\xff\xff\xff\xff"), tuple_of(b"K\x01")),
    "a negative offset": tensor(tuple_of(b"K\x01"), tuple_of(b"K\x01"), b"J\xff\xff\xff\xff"),
    "an offset beyond its storage": tensor(tuple_of(b"K\x01"), tuple_of(b"K\x01"), b"K\x04"),
    "a shape beyond its storage": tensor(tuple_of(b"K\x05"), tuple_of(b"K\x01")),
    "a stride beyond its storage": tensor(tuple_of(b"K\x02"), tuple_of(b"K\x04")),
    "an enormous shape": tensor(tuple_of(number(1 << 50), number(1 << 50)), tuple_of(b"K\x01", b"K\x00")),
    "an enormous empty shape": tensor(tuple_of(b"K\0", *[number(1 << 50)] * 3), tuple_of(*[b"K\x01"] * 4)),
    "an enormous number": tensor(tuple_of(number(1 << 900)), tuple_of(b"K\x01")),
    "elements that overlap": tensor(tuple_of(b"K\x02", b"K\x02"), tuple_of(b"K\x01", b"K\x01")),
    "one element repeated": tensor(tuple_of(number(1 << 40)), tuple_of(b"K\0")),
    "too many axes": tensor(tuple_of(*[b"K\x01"] * 65), tuple_of(*[b"K\x01"] * 65)),
    "axes without strides": tensor(tuple_of(b"K\x02", b"K\x02"), tuple_of(b"K\x01")),
    "a truth for a size": tensor(tuple_of(b"\x88"), tuple_of(b"K\x01")),
    "a fraction for a size": tensor(tuple_of(b"G" + struct.pack(">d", 1.0)), tuple_of(b"K\x01")),
    "a list for a shape": tensor(b"](K\x01e", tuple_of(b"K\x01")),
    "no storage": tensor(tuple_of(b"K\x01"), tuple_of(b"K\x01"), storage=b"N"),
    "a storage of negative size": tensor(tuple_of(b"K\x01"), tuple_of(b"K\x01"), storage=tuple_of(
        text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), b"J\xff\xff\xff\xff") + b"Q"),
    "a storage larger than the file's": tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
        text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), b"K\x05") + b"Q"),
    "a storage that is missing": tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
        text("storage"), name("torch.FloatStorage"), text("7"), text("cpu"), b"K\x04") + b"Q"),
    "a storage outside the archive": tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
        text("storage"), name("torch.FloatStorage"), text("../data.pkl"), text("cpu"), b"K\x04") + b"Q"),
    "a storage of quantised numbers": tensor(tuple_of(b"K\x04"), tuple_of(b"K\x01"), storage=tuple_of(
        text("storage"), name("torch.QInt8Storage"), text("0"), text("cpu"), b"K\x04") + b"Q"),
    "no arguments": name("torch._utils._rebuild_tensor_v2") + b")R",
    "a parameter that is no tensor": name("torch._utils._rebuild_parameter") + tuple_of(b"N", b"\x88", b"N") + b"R",
}  # fmt: skip
"""Descriptions of tensors that cannot be true of the storage `archive` writes: 4 numbers of 4 bytes."""


def archive(pickle: bytes = HARMLESS, *, method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A file as torch.save writes it now, with a storage `0` of 16 bytes. `members` are added or replace others."""
    buffer = io.BytesIO()
    files = {"data.pkl": pickle, "byteorder": b"little", "data/0": bytes(range(16)), "version": b"3\n", **members}
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for member, data in files.items():
            opened.writestr(zipfile.ZipInfo(f"archive/{member}", (1980, 1, 1, 0, 0, 0)), data, method)
    return buffer.getvalue()


def sequence(pickle: bytes = HARMLESS) -> bytes:
    """A file as torch.save wrote it before 1.6, with a storage `0` of 4 numbers."""
    magic = PROTO + number(0x1950A86A20F9469CFC6C) + STOP
    system = PROTO + b"}" + text("little_endian") + b"\x88s" + STOP
    keys = PROTO + b"](" + text("0") + b"e" + STOP
    return magic + PROTO + b"M\xe9\x03" + STOP + system + pickle + keys + struct.pack("<q", 4) + bytes(range(16))
