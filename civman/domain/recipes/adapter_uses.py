"""The adapters, hypernetworks and embeddings in a recipe: for each, the digest of its file and its strength."""

from dataclasses import dataclass

from civman.domain.adapters import scale_keyframes
from civman.domain.digests import Sha256
from civman.domain.recipes.render_request import LoraRequest


@dataclass(frozen=True, slots=True)
class LoraUse:
    """An adapter in a recipe: its digest, and its scales for the UNet and the text encoders."""

    sha256: Sha256
    scale: float
    text_scale: float
    blocks: str = ""
    """Block weights (`domain.adapters.block_weights`), separated by commas; "" if all blocks have the same scale."""
    keyframes: str = ""
    """How the scale for the UNet changes over the steps (`domain.adapters.scale_keyframes`), starting with `scale`."""
    hires_keyframes: str = ""
    """How the scale for the UNet changes in the second pass; "" if it changes as in the first pass."""

    def scale_at(self, step: int, steps: int, *, is_hires: bool) -> float:
        """Return the adapter's scale for the UNet in step `step` of `steps`, counted from 0 as A1111 does."""
        keyframes = (self.hires_keyframes if is_hires else "") or self.keyframes
        return scale_keyframes.scale_at(keyframes, step, steps) if keyframes else self.scale

    @property
    def peak(self) -> float:
        """The UNet's scale with the largest absolute value in any step."""
        both = [scale_keyframes.largest(each) for each in (self.keyframes, self.hires_keyframes) if each]
        return max([self.scale, *both], key=abs)

    def request(self, ref: str) -> LoraRequest:
        """Return a request for the file that `ref` names, with the same scales and block weights."""
        return LoraRequest(ref, self.scale, self.text_scale, self.blocks, self.keyframes, self.hires_keyframes)


@dataclass(frozen=True, slots=True)
class HypernetworkUse:
    """A hypernetwork in a recipe: its digest and its strength."""

    sha256: Sha256
    strength: float


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """An embedding in a recipe: its digest, and the word in the prompt that is replaced with its vectors."""

    sha256: Sha256
    word: str
