"""Find the vectors of an embedding in a file, and the text encoders they are for, from tensor names and shapes.

Supports textual inversions in separate files, and those bundled in adapter files. The vectors themselves are read
in `civman.diffusion.textual_inversions`.

Layouts: `emb_params` and `string_to_param.*` (A1111), any single tensor named after its token (diffusers), `clip_l`
with `clip_g` (SDXL), `text_encoders_0` with `text_encoders_1` (diffusers' advanced training scripts). In an adapter
file, these names have the prefix `bundle_emb.NAME.`; in cloneofsimo's first LoRAs, the name is the token itself, such
as `<s1>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from civman.domain.adapters.adapter_tensors import bundled_name
from civman.domain.adapters.spellings import BUNDLED

Shape = tuple[int, ...]

_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
_SINGLE = ("emb_params", "string_to_param.*", "string_to_param", "clip_l", "clip_g")
_OTHERS = ("t5", "t5xxl", "name", "step", "sd_checkpoint", "sd_checkpoint_name", "string_to_token.*")
"""Names of file entries that are ignored, because they do not contain vectors for CLIP text encoders."""


@dataclass(frozen=True, slots=True)
class EmbeddingTensors:
    """The tensors of one embedding: `names` and `widths` have an item for each text encoder that it was made for."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    length: int
    """The number of vectors, which is the number of tokens that the embedding takes up in a prompt."""

    def places(self, widths: Sequence[int]) -> list[str | None]:
        """Assign the embedding's tensors to a model's text encoders, by the widths of the encoders.

        An encoder without a matching tensor gets None.
        """
        pairs = list(zip(self.names, self.widths, strict=True))
        if len(pairs) > len(widths):
            pairs = pairs[-len(widths) :]  # the SDXL refiner has only the second text encoder
        if len(pairs) == len(widths):
            return [name if own == wide else None for (name, own), wide in zip(pairs, widths, strict=True)]
        return [next((name for name, own in pairs if own == wide), None) for wide in widths]


def packed(shapes: Mapping[str, Shape], name: str) -> dict[str, Shape]:
    """Return the tensors of the embedding `name` that an adapter file bundles, by their names in the file."""
    folded = name.casefold()
    return {key: shape for key, shape in shapes.items() if bundled_name(key, shape).casefold() == folded}


def read_embedding(shapes: Mapping[str, Shape]) -> EmbeddingTensors | str:
    """Find the embedding that these tensors form, or return the reason why they are not an embedding."""
    plain = {_plain(name): name for name in shapes}
    kept = {name: actual for name, actual in plain.items() if name not in _OTHERS}
    pair = next((pair for pair in _PAIRS if set(pair) <= kept.keys()), None)
    chosen = (
        pair or next(((name,) for name in _SINGLE if name in kept), None) or (tuple(kept) if len(kept) == 1 else ())
    )
    if not chosen:
        return f"the file has {len(shapes)} tensors, but none is named emb_params"
    if foreign := kept.keys() - set(chosen):
        return f"besides the vectors, the file has the tensor `{min(foreign)}`, which civman does not know"
    names = tuple(kept[name] for name in chosen)
    found = [(1, *shapes[name]) if len(shapes[name]) == 1 else shapes[name] for name in names]
    if not all(len(shape) == 2 and all(shape) for shape in found):
        return (
            f"the tensors have shapes that vectors cannot have: {', '.join(str(list(shapes[name])) for name in names)}"
        )
    if len({shape[0] for shape in found}) != 1:
        return "the file has different numbers of vectors for the two text encoders"
    return EmbeddingTensors(names, tuple(shape[1] for shape in found), found[0][0])


def _plain(name: str) -> str:
    return name[len(BUNDLED) :].partition(".")[2] if name.startswith(BUNDLED) else name
