"""Loads textual inversions, vectors that a prompt uses by name, from safetensors files. Pickles are refused.

`civman.domain.embedding_tensors` decides which tensors of a file form an embedding, both in embedding files and in
adapters that include an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from civman.diffusion.tensor_files import open_tensors
from civman.domain.embedding_tensors import packed, read_embedding
from civman.errors import Cause, Incompatible, InvalidModelFile


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """An embedding, which a prompt uses by `name`: a (n, width) float32 tensor for each text encoder, in order.

    For an encoder that the embedding was not trained for, the entry is None, and the name is left out of that encoder's
    input.
    """

    name: str
    vectors: tuple[Tensor | None, ...]

    @property
    def length(self) -> int:
        """The number of tokens that the embedding occupies in the encoders that it was trained for."""
        return next(int(each.shape[0]) for each in self.vectors if each is not None)

    def length_in(self, encoder: int) -> int:
        """Return the number of tokens that the embedding occupies in the input of one text encoder."""
        each = self.vectors[encoder]
        return 0 if each is None else int(each.shape[0])


def load_embedding(
    path: Path, widths: Sequence[int], *, name: str | None = None, allow_partial: bool = False
) -> Embedding:
    """Load the embedding in a file for text encoders of these widths.

    Args:
        path: a .safetensors file: an embedding, or an adapter that includes one.
        widths: the hidden size of each of the model's text encoders, in order: (768,), (1024,), (768, 1280),
            (1280,).
        name: the name that prompts use; by default the file name without its extension.
        allow_partial: accept an embedding that was trained for only one of two text encoders.

    Raises:
        Incompatible: the embedding was trained for other encoders (`code` `embedding-width`).
        InvalidModelFile: the file contains no embedding. Refused: the file is a pickle.
    """
    name = path.stem if name is None else name
    with open_tensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
        found = read_embedding(packed(shapes, name) or shapes)
        if isinstance(found, str):
            raise InvalidModelFile(f"`{path.name}` is not an embedding: {found}", name=path.name)
        places = found.places(widths)
        if not any(places) or (None in places and not allow_partial):
            raise Incompatible(
                f"embedding `{name}` was made for text encoders of width {_listed(found.widths)}, "
                f"but the model's have width {_listed(widths)}",
                code=Cause.EMBEDDING_WIDTH,
                embedding=name,
                widths=list(found.widths),
                model_widths=list(widths),
            )
        vectors = [
            None if place is None else file.get_tensor(place).to(torch.float32, copy=True).reshape(found.length, -1)
            for place in places
        ]
    if not all(each is None or bool(torch.isfinite(each).all()) for each in vectors):
        raise InvalidModelFile(f"`{path.name}` contains values that are not finite numbers", name=path.name)
    return Embedding(name, tuple(vectors))


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))
