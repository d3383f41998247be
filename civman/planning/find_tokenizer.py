"""Finds the tokenizer that a text encoder needs, if civman ships none for it and the encoder's file contains none."""

from collections.abc import Mapping

from civman.diffusion.families.flow_family import FlowFamily, Need
from civman.diffusion.flow_parts import TOKENIZER
from civman.domain.files.tokenizer_files import TOKENS
from civman.domain.known_parts import parts_for
from civman.errors import AmbiguousRef, CannotRender, Cause
from civman.planning.find_files import Finder, Found

_LEAST_FRACTION = 0.9
"""The least fraction of an encoder's embeddings that its tokenizer must use: encoders may have a few unused ones."""


def with_tokenizer(family: FlowFamily) -> Need | None:
    """Return the family's text encoder whose tokenizer is read from a file; None if civman ships all tokenizers."""
    return next((need for need in family.needs if need.kind.tokenizers), None)


def lacks_tokenizer(need: Need, encoder: Found) -> bool:
    """Whether a file contains this text encoder, but not its tokenizer."""
    shapes = encoder.header.shapes
    return need.kind.prefix_in(shapes) is not None and need.kind.tokenizer_in(shapes) is None


def fitting_tokenizers(finder: Finder, need: Need, encoder: Found) -> list[Found]:
    """List the stored tokenizers that fit the text encoder in this file, by their kind and number of tokens."""
    return [each for each in finder.stored(TOKENIZER) if not _why_unfit(need, encoder, each)]


def tokenizer_for(
    finder: Finder, family: FlowFamily, checkpoint: Found, named: Mapping[str, Found]
) -> tuple[Found | None, str]:
    """Find the tokenizer file of a checkpoint's text encoder: the requested one, else the only stored one that fits.

    `named`: maps roles to the parts found so far, including the requested tokenizer. The result is None if no separate
    tokenizer is needed, or if none is stored. Also returns a notice for the user, which may be empty.

    Raises: CannotRender (`mismatched-parts`): the requested one does not fit. AmbiguousRef: several stored files fit.
    """
    given, need = named.get(TOKENIZER), with_tokenizer(family)
    if need is None:
        return given, ""
    encoder = named.get(need.kind.role, checkpoint)
    if given is not None:
        if why := _why_unfit(need, encoder, given):
            raise CannotRender(
                f"`{given.inspected.name}` is not the tokenizer of the {need.kind.title} in "
                f"`{encoder.inspected.name}`: {why}",
                hint=f"pass the matching tokenizer with --part {TOKENIZER}=FILE", code=Cause.MISMATCHED_PARTS,
                part=TOKENIZER, file=given.inspected.name,
            )  # fmt: skip
        return given, ""
    fitting = fitting_tokenizers(finder, need, encoder) if lacks_tokenizer(need, encoder) else []
    published = {part.sha256 for part in parts_for(str(family.architecture), TOKENIZER)}
    fitting = [each for each in fitting if each.sha256 in published] or fitting
    if len(fitting) > 1:
        raise AmbiguousRef(
            f"{len(fitting)} stored files could be the tokenizer of the {need.kind.title}: "
            + ", ".join(f"`{each.inspected.name}` (sha256 {each.sha256[:12]}…)" for each in fitting),
            hint=f"choose one of these files with --part {TOKENIZER}=REF",
        )  # fmt: skip
    if not fitting:
        return None, ""
    name = fitting[0].inspected.name
    return fitting[0], f"the tokenizer of the {need.kind.title} is `{name}`, the only stored file that fits"


def _why_unfit(need: Need, encoder: Found, tokenizer: Found) -> str:
    """Return why a tokenizer does not fit a text encoder; empty if it fits, or if the encoder is invalid."""
    if need.kind.tokenizer_in(tokenizer.header.shapes) is None:
        return f"this text encoder needs a tokenizer of the kind {' or '.join(need.kind.tokenizers)}"
    shapes = encoder.header.shapes
    prefix = need.kind.prefix_in(shapes)
    if prefix is None:
        return ""
    try:
        rows = int(need.kind.config(need.kind.shapes_in(shapes, prefix))["vocab_size"])
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return ""
    tokens = int(tokenizer.header.metadata.get(TOKENS, rows))
    if _LEAST_FRACTION * rows < tokens <= rows:
        return ""
    return f"it has {tokens:,} tokens, but the text encoder has {rows:,} embeddings"
