"""The names that a pickle may contain: those that civman understands, and those that become inert placeholders.

A pickle names functions and classes ("globals"), and a normal unpickler imports and calls them. civman never imports
anything for a pickle: `civman.domain.files.pickle_machine` gives the names in the tables below a meaning and refuses
all others. The names must also be harmless in a program that does run pickles, whatever arguments the file passes to
them, because such a program may use the same file.

Source: the names that torch.save, the trainers of Stable Diffusion and numpy write.
"""

from dataclasses import dataclass
from enum import Enum, auto


class Meaning(Enum):
    """What the pickle machine does when a pickle calls or instantiates a global."""

    DICT = auto()
    PARAMETERS = auto()
    """A torch module with named parameters, whose state is a dictionary with `_parameters`."""
    STORAGE = auto()
    DTYPE = auto()
    TENSOR = auto()
    TENSOR_WITH_DTYPE = auto()
    TENSOR_OF_CLASS = auto()
    PARAMETER = auto()
    SEQUENCE = auto()
    TEXT_TO_BYTES = auto()
    INSTANCE = auto()
    """Calling the name returns a placeholder and ignores all arguments."""
    NAME = auto()
    """The name may occur, for instance as a dictionary key, but must not be called."""


@dataclass(frozen=True, slots=True)
class Global:
    """A global that a pickle may load. `dtype` is set for storage classes and torch dtypes (None: untyped bytes)."""

    name: str
    meaning: Meaning
    dtype: str | None = None


_STORAGES = {
    "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Double": "F64", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16", "float64": "F64",
    "double": "F64", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")

_BY_MEANING: dict[Meaning, tuple[str, ...]] = {
    Meaning.DICT: (
        "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict",
        "__builtin__.dict", "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict", "easydict.EasyDict", "yacs.config.CfgNode",
    ),
    Meaning.PARAMETERS: ("torch.nn.modules.container.ParameterDict", "torch.nn.modules.container.ParameterList"),
    Meaning.TENSOR: ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"),
    Meaning.TENSOR_WITH_DTYPE: ("torch._utils._rebuild_tensor_v3",),
    Meaning.TENSOR_OF_CLASS: ("torch._tensor._rebuild_from_type_v2",),
    Meaning.PARAMETER: (
        "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
    ),
    Meaning.SEQUENCE: (
        "torch.Size", *(f"{module}.{kind}" for module in ("builtins", "__builtin__")
                        for kind in ("set", "frozenset", "list", "tuple")), "collections.deque",
    ),
    Meaning.TEXT_TO_BYTES: ("_codecs.encode",),
    Meaning.INSTANCE: (
        "argparse.Namespace", "types.SimpleNamespace", "copyreg._reconstructor", "copy_reg._reconstructor",
        "torch.device", "torch.torch_version.TorchVersion", "uuid.UUID",
        *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "WindowsPath")),
        *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
        *(f"builtins.{kind}" for kind in ("complex", "slice")), "__builtin__.complex", "__builtin__.slice",
        *(f"{module}.{name}" for module in _NUMPY[1:] for name in ("scalar", "_reconstruct")), "numpy.dtype",
        *(f"omegaconf.{name}" for name in (
            "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata",
            "nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode",
        )),
    ),
    Meaning.NAME: (
        "numpy.ndarray", "torch.Tensor", "torch._tensor.Tensor",
        *(f"{module}.{kind}" for module in ("builtins", "__builtin__")
          for kind in ("int", "float", "str", "bool", "bytes", "object")), "__builtin__.unicode", "__builtin__.long",
        *(f"typing.{kind}" for kind in ("Any", "Dict", "List", "Union", "Optional", "Tuple")),
        *(f"{module}.callbacks.{name}" for module in _LIGHTNING for name in (
            "model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "lr_monitor.LearningRateMonitor",
        )),
        *(f"numpy.{kind}" for kind in ("float64", "float32", "int64", "int32", "bool_")),
    ),
}  # fmt: skip

ALLOWED: dict[str, Global] = {
    **{name: Global(name, meaning) for meaning, names in _BY_MEANING.items() for name in names},
    **{
        name: Global(name, Meaning.STORAGE, dtype)
        for kind, dtype in _STORAGES.items()
        for name in (f"torch.{kind}Storage", f"torch.cuda.{kind}Storage")
    },
    **{name: Global(name, Meaning.STORAGE) for name in ("torch.storage.UntypedStorage", "torch.UntypedStorage")},
    **{f"torch.{name}": Global(f"torch.{name}", Meaning.DTYPE, dtype) for name, dtype in _DTYPES.items()},
}
"""Maps the full name of every global that a pickle may contain to its meaning."""
