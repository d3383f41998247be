"""Where and in what precision to compute, what makes it repeatable, and what it depended on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch

from civman.errors import CannotRender


@dataclass(frozen=True, slots=True)
class Environment:
    """What, beside the recipe, decides the bits of a picture. Equal environments give equal bytes."""

    torch: str
    diffusers: str
    transformers: str
    device: str
    capability: str
    threads: int

    def to_facts(self) -> dict[str, str | int]:
        """As plain values, for a record."""
        return asdict(self)


def choose_device(wanted: str | None = None) -> torch.device:
    """`wanted`, or the best there is: a CUDA card, Apple's MPS, the CPU. Raises: CannotRender: it is not there."""
    if wanted is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise CannotRender(f"no such device: `{wanted}`", code="no-device") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise CannotRender(f"device `{wanted}` is not available here", code="no-device", device=wanted)
    return device


def choose_dtype(device: torch.device, wanted: str | None = None) -> torch.dtype:
    """The dtype named ("float32", "float16", "bfloat16"); by default half on a GPU, single on the CPU."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if wanted is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if wanted not in names:
        raise CannotRender(f"unknown precision `{wanted}`", hint="one of " + ", ".join(names), code="bad-precision")
    return names[wanted]


@contextmanager
def deterministic() -> Iterator[None]:
    """While this holds, the same recipe gives the same bytes on this machine with these library versions.

    Switches: deterministic algorithms where there is a choice (others warn), no benchmark-driven choice of
    convolutions, no TF32, cuBLAS with a fixed workspace. They are put back afterwards. The number of CPU threads and
    the batch size also decide the last bit and are the caller's to keep; `environment` and the recipe record them.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
    )  # fmt: skip
    # the same switch as use_deterministic_algorithms, which would import torch's compiler: 3 s
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1:3]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[3:5]


def environment(device: torch.device) -> Environment:
    """What this process computes with."""
    if device.type == "cuda":
        name, capability = (
            torch.cuda.get_device_name(device),
            ".".join(map(str, torch.cuda.get_device_capability(device))),
        )
    else:
        name, capability = device.type, torch.backends.cpu.get_cpu_capability()
    return Environment(
        torch=torch.__version__, diffusers=version("diffusers"), transformers=version("transformers"),
        device=name, capability=capability, threads=torch.get_num_threads(),
    )  # fmt: skip
