"""Compilers and libraries of native code, which differ between systems."""

import sys
from typing import Final

DEFAULT_CPP_COMPILER: Final = "clang++" if sys.platform == "darwin" else "g++"
"""The program that torch's compiler runs to compile C++, unless the environment variable CXX names another one."""

LOADS_LINUX_LIBRARIES: Final = sys.platform == "linux"
"""Whether the system loads shared libraries as Linux does, from files such as `libtorch_cpu.so`."""
