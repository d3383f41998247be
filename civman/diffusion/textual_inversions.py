"""Textual inversions: vectors a prompt calls by name, read from safetensors. Pickles are refused.

Layouts: `emb_params` (A1111), any single tensor under its token's name (diffusers), `clip_l` with `clip_g` (SDXL).
`text_encoders_0` with `text_encoders_1` is what diffusers' advanced training scripts call the same pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from civman.diffusion.tensor_files import open_tensors
from civman.errors import Cause, Incompatible, InvalidModelFile

_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
_MATRIX = 2


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Vectors for one name: a (n, width) float32 tensor for each text encoder, in the encoders' order."""

    name: str
    vectors: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """How many tokens it takes up."""
        return int(self.vectors[0].shape[0])


def load_embedding(path: Path, widths: Sequence[int], *, name: str | None = None) -> Embedding:
    """The embedding in a file, for text encoders of these widths.

    Args:
        path: a .safetensors file.
        widths: hidden size of each of the model's text encoders, in order: (768,), (1024,), (768, 1280), (1280,).
        name: what prompts call it; by default the file's stem.

    Raises:
        Incompatible: it is made for other encoders (`code` `embedding-width`).
        InvalidModelFile: it holds no embedding. Refused: it is a pickle.
    """
    name = path.stem if name is None else name
    with open_tensors(path) as file:
        tensors = {key: file.get_tensor(key).to(torch.float32, copy=True) for key in sorted(file.keys())}
    found = _as_matrices(tensors, path)
    if len(found) > len(widths) == 1 and found[-1].shape[1] == widths[0]:
        found = found[-1:]  # SDXL's refiner has the second encoder only
    have = [int(each.shape[1]) for each in found]
    if have != list(widths):
        raise Incompatible(
            f"embedding `{name}` is made for text encoders of width {_listed(have)}, "
            f"the model's have {_listed(widths)}",
            code=Cause.EMBEDDING_WIDTH,
            embedding=name,
            widths=have,
            model_widths=list(widths),
        )
    counts = {int(each.shape[0]) for each in found}
    if len(counts) != 1:
        raise InvalidModelFile(f"`{path.name}` has different numbers of vectors for its encoders", name=path.name)
    if not all(bool(torch.isfinite(each).all()) for each in found):
        raise InvalidModelFile(f"`{path.name}` holds values that are not finite numbers", name=path.name)
    return Embedding(name, tuple(found))


def _as_matrices(tensors: dict[str, Tensor], path: Path) -> list[Tensor]:
    picked = next(([tensors[key] for key in pair] for pair in _PAIRS if set(pair) <= tensors.keys()), None)
    if picked is None:
        keys = ["emb_params"] if "emb_params" in tensors else list(tensors)
        if len(keys) != 1:
            raise InvalidModelFile(
                f"`{path.name}` is no embedding: {len(keys)} tensors, none called emb_params", name=path.name
            )
        picked = [tensors[keys[0]]]
    matrices = [each.unsqueeze(0) if each.ndim == 1 else each for each in picked]
    if not all(each.ndim == _MATRIX and each.numel() for each in matrices):
        shapes = ", ".join(str(list(each.shape)) for each in picked)
        raise InvalidModelFile(f"`{path.name}` is no embedding: its tensors have shapes {shapes}", name=path.name)
    return matrices


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))
