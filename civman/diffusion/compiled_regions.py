"""Compiles the repeated blocks of a UNet or transformer (the engine "inductor/…" in an image's record).

Only blocks that occur many times are compiled, each as one graph: this makes rendering as fast as compiling the whole
network, in a fraction of the compile time. The compiler's results are cached on disk.

An image must depend only on its recipe and the environment, bit for bit. Therefore, each image size gets its own
graphs, whatever was rendered before; graphs with dynamic sizes would depend on the size that was rendered first. Graphs
do not depend on weights, noise levels or the length of a UNet's prompt. Kernels are chosen by fixed rules, not by
timing them.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import MethodType
from typing import Any, Final

import platformdirs
import torch
from torch import Tensor, nn

from civman.errors import CannotRender, Cause
from civman.system.native_code import DEFAULT_CPP_COMPILER

Backend = Callable[[Any, Sequence[Tensor]], Callable[..., Any]]
"""A compiler backend: turns a graph and example inputs into a callable."""

_CONVOLUTIONS: Final = "ResnetBlock2D"
"""The class of the UNet's convolution blocks. Diffusers does not list it among the blocks that repeat."""
_EXPERTS: Final = "MOEFeedForwardSwiGLU"
"""The class of mixture-of-experts layers. They cannot be compiled, because each call splits the tokens differently."""
_WANTED: Final = {"deterministic": True, "batch_invariant": True, "max_autotune": False, "freezing": False}
"""Settings for the compiler; settings that the installed version of torch does not know are left out."""
_CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"


class CompiledRegions:
    """The compiled blocks of one network, and the number of graphs compiled for them."""

    def __init__(self, network: nn.Module, device: torch.device, backend: Backend | None = None) -> None:
        """Prepare the network's repeated blocks to be compiled when they are first called.

        `backend`: None uses torch's compiler, inductor.

        Raises:
            CannotRender: this machine cannot compile for the device (`no-compiler`), or the network's blocks cannot be
                compiled (`not-compilable`).
        """
        self.compiler = compiler_of(device)
        self.graphs = 0
        # imported here, because importing torch's compiler takes 2 s and is only needed for compiling
        import torch._dynamo.config as tracing

        # allow many graphs: each size and each kind of block needs its own, and beyond torch's default limit of 8,
        # compiling fails
        tracing.recompile_limit = tracing.accumulated_recompile_limit = 100_000
        options = _options()
        self.name = f"inductor/{hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]}"
        inner = backend or _inductor(options)

        def counted(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
            self.graphs += 1
            return inner(graph, inputs)

        forwards: dict[type, Callable[..., Any]] = {}
        for block in _blocks(network):
            kind = type(block)
            if kind not in forwards:
                forwards[kind] = torch.compile(kind.forward, backend=counted, fullgraph=True, dynamic=False)
            vars(block)["forward"] = MethodType(_of_any_length(forwards[kind]), block)


def compiler_of(device: torch.device) -> str:
    """Return the name and version of the compiler for a device, such as "g++ (Debian 14.2.0) 14.2.0".

    For a GPU, the compiler is triton. Raises: CannotRender (`no-compiler`): there is no compiler for the device.
    """
    if device.type == "cuda":
        try:
            return f"triton {version('triton')}"
        except PackageNotFoundError as error:
            raise CannotRender(
                "on a GPU, --compile needs the package triton, which is not installed",
                hint="install the package triton, or render without --compile", code=Cause.NO_COMPILER,
            ) from error  # fmt: skip
    if device.type != "cpu":
        raise CannotRender(
            f"--compile works on CUDA devices and CPUs, not on `{device.type}`",
            hint="render without --compile", code=Cause.NO_COMPILER,
        )  # fmt: skip
    return _cpp_compiler()


def _cpp_compiler() -> str:
    # find the program that torch's compiler will call
    name = os.environ.get("CXX", DEFAULT_CPP_COMPILER)
    path = shutil.which(name)
    if path is not None:
        told = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)  # noqa: S603  # CXX's
        if told.returncode == 0 and told.stdout:
            return told.stdout.splitlines()[0].strip()
    raise CannotRender(
        f"--compile needs a C++ compiler on a CPU, but `{name}` cannot be run",
        hint="install a C++ compiler (such as the package g++), set the environment variable CXX to one, "
        "or render without --compile",
        code=Cause.NO_COMPILER,
    )


def _options() -> dict[str, Any]:
    import torch._inductor.config as known

    return {name: value for name, value in _WANTED.items() if hasattr(known, name)}


def _inductor(options: dict[str, Any]) -> Backend:
    os.environ.setdefault(_CACHE_VARIABLE, str(platformdirs.user_cache_path("civman") / "compiled"))
    from torch._inductor.compile_fx import compile_fx

    def compiled(graph: Any, inputs: Sequence[Tensor]) -> Any:
        settings = {**options, "cpp.threads": torch.get_num_threads()}
        made: Any = compile_fx(graph, list(inputs), config_patches=settings)
        return made

    return compiled


def _blocks(network: nn.Module) -> list[nn.Module]:
    """List the blocks to compile: convolutions, and the blocks that diffusers lists as repeated or as indivisible."""
    lists = (getattr(network, name, None) or () for name in ("_repeated_blocks", "_no_split_modules"))
    names = {*next(filter(None, lists), ()), _CONVOLUTIONS}
    found = [module for module in network.modules() if type(module).__name__ in names]
    if not found or any(type(module).__name__ == _EXPERTS for module in network.modules()):
        raise CannotRender(
            f"--compile supports none of the blocks of {type(network).__name__}",
            hint="render without --compile",
            code=Cause.NOT_COMPILABLE,
        )  # fmt: skip
    return found


def _of_any_length(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a UNet block's compiled `forward` so that one graph serves prompts of any length."""
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException

    def called(block: nn.Module, *arguments: Any, **named: Any) -> Any:
        context = named.get("encoder_hidden_states")
        if isinstance(context, Tensor) and context.ndim == 3 and "attention_mask" in named:
            maybe_mark_dynamic(context, 1)
        try:
            return forward(block, *arguments, **named)
        except TorchDynamoException as error:
            raise CannotRender(
                f"a block of this model ({type(block).__name__}) cannot be compiled: {str(error).splitlines()[0]}",
                hint="render without --compile (replay: --no-compile)", code=Cause.NOT_COMPILABLE,
            ) from error  # fmt: skip

    return called
