"""Facts about this machine: free memory, boot time, disks and GPUs.

A fact is None or empty if the system does not report it.
"""

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

_ASK_S: Final = 5.0
_VM_PAGE: Final = re.compile(r"page size of (\d+) bytes")
_VM_FREE: Final = re.compile(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", re.MULTILINE)


class MemoryStatus(ctypes.Structure):
    """The Windows structure MEMORYSTATUSEX, which GlobalMemoryStatusEx fills in."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total_bytes", ctypes.c_uint64),
        ("available_bytes", ctypes.c_uint64),
        ("total_page_file_bytes", ctypes.c_uint64),
        ("available_page_file_bytes", ctypes.c_uint64),
        ("total_virtual_bytes", ctypes.c_uint64),
        ("available_virtual_bytes", ctypes.c_uint64),
        ("available_extended_bytes", ctypes.c_uint64),
    )


def available_memory_bytes() -> int | None:
    """The memory in bytes that programs can still use without swapping; None if the system does not report it."""
    if sys.platform == "win32":
        status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
        is_filled = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        found = int(status.available_bytes) if is_filled else None
    elif sys.platform == "darwin":
        found = vm_stat_bytes(_output("/usr/bin/vm_stat"))
    else:
        found = _proc_bytes() or _sysconf_bytes()
    return found


def vm_stat_bytes(text: str) -> int | None:
    """Return the bytes that macOS' `vm_stat` reports as free or easily freed; None if `text` is not its output."""
    page = _VM_PAGE.search(text)
    counts = _VM_FREE.findall(text)
    return int(page[1]) * sum(map(int, counts)) if page and counts else None


@cache
def processor() -> str:
    """The processor's name with its family, model and stepping; an empty string if the system does not report it.

    Two processors with the same instructions may still compute results that differ in the last bits, because libraries
    choose their routines by the processor's model.
    """
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0]
    except OSError:
        return platform.processor()
    facts = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", first, re.MULTILINE))
    numbers = [f"{name} {facts[key]}" for name, key in _PROCESSOR_FACTS if key in facts]
    return " ".join([facts.get("model name", platform.machine()), *numbers])


_PROCESSOR_FACTS: Final = (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))


@cache
def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 (x86: AVX512_BF16); False if the system does not report it.

    Without them, bfloat16 is computed by way of float32 and is not faster.
    """
    try:
        return states_bfloat16(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
    except OSError:
        return False


def states_bfloat16(text: str) -> bool:
    """Whether the contents of Linux' `/proc/cpuinfo` list the flag `avx512_bf16` for every processor."""
    flags = re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return bool(flags) and all("avx512_bf16" in each.split() for each in flags)


@cache
def boot_id() -> str:
    """An identifier that changes with every boot of the machine; an empty string if there is none (Windows)."""
    found = ""
    if sys.platform == "darwin":
        found = _output("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
    else:
        with contextlib.suppress(OSError):
            found = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return found.strip()


def spins(device: int) -> bool:
    """Whether the disk with this device number (`st_dev`) is a hard disk with spinning platters; False if unknown."""
    if device and sys.platform != "win32" and hasattr(os, "major"):
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        for place in (block / "queue" / "rotational", block / ".." / "queue" / "rotational"):
            with contextlib.suppress(OSError):
                # only trust disks with a vendor, because virtual disks have none and also report that they spin
                is_spinning = place.read_text(encoding="ascii").strip() == "1"
                return is_spinning and (place.parent.parent / "device" / "vendor").exists()
    return False


def gpu_names() -> list[str]:
    """The names of the GPUs that can be used for rendering and can be detected without loading torch."""
    if sys.platform == "win32":
        driver = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll")
        found = [str(driver)] if driver.exists() else []
    elif sys.platform == "darwin":
        found = ["Apple GPU (mps)"] if platform.machine() == "arm64" else []
    else:
        found = sorted(str(path) for path in (*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")))
    return found


def _proc_bytes() -> int | None:
    # read MemAvailable: Linux's estimate counts page cache as available, including the pages of the model's own file
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _sysconf_bytes() -> int | None:
    if sys.platform != "win32" and hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):  # some systems do not report the number of available pages
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ASK_S, check=True)  # noqa: S603  # fixed arguments
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")
