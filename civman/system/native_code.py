"""Compilers and libraries of native code, which differ between systems."""

import os
import sys
from typing import Final

DEFAULT_CPP_COMPILER: Final = "clang++" if sys.platform == "darwin" else "g++"
"""The program that torch's compiler runs to compile C++, unless the environment variable CXX names another one."""

LOADS_LINUX_LIBRARIES: Final = sys.platform == "linux"
"""Whether the system loads shared libraries as Linux does, from files such as `libtorch_cpu.so`."""

LOAD_GLOBAL: Final[int] = getattr(os, "RTLD_GLOBAL", 0)
"""The `dlopen` flag RTLD_GLOBAL, which makes a library's symbols visible to libraries loaded later; 0 on Windows."""

LOAD_NOW: Final[int] = getattr(os, "RTLD_NOW", 0)
"""The `dlopen` flag RTLD_NOW, which resolves all symbols of a library at once; 0 on Windows, which has no `dlopen`."""
