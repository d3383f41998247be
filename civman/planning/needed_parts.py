"""Lists the text encoders, VAE or vision encoder that a model needs as separate files, and where to get them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from civman.diffusion.families.flow_family import FlowFamily
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_parts import TOKENIZER, missing_parts
from civman.domain.adapters.ip_adapters import read_ip_adapter
from civman.domain.architecture import Kind
from civman.domain.catalog import ModelVersion
from civman.domain.digests import Sha256
from civman.domain.known_parts import KnownPart, parts_for
from civman.domain.printed_refs import file_ref
from civman.planning.find_encoder import fitting_encoders, known_encoders
from civman.planning.find_files import Finder, Found
from civman.planning.find_tokenizer import fitting_tokenizers, lacks_tokenizer, with_tokenizer
from civman.planning.flow_plan import fitting_files, part_widths

Lookup = Callable[[Iterable[Sha256]], Mapping[Sha256, ModelVersion]]
"""A function that asks CivitAI which model versions have files with these digests."""


@dataclass(frozen=True, slots=True)
class NeededPart:
    """A part that a checkpoint or an IP-Adapter needs but does not contain."""

    role: str
    title: str
    is_optional: bool
    held: tuple[str, ...]
    """The names of the stored files that can be used as this part."""
    published: tuple[KnownPart, ...]
    """Published files that are known to fit the model."""
    refs: Mapping[Sha256, str]
    """For each published file that is on CivitAI, the ref with which to download it."""
    was_asked: bool = False
    """Whether civman has searched CivitAI for the published files."""


def needed_parts(finder: Finder, checkpoint: Found) -> tuple[NeededPart, ...]:
    """List the parts that a checkpoint or IP-Adapter needs as separate files; empty if it contains all of them.

    Raises: CannotRender: the file is an IP-Adapter that civman cannot use.
    """
    if checkpoint.identity.kind is Kind.IP_ADAPTER:
        adapter = read_ip_adapter(checkpoint.header.shapes, checkpoint.inspected.name)
        held = tuple(file.inspected.name for file in fitting_encoders(finder, adapter))
        return (NeededPart("clip-vision", adapter.encoder_title, False, held, known_encoders(adapter), {}),)
    family = flow_family_of(checkpoint.header.shapes)
    if family is None:
        return ()
    found, widths = [], part_widths(family, checkpoint) or {}
    for need in missing_parts(family, checkpoint.header.shapes):
        held = tuple(file.inspected.name for file in fitting_files(finder, need, family, checkpoint))
        _, width = widths.get(need.component, ("", None))
        published = parts_for(str(family.architecture), need.kind.role, width)
        found.append(NeededPart(need.kind.role, need.kind.title, need.is_optional, held, published, {}))
    return (*found, *_tokenizer(finder, family, checkpoint))


def _tokenizer(finder: Finder, family: FlowFamily, checkpoint: Found) -> tuple[NeededPart, ...]:
    """Return the tokenizer that a checkpoint needs; empty if a fitting text encoder's file contains it."""
    need = with_tokenizer(family)
    if need is None or need.kind.tokenizer_in(checkpoint.header.shapes) is not None:
        return ()
    own = need.kind.prefix_in(checkpoint.header.shapes) is not None
    encoders = [checkpoint] if own else fitting_files(finder, need, family, checkpoint)
    published = parts_for(str(family.architecture), TOKENIZER)
    if not all(lacks_tokenizer(need, each) for each in encoders) or not (encoders or published):
        return ()
    held = dict.fromkeys(
        file.inspected.name for encoder in encoders for file in fitting_tokenizers(finder, need, encoder)
    )
    return (NeededPart(TOKENIZER, f"tokenizer of the {need.kind.title}", False, tuple(held), published, {}),)


def with_offers(parts: Iterable[NeededPart], look_up: Lookup) -> tuple[NeededPart, ...]:
    """For each part that no stored file fits, search CivitAI for the published files that do."""
    every = tuple(parts)
    wanted = [known.sha256 for part in every if not part.held for known in part.published]
    versions = look_up(wanted) if wanted else {}
    refs = {
        sha256: file_ref(version, file)
        for sha256, version in versions.items()
        for file in version.files
        if file.hashes.sha256 == sha256
    }
    return tuple(
        part
        if part.held
        else replace(
            part,
            was_asked=True,
            refs={each.sha256: refs[each.sha256] for each in part.published if each.sha256 in refs},
        )
        for part in every
    )


def said(part: NeededPart) -> str:
    """Describe in a sentence which part is needed, whether it is stored, and where to get it."""
    needed = f"needs a {part.title}" + (" (optional)" if part.is_optional else "")
    if part.held:
        return f"{needed}: the library has {', '.join(f'`{name}`' for name in part.held)}"
    for known in part.published:
        if ref := part.refs.get(known.sha256):
            return f"{needed}, which is not in the library: `civman download {ref}` downloads {known.title}"
    if not part.published:
        return f"{needed}, which is not in the library"
    known = part.published[0]
    answer = "CivitAI has none of the known files" if part.was_asked else "civman has not searched CivitAI for it"
    return (
        f"{needed}, which is not in the library, and {answer}: get {known.title} as `{known.name}` "
        f"({known.published}, sha256 {known.sha256}) and add it with `civman import FILE`"
    )
