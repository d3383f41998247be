"""Chooses the device and precision, makes rendering repeatable, and records the environment that images depend on."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final, Protocol

import torch

from civman import __version__
from civman.errors import CannotRender, Cause
from civman.system.system_facts import processor

# set this now: cuBLAS reads it once, at its first matrix product, which may encode a prompt long before rendering
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_FILLS: Any = torch.utils.deterministic
EAGER: Final = "eager"
"""The name of the engine that runs each operation immediately, without compiling."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything besides the recipe that determines the bits of an image: equal environments give identical images."""

    civman: str
    torch: str
    diffusers: str
    transformers: str
    numpy: str
    device: str
    capability: str
    cuda: str
    cudnn: int
    """The cuDNN version; `cudnn` is 0 and `cuda` is empty if no CUDA device is used."""
    attention: str
    threads: int
    platform: str
    processor: str
    """The CPU's name and model; empty if another device computes the pixels."""
    engine: str = EAGER
    """The engine that computes the model's blocks: "eager", or "inductor/" and a digest of the compiler's options."""
    compiler: str = ""
    """The compiler of the blocks, with its version; empty if no block was compiled."""

    def to_facts(self) -> dict[str, str | int]:
        """Convert to a dictionary of strings and integers, for a record."""
        return asdict(self)


def choose_device(wanted: str | None = None) -> torch.device:
    """Return the device `wanted` or, by default, the best available: CUDA, then Apple's MPS, then the CPU.

    Raises: CannotRender: the device is not available.
    """
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise CannotRender(f"unknown device: `{wanted}`", hint=_devices_hint(), code=Cause.NO_DEVICE) from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not (device.index or 0) < there.get(device.type, 0):
        raise CannotRender(
            f"device `{wanted}` is not available on this computer",
            hint=_devices_hint(),
            code=Cause.NO_DEVICE,
            device=wanted,
        )
    return device


def cuda_devices() -> list[str]:
    """List all CUDA devices by name, such as "cuda:0"."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _devices_hint() -> str:
    cards = cuda_devices()
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return "here: " + ", ".join([*cards, *apple, "cpu"])


def choose_dtype(device: torch.device, wanted: str | None = None) -> torch.dtype:
    """Return the named dtype ("float32", "float16", "bfloat16"); by default float16 on a GPU, float32 on the CPU."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if wanted is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if wanted not in names:
        raise CannotRender(f"unknown precision `{wanted}`", hint="one of " + ", ".join(names), code=Cause.BAD_PRECISION)
    return names[wanted]


@contextmanager
def deterministic(device: torch.device | None = None) -> Iterator[None]:
    """Make the same recipe give the same bytes inside this block, on this machine with these library versions.

    Deterministic algorithms are enabled where they exist (other operations warn), convolution autotuning and TF32 are
    disabled, and cuBLAS has a fixed workspace. On a CUDA `device`, attention is computed by a fixed choice of kernels.
    The previous settings are restored afterwards. The number of CPU threads and the batch size also affect the last
    bit; callers must keep them the same, and `environment` and the recipe record them.
    """
    attention = _pinned_attention() if device is not None and device.type == "cuda" else nullcontext()
    with _repeatable(), attention:
        yield


def _pinned_attention() -> AbstractContextManager[None]:
    """Fix the order in which attention kernels are preferred; otherwise, torch chooses by GPU model and version.

    cuDNN's kernel is excluded: it is not deterministic, and torch would still use it while nondeterminism only causes
    warnings. Flash attention supports half precision only; the memory-efficient kernel computes the remaining cases.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    pinned: AbstractContextManager[None] = sdpa_kernel(kernels, set_priority=True)
    return pinned


@contextmanager
def _repeatable() -> Iterator[None]:
    before = (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
        _FILLS.fill_uninitialized_memory,
    )  # fmt: skip
    # use this instead of use_deterministic_algorithms: it sets the same flag without importing torch's compiler, which
    # takes 3 s
    torch.set_deterministic_debug_mode("warn")
    # do not fill new tensors: all results are fully written, and filling would double the operations of a UNet call
    _FILLS.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1:3]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3:5]
        _FILLS.fill_uninitialized_memory = before[5]


class Compiled(Protocol):
    """The compiled blocks of a model."""

    name: str
    """The engine's name in records."""
    compiler: str


def environment(device: torch.device, compiled: Compiled | None = None) -> Environment:
    """Describe the software and hardware with which this process computes. `compiled` is None without --compile."""
    if device.type == "cuda":
        name, capability = (
            torch.cuda.get_device_name(device),
            ".".join(map(str, torch.cuda.get_device_capability(device))),
        )
    else:
        name, capability = device.type, torch.backends.cpu.get_cpu_capability()
    is_cuda = device.type == "cuda"
    return Environment(
        civman=__version__, torch=torch.__version__, diffusers=version("diffusers"),
        transformers=version("transformers"), numpy=version("numpy"), device=name, capability=capability,
        cuda=(torch.version.cuda or "") if is_cuda else "",
        cudnn=_cudnn() if is_cuda else 0,
        attention="sdpa: flash, efficient, math" if is_cuda else "sdpa",
        threads=torch.get_num_threads(), platform=f"{sys.platform}-{platform.machine()}",
        processor=processor() if device.type == "cpu" else "",
        engine=EAGER if compiled is None else compiled.name, compiler="" if compiled is None else compiled.compiler,
    )  # fmt: skip


def _cudnn() -> int:
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found or 0


@contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """Make torch use this number of CPU threads inside this block; None leaves the number unchanged."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted is not None:
            torch.set_num_threads(before)
