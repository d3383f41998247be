"""Checks how files fit together and whether civman can render with a checkpoint, for `civman check`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from civman.diffusion.families.registry import RENDERED, flow_family_of
from civman.diffusion.flow_parts import missing_parts, missing_tokenizer, option_of
from civman.domain.architecture import Architecture, Kind
from civman.domain.compatibility import Compatibility, Depth, Part, Verdict, check, worst
from civman.domain.digests import Sha256
from civman.errors import CannotRender, Incompatible, InvalidModelFile
from civman.manage.inspection import Inspected
from civman.planning.checkpoint_facts import read_checkpoint
from civman.planning.find_controls import require_fit
from civman.planning.find_files import Found, model_header
from civman.planning.flow_plan import own_shapes, variant_of, why_refused

ROLES: Final = {
    "lora": Kind.ADAPTER, "embedding": Kind.EMBEDDING, "vae": Kind.VAE, "control": Kind.CONTROLNET,
    "reference": Kind.IP_ADAPTER,
}  # fmt: skip
_FITS_UNET: Final = "the control model's inputs and outputs have the same shapes as the checkpoint's UNet"


def check_files(checkpoint: Inspected, parts: Sequence[tuple[str | None, Inspected]]) -> Compatibility:
    """Check how files fit a checkpoint. `parts`: each file with its role from `ROLES`; None: the role of its kind.

    If civman supports the model family but cannot render with this checkpoint, the reason is added, and the verdict is
    at best "caution": the files may still work together in other programs. A VAE that prevents rendering with the
    checkpoint gets the verdict "cannot work".
    """
    files = [in_role(file.part, role) for role, file in parts]
    found = check(checkpoint.part, files)
    number, vae = next(((number, file) for number, (role, file) in enumerate(parts) if role == "vae"), (0, None))
    problem = _why_not_rendered(checkpoint, vae)
    if vae is not None and problem and problem != _why_not_rendered(checkpoint, None):
        parted = [*found.parts]
        parted[number] = replace(parted[number], verdict=Verdict.CANNOT, reasons=(problem, *parted[number].reasons))
        return replace(found, parts=tuple(parted), verdict=worst((found.verdict, Verdict.CANNOT)))
    found = _with_controls(found, checkpoint, [file for _, file in parts])
    about = (
        *_not_rendered(checkpoint), *_parts_needed(checkpoint, [file for _, file in parts]), *_reads_images(checkpoint),
    )  # fmt: skip
    found = replace(found, reasons=(*found.reasons, *about))
    if problem:
        reasons = (*found.reasons, f"civman cannot render with `{checkpoint.name}`: {problem}")
        return replace(found, reasons=reasons, verdict=worst((found.verdict, Verdict.CAUTION)))
    return found


def _with_controls(found: Compatibility, checkpoint: Inspected, files: Sequence[Inspected]) -> Compatibility:
    """Check the kind of each control model and its fit with the UNet, as a render does before loading it."""
    identity = checkpoint.identity
    if identity is None or identity.kind is not Kind.CHECKPOINT or identity.architecture is Architecture.UNKNOWN:
        return found
    parts = [*found.parts]
    for number, (part, file) in enumerate(zip(found.parts, files, strict=True)):
        if file.part.kind is not Kind.CONTROLNET or file.header is None or part.verdict is Verdict.CANNOT:
            continue
        try:
            require_fit(file, checkpoint)
            if part.verdict is Verdict.UNKNOWN:
                parts[number] = replace(part, verdict=Verdict.FITS, depth=Depth.MODULES, reasons=(_FITS_UNET,))
        except (CannotRender, Incompatible, InvalidModelFile) as error:
            verdict = Verdict.CANNOT if isinstance(error, Incompatible) else Verdict.CAUTION
            parts[number] = replace(
                part, verdict=worst((part.verdict, verdict)), reasons=(error.message, *part.reasons)
            )  # fmt: skip
    about_checkpoint = check(checkpoint.part, ()).verdict
    return replace(found, parts=tuple(parts), verdict=worst((about_checkpoint, *(part.verdict for part in parts))))


def in_role(part: Part, role: str | None) -> Part:
    """Return `part` with the file kind that `ROLES` lists for `role`, or unchanged if `role` is None."""
    return replace(part, role=ROLES[role]) if role in ROLES else part


def _parts_needed(checkpoint: Inspected, given: Sequence[Inspected]) -> tuple[str, ...]:
    """List the text encoders, tokenizers and VAE that a flow-matching model needs and that no file contains."""
    family = flow_family_of(checkpoint.header.shapes) if checkpoint.header is not None else None
    if checkpoint.header is None or family is None:
        return ()
    missing = tuple(
        f"`{checkpoint.name}` contains no {need.kind.title}: `civman render` needs a separate file, either "
        f"from the library or passed with {option_of(need)}"
        for need in missing_parts(family, checkpoint.header.shapes)
        if not need.is_optional
        and not any(each.header is not None and need.kind.prefix_in(each.header.shapes) is not None for each in given)
    )
    files = [each for each in (checkpoint, *given) if each.header is not None]
    without_tokenizer = tuple(
        missing_tokenizer(need, each.name, family).message
        for need in family.needs
        for each in files
        if need.kind.tokenizers
        and need.kind.prefix_in(_shapes(each)) is not None
        and not any(need.kind.tokenizer_in(_shapes(other)) for other in files)
    )
    return (*missing, *without_tokenizer)


def _shapes(file: Inspected) -> Mapping[str, tuple[int, ...]]:
    return file.header.shapes if file.header is not None else {}


def _reads_images(checkpoint: Inspected) -> tuple[str, ...]:
    """Return a sentence on how many reference pictures a checkpoint takes without an IP-Adapter; empty if none."""
    shapes = _shapes(checkpoint)
    family = flow_family_of(shapes)
    if family is None or not family.reads_images:
        return ()
    if why_refused(family, checkpoint):
        return ()
    variant, _ = variant_of(family, checkpoint, family.variants(own_shapes(family, shapes)))
    most = family.reads_images.get(variant, 0)
    pictures = "one reference picture" if most == 1 else f"up to {most} reference pictures"
    model = f"{family.title} {variant}".strip()
    return (f"`{checkpoint.name}` is {model}, which takes {pictures} (--reference)",) if most else ()


def _not_rendered(checkpoint: Inspected) -> tuple[str, ...]:
    """Say that civman does not render a checkpoint's family. The verdict stays, because other programs may do so."""
    seen = checkpoint.identity
    if seen is None or seen.kind is not Kind.CHECKPOINT or seen.architecture in (*RENDERED, Architecture.UNKNOWN):
        return ()
    return (f"civman does not render the family of `{checkpoint.name}`, {seen.architecture}",)


def _why_not_rendered(checkpoint: Inspected, vae: Inspected | None) -> str:
    """Return the reason why civman cannot render with a checkpoint of a family that it renders.

    Returns an empty string if civman can render with it, and for model families that civman does not render.
    """
    identity = checkpoint.identity
    if identity is None or identity.kind is not Kind.CHECKPOINT:
        return ""
    if (family := flow_family_of(_shapes(checkpoint))) is not None:
        return why_refused(family, checkpoint)
    if identity.architecture not in RENDERED:
        return ""
    try:
        base, other = _found("checkpoint", checkpoint), _found("vae", vae)
        if base is not None:
            read_checkpoint(base, vae=other)
    except (CannotRender, InvalidModelFile) as error:
        return error.message
    return ""


def _found(role: str, file: Inspected | None) -> Found | None:
    if file is None or file.header is None or file.identity is None:
        return None
    header = model_header(role, file) or file.header
    return Found(role, Path(file.path or file.name), Sha256(""), file, header, file.identity)
