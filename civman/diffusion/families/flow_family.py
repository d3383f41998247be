"""The interface and the common code of the flow-matching transformer families.

Latents are x = (1 − σ)·clean + σ·noise; a model predicts the velocity v = noise − clean, so that clean = x − σ·v. This
package imports torch only inside methods that compute, because plans use families before torch is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.component_layouts import Source
from civman.diffusion.key_table import KeyTable
from civman.diffusion.part_kinds import PartKind
from civman.domain.architecture import Architecture
from civman.errors import CannotRender, Cause
from civman.prompts.emphasis import ParsedPrompt

PREFIXES = ("model.diffusion_model.", "net.", "model.", "diffusion_model.", "transformer.", "")
"""The prefixes that a transformer's tensor names may have in a file, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Need:
    """A part that a family needs in addition to the transformer, and its component name in the loaded model."""

    component: str
    kind: PartKind
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults for options that a request does not set.

    `guidance`: the distilled guidance scale, which is an input of the model; 0 if the model has no such input.
    """

    steps: int = 20
    cfg: float = 1.0
    guidance: float = 0.0
    sampler: str = "Euler"
    schedule: str = "Simple"
    shift: float = 1.0


class Texts(Protocol):
    """The interface of a loaded model's text encoders, which `civman.diffusion.flow_text` implements."""

    def clip(self, component: str, parsed: ParsedPrompt, layer: int = -1, most: int = 77) -> tuple[Any, Any]:
        """Encode a prompt with CLIP; return a layer's states (1, `most`, width) and the pooled vector (1, width).

        A prompt is padded or cut off so that it has `most` tokens, including the start and end tokens.
        """
        ...

    def t5(self, component: str, parsed: ParsedPrompt, least: int, most: int, *, hides_padding: bool = False) -> Any:
        """Encode a prompt with T5; return the hidden states (1, tokens, width).

        A prompt of fewer than `least` tokens is padded, one of more than `most` tokens is cut off. `hides_padding`:
        whether no token attends to the padding.
        """
        ...

    def masked_t5(self, component: str, parsed: ParsedPrompt, length: int) -> Any:
        """Encode a prompt with a T5 encoder whose tokenizer is read from a file; return the states (1, length, width).

        After the prompt's tokens, the states are zero. A prompt of more than `length` tokens is cut off.
        """
        ...

    context_width: int
    """The width of the text embeddings that the transformer takes as input."""

    def has(self, component: str) -> bool:
        """Whether the model has this optional text encoder."""
        ...

    def qwen_ids(self, text: str, most: int) -> list[int]:
        """Tokenize a text for a Qwen model; return at most `most` token ids."""
        ...

    def t5_ids(self, parsed: ParsedPrompt, most: int) -> tuple[Any, list[float]]:
        """Return a prompt's T5 token ids (1, tokens), including the end token, and the weight of each token."""
        ...

    def plain(self, parsed: ParsedPrompt) -> str:
        """Return the prompt's text without its weights and their brackets."""
        ...

    def run(self, component: str, *arguments: Any) -> Any:
        """Run one of the model's other networks, such as Anima's text adapter, and return its output."""
        ...

    def piece_ids(
        self, component: str, parsed: ParsedPrompt, most: int, *, starts: bool = True, ends: bool = False
    ) -> tuple[list[int], list[float]]:
        """Tokenize a prompt for the text encoder `component`; return at most `most` ids, and each token's weight.

        `starts`, `ends`: whether the ids begin with the tokenizer's start token and end with its end token.
        """
        ...

    def file_ids(self, component: str, text: str, most: int) -> list[int]:
        """Tokenize a text for the text encoder `component`; return at most `most` ids.

        If the encoder needs a start token, the text must begin with that token's name.
        """
        ...

    def language_model(
        self, component: str, ids: Any, layer: int | tuple[int, ...] | None, weights: Sequence[float] = (),
        *, least: int = 0, pads_before: bool = False, padding: int | None = None,
    ) -> Any:  # fmt: skip
        """Encode token ids with a language model; return a layer's hidden states (1, tokens, width).

        `layer`: the index of the hidden states to return, without the final norm; with several indices, these hidden
        states are concatenated along the width; with None, the last layer's states are returned, after the final norm.
        `weights`: the weight of each token; empty if the family does not support weights. `least`: the number of tokens
        up to which the prompt is padded, at its end or, with `pads_before`, at its start. `padding`: the id of the
        padding token; None: that of Qwen or Mistral.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FlowEncoded:
    """One encoded text: the context (1, tokens, width), and the pooled vector (1, width) if the family uses it."""

    context: Any
    pooled: Any = None


@dataclass(frozen=True, slots=True)
class Fit:
    """How to fit a reference image to a model: crop it to `box`, then resize it to `size`.

    `box`: left, top, width and height in pixels; `size`: width and height in pixels.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Instant:
    """The inputs of one evaluation: noisy latents (B, channels, h, w), noise levels and distilled guidance scales.

    `sigmas` and `guidances` contain one value for all images, or one for each image. `references`: the latents of
    reference images, (1 or B, channels, h, w) each, in the order of the recipe.
    """

    x: Any
    sigmas: tuple[float, ...]
    guidances: tuple[float, ...] = (0.0,)
    references: tuple[Any, ...] = ()

    def tokens(self, dtype: Any) -> Any:
        """Return the tokens of the noisy latents, followed by those of the references: (B, tokens, 4 · channels)."""
        import torch  # imported here, because planning uses this module without importing torch

        shown = [packed(each).expand(len(self.x), -1, -1) for each in self.references]
        return torch.cat([packed(self.x), *shown], dim=1).to(dtype)

    def velocity(self, answer: Any) -> Any:
        """Extract the velocity (B, channels, h, w) float32 from a transformer's output for `tokens`."""
        height, width = self.x.shape[-2:]
        return unpacked(answer[:, : height // 2 * (width // 2)].float(), height, width)

    def of_each(self, numbers: Sequence[float]) -> Any:
        """Return `numbers` (one for all images, or one for each) as a tensor (B,) in the latents' dtype."""
        if len(set(numbers)) == 1:
            return self.x.new_full((len(self.x),), numbers[0])
        import torch  # imported here, because planning uses this module without importing torch

        return torch.cat([self.x.new_full((1,), number) for number in numbers])


class FlowFamily:
    """Base class of all flow-matching families. Instances are singletons without state."""

    name: ClassVar[str]
    title: ClassVar[str]
    architecture: ClassVar[Architecture]
    model: ClassVar[str]
    """The name of the transformer's class, as in `model_classes.construct_class`."""
    probes: ClassVar[tuple[str, ...]]
    """Tensors that only this family's transformers have, by original name without prefix."""
    lacks: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[KeyTable]
    needs: ClassVar[tuple[Need, ...]]
    variant_words: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Maps each variant to lower-case words that identify it in CivitAI's labels and in file names.

    Only needed for variants that have the same tensors.
    """
    refused_words: ClassVar[Mapping[str, str]] = {}
    """Maps lower-case words that identify models that civman cannot render to the reason why it cannot.

    The words are looked up in CivitAI's labels and in file names, because these models have the same tensors as models
    of this family.
    """
    known_extras: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensors that real files contain but the transformer does not use."""
    single_precision: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the names of parameters that stay in float32, whatever precision the model computes in."""
    native_size: ClassVar[int] = 1024
    multiple: ClassVar[int] = 16
    """The width and the height of an image must be multiples of this number of pixels."""
    entries: ClassVar[int] = 1000
    """The size of the table of noise levels, see `FlowLevels.entries`."""
    reads_images: ClassVar[Mapping[str, int]] = {}
    """Maps each variant that reads reference images to the maximum number of reference images."""

    prediction = "flow"
    is_xl = False
    needs_picture = False
    takes_clip_skip = False
    merges_tokens = False
    vae_overflows = False
    drops_text_layer = False
    zero_for_empty_negative = False
    scores = None
    latent_rgb: ClassVar[tuple[tuple[float, ...], ...]] = ()
    """Empty, because no matrix from latents to colours is known; previews decode the latents instead."""

    def __str__(self) -> str:
        return self.name

    def size_conditioning(self, size: tuple[int, int], *, positive: bool) -> None:
        """Return None: flow-matching transformers have no size conditioning."""

    def prefix_in(self, names: Shapes) -> str | None:
        """Return the prefix of this family's transformer in a file, or None if the file is of another family."""
        for prefix in PREFIXES:
            if all(prefix + probe in names for probe in self.probes):
                return None if any(prefix + name in names for name in self.lacks) else prefix
        return None

    def variants(self, shapes: Shapes) -> tuple[str, ...]:
        """Return the variants that may have these tensors (names without prefix), the most common one first."""
        raise NotImplementedError

    def defaults(self, variant: str) -> Defaults:
        """Return the variant's defaults for options that a request does not set."""
        raise NotImplementedError

    def shift(self, variant: str, size: tuple[int, int], steps: int) -> float:  # noqa: ARG002
        """Return the default shift of the noise levels for an image of this size in pixels and this number of steps."""
        return self.defaults(variant).shift

    def reference_fit(self, width: int, height: int) -> Fit:
        """Return the default way to fit a reference image of this size in pixels to the model."""
        raise NotImplementedError

    def config(self, shapes: Shapes) -> Config:
        """Build the arguments of the transformer's class from the tensors' shapes (names without prefix)."""
        raise NotImplementedError

    def extra_components(self, shapes: Shapes) -> dict[str, tuple[str, Config]]:  # noqa: ARG002
        """Return the additional networks that are stored with the transformer: component → (class name, arguments)."""
        return {}

    def sources(self, component: str, wanted: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Source]:
        """Map each parameter of the transformer, or of an extra component, to its tensor in the file."""
        assert component == "transformer"
        return self.keys.sources(wanted, prefix)

    def widths(self, transformer: Config) -> dict[str, tuple[str, int]]:
        """Return the width that each part must have: component → (the config option for this width, the width)."""
        raise NotImplementedError

    def encode(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a prompt."""
        raise NotImplementedError

    def encode_negative(self, texts: Texts, parsed: ParsedPrompt) -> FlowEncoded:
        """Encode a negative prompt; some families use a different template for it than for the prompt."""
        return self.encode(texts, parsed)

    def velocity(self, components: Mapping[str, Any], at: Instant, text: FlowEncoded) -> Any:
        """Predict the velocity (B, channels, h, w) float32."""
        raise NotImplementedError


def packed(latents: Any) -> Any:
    """Fold each 2×2 square of latents (B, c, h, w) into one token: (B, h/2·w/2, 4c)."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpacked(tokens: Any, height: int, width: int) -> Any:
    """Undo `packed` for latents of this height and width."""
    batch, _, channels = tokens.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def require_head(head: int, wanted: int, title: str) -> None:
    """Reject a model whose attention heads are not `wanted` wide, because its position encoding is unknown."""
    if head != wanted:
        raise CannotRender(
            f"the attention heads of this {title} model are {head} wide, but civman knows its "
            f"position encoding only for a width of {wanted}",
            code=Cause.UNKNOWN_FAMILY,
        )
