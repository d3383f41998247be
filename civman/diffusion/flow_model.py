"""Loads a flow-matching model: the transformer, and text encoders and a VAE from the same file or from separate files.

As in `loader`, modules are built on the meta device and each parameter becomes a view of a memory-mapped file.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from civman.diffusion import model_classes
from civman.diffusion.checkpoint_names import Config
from civman.diffusion.component_layouts import Source
from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.file_tokenizers import read_tokenizer
from civman.diffusion.flow_parts import TOKENIZER, TRANSFORMER, Placed, place_parts
from civman.diffusion.key_table import require_sources
from civman.diffusion.loader import LoadedModel, fill, unfilled
from civman.diffusion.mapped_weights import Weights

_OVERFLOWING = (
    "T5EncoderModel", "UMT5EncoderModel", "Qwen3Model", "Qwen2Model", "Gemma2Model", "Ministral3Model", "MistralModel",
    "LlamaModel",
)  # fmt: skip
"""The classes of text encoders whose activations overflow float16."""


def load_flow(
    path: Path,
    family: FlowFamily,
    *,
    parts: Mapping[str, Path],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    config: Mapping[str, Config] | None = None,
    leaves: int | None = None,
) -> LoadedModel:
    """Open a checkpoint of `family` and build its components.

    Args:
        path: the file with the transformer, in the original layout.
        family: the checkpoint's family.
        parts: the files of text encoders and the VAE that are not in the checkpoint, by component; "tokenizer": a
            tokenizer file.
        device: where to put the components.
        dtype: the dtype to compute in; None uses the dtypes of the files.
        config: config options that no tensor shape reveals, by component.
        leaves: as in `loader.load`.

    Raises: CannotRender, InvalidModelFile: as in `flow_parts.place_parts`; a tensor is missing or has a wrong size; a
    tokenizer in a file cannot be read.
    """
    files = {path: Weights(path), **{each: Weights(each) for each in parts.values()}}
    shapes = {component: files[each].shapes for component, each in parts.items()}
    names = {component: each.name for component, each in parts.items()}
    placed = place_parts(family, files[path].shapes, path.name, shapes, names, config, files[path].metadata)
    target = torch.device(device)
    model = LoadedModel(
        path=path, family=family, prediction=family.prediction, is_zero_snr=False, components={},
        configs={name: each.config for name, each in placed.items()}, metadata=files[path].metadata, device=target,
        notes=(), unused=(), tensor_count=len(files[path].shapes),
        files={name: files[parts.get(name, path)] for name in placed}, sources={},
    )  # fmt: skip
    for name, part in placed.items():
        if part.tokenizer is not None:
            file = model.files[name] if part.has_tokenizer else files[parts[TOKENIZER]]
            # convert to bytes, because GGUF files store each byte as a floating-point number
            data = file.read(Source(part.tokenizer)).to(torch.uint8).numpy().tobytes()
            model.tokenizers[name] = read_tokenizer(part.tokenizer, data, part.title, file.path.name)
    notes: list[str] = []
    for name, part in placed.items():
        module = _built(part)
        wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        model.sources[name] = part.sources(wanted)
        require_sources(part.title, wanted, model.sources[name], model.files[name].shapes, model.files[name].path.name)
        overflows = part.model in _OVERFLOWING or (name == "vae" and family.vae_overflows)
        fill(model, name, module, torch.float32 if overflows and dtype is torch.float16 else dtype, notes, {}, leaves)
        if name == TRANSFORMER and family.single_precision:
            _keep_single(module, family.single_precision)
    model.notes = tuple(notes)
    model.unused = _unused(model, family, placed)
    return model


def _built(part: Placed) -> nn.Module:
    with unfilled():
        module = model_classes.construct_class(part.model, part.config)
    return module.eval().requires_grad_(requires_grad=False)


def _keep_single(module: nn.Module, ends: tuple[str, ...]) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith(ends):
            parameter.data = parameter.data.float()


def _unused(model: LoadedModel, family: FlowFamily, placed: Mapping[str, Placed]) -> tuple[str, ...]:
    prefix = placed[TRANSFORMER].prefix
    weights = model.files[TRANSFORMER]
    used = {source.name for table in model.sources.values() for source in table.values()}
    used |= {part.tokenizer for part in placed.values() if part.tokenizer and part.has_tokenizer}
    extras = tuple(prefix + name for name in family.known_extras)
    return tuple(sorted(name for name in weights.shapes if name not in used and not name.startswith(extras)))
