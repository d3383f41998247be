"""Loads torch's largest library while this process still parses its command line and plans.

The system's dynamic loader runs without Python's global interpreter lock, so a thread can load a library in parallel.
This module does not import torch.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Final

from civman.system.native_code import LOAD_GLOBAL, LOAD_NOW, LOADS_LINUX_LIBRARIES

_FIRST: Final = (
    "array", "binascii", "bisect", "csv", "decimal", "hashlib", "mmap", "pydantic_core", "random", "socket", "sqlite3",
    "ssl", "unicodedata", "zoneinfo",
)  # fmt: skip
"""Modules with shared libraries that a render imports before torch.

`begin` imports them first, because the system's dynamic loader loads one library at a time, and they would otherwise
wait for torch's library.
"""


def begin() -> None:
    """Start to load torch's library, unless torch is already imported or is not installed."""
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or not _is_for_cpu(folder := Path(spec.origin).parent / "lib"):
        return
    for name in _FIRST:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    threading.Thread(target=_load_libraries, args=(folder,), daemon=True).start()


def _is_for_cpu(folder: Path) -> bool:
    """Whether torch is a CPU build on Linux; other builds load more libraries before torch's largest one."""
    return LOADS_LINUX_LIBRARIES and not any((folder / f"libtorch_{kind}.so").exists() for kind in _GPUS)


_GPUS: Final = ("cuda", "hip", "xpu")


def _load_libraries(folder: Path) -> None:
    """Load torch's libraries in the same order as torch itself; errors are ignored, since torch will report them."""
    with contextlib.suppress(OSError, AttributeError):
        # call the loader as a C function, because ctypes releases Python's global interpreter lock only around such
        # calls
        load = ctypes.CDLL(None).dlopen
        load.restype, load.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
        for name, scope in (("libtorch_global_deps.so", LOAD_GLOBAL), ("libtorch_cpu.so", 0)):
            if not load(os.fsencode(folder / name), LOAD_NOW | scope):
                return
