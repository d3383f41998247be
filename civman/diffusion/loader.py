"""Loads the components of a checkpoint file without network access and without copying the weights.

Modules are built on torch's meta device without initialisation; each parameter then becomes a view of the memory-mapped
file (`component_layouts` maps parameters to tensors). If another dtype than the file's is requested, tensors are
converted once, and `notes` reports this. A file that lacks a parameter is refused; tensors that no component uses are
listed.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from civman.diffusion import model_classes
from civman.diffusion.checkpoint_names import TITLES, UNET, VAE, Config
from civman.diffusion.component_layouts import Source, own_vae_names, text_sources, unet_sources, vae_sources
from civman.diffusion.component_shapes import require_tensors
from civman.diffusion.families.registry import Family, unet_family_of
from civman.diffusion.families.unet_family import UNetFamily
from civman.diffusion.file_tokenizers import FileTokenizer
from civman.diffusion.mapped_weights import Weights
from civman.diffusion.unet_configs import component_configs, require_known_rules, require_parts, text_prefix
from civman.domain.files.weight_forms import INPUT_SCALES, MARKER, SCALES, Quantisation
from civman.errors import CannotRender, Cause

# prefixes of tensors in real files that no component needs and that are not reported as unused
_KNOWN_EXTRAS = (
    "model_ema.", "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "posterior_",
    "sqrt_", "logvar", "cond_stage_model.logit_scale", "v_pred", "ztsnr", "denoiser.sigmas", "embedding_manager.",
    "first_stage_model.loss.",
)  # fmt: skip
_KNOWN_TAILS = (
    ".position_ids", ".logit_scale", ".text_projection", ".text_projection.weight", ".attn_mask",
    *SCALES, *INPUT_SCALES, MARKER,
)  # fmt: skip


@dataclass(slots=True)
class LoadedModel:
    """The components of a checkpoint, ready to use, and the files that they are read from.

    `prediction` is "epsilon", "v_prediction" or "flow"; `is_zero_snr`: whether the model was trained with zero terminal
    SNR. `notes` are sentences for the user (conversions, assumptions); `unused` lists the file's tensors that no
    component uses. `files` maps each component to its open file; `sources` maps each component's parameters to tensors
    of that file. `pipelines` caches the diffusers pipelines built from this model. `tokenizers` maps text encoders to
    the tokenizers that were read from files.
    """

    path: Path
    family: Family
    prediction: str
    is_zero_snr: bool
    components: dict[str, nn.Module]
    configs: dict[str, Config]
    metadata: dict[str, str]
    device: torch.device
    notes: tuple[str, ...]
    unused: tuple[str, ...]
    tensor_count: int
    files: dict[str, Weights] = field(repr=False)
    sources: dict[str, dict[str, Source]] = field(repr=False)
    pipelines: dict[str, Any] = field(default_factory=dict, repr=False)
    tokenizers: dict[str, FileTokenizer] = field(default_factory=dict, repr=False)

    @property
    def unet(self) -> Any:
        """The network that is evaluated in each step: diffusers' UNet2DConditionModel, or a transformer."""
        return self.components.get("unet") or self.components["transformer"]

    @property
    def vae(self) -> Any:
        """The VAE, such as diffusers' AutoencoderKL."""
        return self.components["vae"]

    @property
    def unused_layers(self) -> tuple[tuple[str, str], ...]:
        """Layers whose changes in adapter files are ignored, because this family does not use these layers.

        The result can be passed to `merge_adapters.apply` as `unused`.
        """
        if not self.family.drops_text_layer:
            return ()
        return (("te1", f"encoder_layers_{self.configs['text_encoder']['num_hidden_layers']}_"),)

    def modules(self, component: str) -> dict[str, nn.Module]:
        """Map the dotted name of each submodule of a component to the submodule, including containers.

        The component itself is left out.
        """
        return {name: module for name, module in self.components[component].named_modules() if name}

    def base_tensor(self, component: str, parameter: str) -> Tensor:
        """Read a parameter's original value: a CPU view of the memory-mapped file, in the file's dtype."""
        tensor = self.files[component].read(self.sources[component][parameter])
        return tensor.reshape(_tensor_of(self.components[component], parameter).shape)

    def forget(self, component: str, parameter: str) -> None:
        """Release the memory pages of a tensor that `base_tensor` returned, once the tensor has been copied.

        Afterwards, its data is only in the system's page cache.
        """
        self.files[component].forget(self.sources[component][parameter].name)

    def restore(self, component: str, parameters: Iterable[str] | None = None) -> int:
        """Reset `parameters` (None: all parameters of the component) to the file's values, and return their number."""
        module = self.components[component]
        wanted = list(self.sources[component] if parameters is None else parameters)
        for name in wanted:
            current = module.get_parameter(name)
            current.data = self.base_tensor(component, name).to(current.device, current.dtype)
        return len(wanted)


def load(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vae: Path | None = None,
    config: Path | Mapping[str, Config] | None = None,
    prediction: str | None = None,
    is_zero_snr: bool | None = None,
    leaves: int | None = None,
    for_diffusers: bool = False,
) -> LoadedModel:
    """Open a checkpoint in the original single-file layout and build its components.

    Args:
        path: a `.safetensors` checkpoint of Stable Diffusion 1, 2, XL base or refiner; inpainting checkpoints too.
        device: where to put the components; on "cpu", parameters are views of the file.
        dtype: the dtype to compute in; None uses the file's dtype.
        vae: a separate VAE file (original or diffusers layout) to use instead of the checkpoint's VAE.
        config: config options that no tensor shape reveals, by component; or a folder that contains them in files
            `<component>/config.json`, as diffusers saves them.
        prediction: "epsilon" or "v_prediction" if known (SD 2 files do not specify it).
        is_zero_snr: whether the model was trained with zero terminal SNR, if known.
        leaves: parameters with more elements than this are not loaded (they stay on the meta device, in the dtype to
            compute in); `layer_streaming.stream` makes such a model usable.
        for_diffusers: build diffusers' and transformers' own classes, which diffusers' pipelines need.

    Raises:
        CannotRender: the family is unknown, or a component or parameter is missing (`facts["part"]`,
            `facts["missing"]`).
        InvalidModelFile: not a readable safetensors file, or a tensor with the wrong shape.
    """
    weights = Weights(path)
    require_known_rules(weights.shapes, path.name)
    family = unet_family_of(weights.shapes)
    vae_file, vae_names = _vae_tensors(weights, vae)
    vae_shapes = {plain: vae_file.shapes[actual] for plain, actual in vae_names.items()}
    stated = _stated_configs(config) if isinstance(config, Path) else config or {}
    configs = component_configs(family, weights.shapes, vae_shapes, weights.metadata, stated)
    require_parts(family, configs, path.name)
    target = torch.device(device)
    model = LoadedModel(
        path=path, family=family, prediction="", is_zero_snr=False, components={}, configs=configs,
        metadata=weights.metadata, device=target, notes=(), unused=(), tensor_count=len(weights.shapes),
        files=dict.fromkeys(configs, weights) | {"vae": vae_file}, sources={},
    )  # fmt: skip
    notes: list[str] = []
    # convert the UNet in a thread: the import below is single-threaded, so a second CPU core is free
    with ThreadPoolExecutor(max_workers=1) as pool:
        moving = () if leaves is not None else (weights, target, _wanted_dtype("unet", dtype, target, family))
        coming = pool.submit(_moved_unet, *moving) if moving else None
        modules = build_empty(configs, for_diffusers=for_diffusers)
    for name, module in modules.items():
        model.sources[name] = _sources(name, module, model, vae_names)
        moved = coming.result() if name == "unet" and coming is not None else {}
        wanted = _wanted_dtype(name, dtype, target, family)
        _fill(model, name, module, wanted, notes, moved, leaves)
    if weights.form.quantisation is Quantisation.FP8_SCALED:
        notes.append("8-bit weights: each was multiplied by its scale from the file")
    elif any(map(weights.is_packed, weights.shapes)):
        notes.append(f"packed weights ({weights.form.words}): each was unpacked when it was read")
    model.prediction, model.is_zero_snr = _prediction(model, weights, prediction, is_zero_snr, notes)
    model.unused = _unused(weights, model)
    model.notes = tuple(notes)
    return model


def build_empty(configs: Mapping[str, Config], *, for_diffusers: bool = False) -> dict[str, nn.Module]:
    """Build components from their configs on the meta device: modules without memory and without initial values."""
    made: dict[str, nn.Module] = {}
    with unfilled():
        for name, config in configs.items():
            built = model_classes.construct(name, config, for_diffusers=for_diffusers)
            made[name] = built.eval().requires_grad_(requires_grad=False)
    return made


@contextmanager
def unfilled() -> Iterator[None]:
    """Inside this block, build modules without memory and without initial values."""
    with _no_initialisation(), torch.device("meta"), _OnlyConstants():
        yield


_INITIALISERS: Final = ("normal_", "uniform_", "constant_", "kaiming_uniform_", "trunc_normal_")


class _OnlyConstants(TorchFunctionMode):
    """Gives values to constants, on the CPU instead of the meta device, and leaves out the initial values of weights.

    Constants are made by `torch.arange` and `torch.tensor`: the text encoders' position ids and Gemma's factor for
    embeddings. On the meta device, they would have to be recreated later, for which torch would import sympy, which
    takes 0.8 s.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # transformers calls and replaces these functions; on the meta device, torch would import its compiler for them
        if getattr(func, "__name__", "") in _INITIALISERS:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.arange, torch.tensor):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


_INIT_LOCK = threading.Lock()
_SELF_INITIALISING: tuple[Any, ...] = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)


@contextmanager
def _no_initialisation() -> Iterator[None]:
    """Prevent torch's layers from initialising their weights randomly; the file's values replace them anyway."""
    with _INIT_LOCK:
        saved = [layer.reset_parameters for layer in _SELF_INITIALISING]
        for layer in _SELF_INITIALISING:
            layer.reset_parameters = lambda _layer: None
        try:
            yield
        finally:
            for layer, original in zip(_SELF_INITIALISING, saved, strict=True):
                layer.reset_parameters = original


def _sources(name: str, module: nn.Module, model: LoadedModel, vae_names: Mapping[str, str]) -> dict[str, Source]:
    parameters = [parameter for parameter, _ in module.named_parameters()]
    config = model.configs[name]
    if name == "unet":
        return unet_sources(parameters, config)
    if name == "vae":
        plain = vae_sources(parameters, config, "")
        return {parameter: Source(vae_names.get(source.name, source.name)) for parameter, source in plain.items()}
    assert isinstance(model.family, UNetFamily)
    usual = model.family.text_encoders[name]
    names = model.files[name].shapes
    return text_sources(parameters, usual["layout"], text_prefix(usual, names) or "", names)


def _moved_unet(weights: Weights, device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the UNet's tensors, converted to `device` and `dtype`; empty if views of the file need no conversion."""
    names = [name for name in weights.shapes if name.startswith(UNET)]
    own = weights.dtype_of(names) if names else torch.float32
    dtype = dtype or (torch.float16 if own.itemsize == 1 else own)
    if device.type == "cpu" and dtype == own:
        return {}
    made = {name: torch.empty(weights.shapes[name], dtype=dtype, device=device) for name in names}
    plain = [name for name in names if not weights.is_packed(name)]
    # copy all tensors in a single call, because many small calls would each wait for Python's global interpreter lock
    torch._foreach_copy_([made[name] for name in plain], [weights.read(Source(name)) for name in plain])
    for name in names:
        # unpack one weight at a time, because unpacking it needs four more bytes of memory per number
        if weights.is_packed(name):
            made[name].copy_(weights.read(Source(name)))
            weights.forget(name)
    return made


def _fill(
    model: LoadedModel,
    name: str,
    module: nn.Module,
    dtype: torch.dtype | None,
    notes: list[str],
    moved: dict[str, Tensor],
    leaves: int | None,
) -> None:
    weights, sources = model.files[name], model.sources[name]
    wanted = {parameter: tuple(module.get_parameter(parameter).shape) for parameter in sources}
    require_tensors(name, wanted, sources, weights.shapes, weights.path.name)
    fill(model, name, module, dtype, notes, moved, leaves)


def fill(
    model: LoadedModel,
    name: str,
    module: nn.Module,
    dtype: torch.dtype | None,
    notes: list[str],
    moved: dict[str, Tensor],
    leaves: int | None,
) -> None:
    """Fill a module that was built on the meta device with the tensors of its file, and add it to `model`.

    `moved`: tensors that are already converted; for `leaves`, see `load`.
    """
    weights, sources = model.files[name], model.sources[name]
    own = weights.dtype_of(source.name for source in sources.values())
    if dtype is None and own.itemsize == 1:
        dtype = torch.float16
    if dtype not in (None, own):
        notes.append(f"{TITLES.get(name, name)}: {_short(own)} in the file, computed in {_short(dtype)}")
    model.components[name] = module
    state = {}
    for parameter, source in sources.items():
        shape = _tensor_of(module, parameter).shape
        is_parameter = isinstance(_tensor_of(module, parameter), nn.Parameter)
        if leaves is not None and is_parameter and shape.numel() > leaves:
            state[parameter] = _meta_like(weights, source, shape, dtype or own)
            continue
        is_whole = source == Source(source.name)
        ready = moved.pop(source.name) if is_whole and source.name in moved else weights.read(source)
        state[parameter] = ready.reshape(shape).to(model.device, dtype or own)
        if weights.is_packed(source.name) or state[parameter].data_ptr() != ready.data_ptr():
            weights.forget(source.name)
    module.load_state_dict(state, strict=False, assign=True)
    module.requires_grad_(requires_grad=False)
    _move_buffers(module, model.device)


def _meta_like(weights: Weights, source: Source, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Create a parameter on the meta device.

    It has the memory layout of the file's tensor, unless the weight is packed.
    """
    if weights.is_packed(source.name):
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty_like(weights.read(source).reshape(shape), dtype=dtype, device="meta")


def _tensor_of(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move the buffers that constructors create, such as position ids, to the device; no file contains them."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta:
                raise CannotRender(
                    f"buffer `{name}` of {type(owner).__name__} has no values", code=Cause.MISSING_TENSOR
                )
            owner.register_buffer(name, buffer.to(device), persistent=False)


def _vae_tensors(weights: Weights, other: Path | None) -> tuple[Weights, dict[str, str]]:
    """Open the file that contains the VAE, and map the original VAE tensor names to the names in that file."""
    if other is None:
        return weights, {name.removeprefix(VAE): name for name in weights.shapes if name.startswith(VAE)}
    file = Weights(other)
    return file, own_vae_names(file.shapes, other.name)


def _stated_configs(folder: Path) -> dict[str, Config]:
    stated = {}
    for component in TITLES:
        file = folder / component / "config.json"
        if file.is_file():
            stated[component] = {k: v for k, v in json.loads(file.read_text("utf-8")).items() if not k.startswith("_")}
    return stated


def _wanted_dtype(name: str, dtype: torch.dtype | None, device: torch.device, family: Family) -> torch.dtype | None:
    # SDXL's original VAE overflows in half precision: keep it in single precision (335 MB) instead of casting it each
    # time
    if name == "vae" and family.vae_overflows and (dtype is torch.float16 or (device.type != "cpu" and dtype is None)):
        return torch.float32
    return dtype


def _prediction(
    model: LoadedModel, weights: Weights, said: str | None, said_zero: bool | None, notes: list[str]
) -> tuple[str, bool]:
    family = model.family
    assert isinstance(family, UNetFamily)
    zero = said_zero if said_zero is not None else "ztsnr" in weights.shapes
    claimed = weights.metadata.get("modelspec.prediction_type", "").casefold()
    if said is not None:
        kind = said
    elif "v_pred" in weights.shapes or claimed in ("v", "v_prediction", "v-prediction", "vpred"):
        kind = "v_prediction"
    else:
        kind = family.prediction
        if family.is_silent_about_prediction and not claimed:
            notes.append("the file does not show whether the model predicts epsilon or v, so epsilon is assumed")
    if kind not in ("epsilon", "v_prediction"):
        raise CannotRender(f"unknown prediction type: {kind}", code=Cause.UNKNOWN_PREDICTION)
    return kind, zero


def _unused(weights: Weights, model: LoadedModel) -> tuple[str, ...]:
    used = {source.name for name, table in model.sources.items() if model.files[name] is weights
            for source in table.values()}  # fmt: skip
    by_design = [*_KNOWN_EXTRAS]
    if model.files["vae"] is not weights:
        by_design.append(VAE)
    if model.family.drops_text_layer:
        last = model.configs["text_encoder"]["num_hidden_layers"]
        by_design += [f"cond_stage_model.model.transformer.resblocks.{last}."]
    skip = tuple(by_design)
    return tuple(
        sorted(n for n in weights.shapes if n not in used and not n.startswith(skip) and not n.endswith(_KNOWN_TAILS))
    )


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
