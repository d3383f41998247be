"""Finds the parts that a flow-matching model needs in the files that were passed, and computes their configs.

Does not import torch.

Plans and the loader use the same function, so that a missing or wrong part is refused before any weight is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from civman.diffusion.checkpoint_names import Config, Shapes, stated_in
from civman.diffusion.component_layouts import Source
from civman.diffusion.families.flow_family import FlowFamily, Need
from civman.domain.known_parts import parts_for
from civman.errors import CannotRender, Cause, InvalidModelFile

TRANSFORMER = "transformer"
TOKENIZER = "tokenizer"
"""The role of a separate tokenizer file (`--part tokenizer=FILE`), which is also its key in a model's map of files."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One component of a model: its class, the class's arguments, and where its tensors are in its file."""

    title: str
    model: str
    config: Config
    prefix: str
    sources: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Source]] = field(repr=False)
    tokenizer: str | None = None
    """The name of the tensor that contains the part's tokenizer; None if the tokenizer is shipped with civman."""
    has_tokenizer: bool = False
    """Whether the tokenizer's tensor is in the same file as the part; if not, it is in a separate tokenizer file."""


def place_parts(
    family: FlowFamily,
    checkpoint: Shapes,
    file: str,
    own_files: Mapping[str, Shapes] = {},
    names: Mapping[str, str] = {},
    stated: Mapping[str, Config] | None = None,
    metadata: Mapping[str, str] = {},
) -> dict[str, Placed]:
    """Find all components of a model in its files.

    Args:
        family: the checkpoint's family.
        checkpoint: the shapes of the checkpoint's tensors.
        file: the checkpoint's name, for messages.
        own_files: for each part that has a separate file, the shapes of the tensors in that file; also for a separate
            tokenizer file.
        names: the names of the separate files, by component.
        stated: config options that override those computed from shapes, by component.
        metadata: the checkpoint's metadata, which may also contain config options for components in the checkpoint.

    Raises:
        CannotRender: a part or its tokenizer is missing (`missing-part`), or a part is of another kind or width
            (`mismatched-parts`).
        InvalidModelFile: the shapes of the tensors match no model of the family.
    """
    options = {component: words for component, words in stated_in(metadata).items() if component not in own_files}
    for component, words in (stated or {}).items():
        options[component] = options.get(component, {}) | words
    prefix = family.prefix_in(checkpoint)
    assert prefix is not None
    own = {name[len(prefix) :]: shape for name, shape in checkpoint.items() if name.startswith(prefix)}
    config = _read(file, lambda: family.config(own)) | options.get(TRANSFORMER, {})
    placed = {
        TRANSFORMER: Placed("transformer", family.model, config, prefix, _in_transformer(family, TRANSFORMER, prefix))
    }
    for component, (model, arguments) in family.extra_components(own).items():
        inner = _in_transformer(family, component, prefix)
        placed[component] = Placed(component, model, arguments, prefix, inner)
    widths = family.widths(config)
    for need in family.needs:
        shapes, name = own_files.get(need.component, checkpoint), names.get(need.component, file)
        is_own = need.component in own_files
        width = widths[need.component][1] if need.component in widths else None
        if (part := _placed(need, shapes, name, family, width, is_own=is_own, stated=options)) is not None:
            placed[need.component] = _with_tokenizer(part, need, shapes, own_files.get(TOKENIZER, {}), name, family)
    _require_widths(family, placed, file, names)
    return placed


def missing_parts(family: FlowFamily, checkpoint: Shapes) -> list[Need]:
    """List the parts that the family needs and the checkpoint does not contain, including optional parts."""
    return [need for need in family.needs if need.kind.prefix_in(checkpoint) is None]


def _in_transformer(
    family: FlowFamily, component: str, prefix: str
) -> Callable[[Mapping[str, tuple[int, ...]]], dict[str, Source]]:
    return lambda wanted: family.sources(component, wanted, prefix)


def _placed(
    need: Need, shapes: Shapes, file: str, family: FlowFamily, width: int | None, *, is_own: bool,
    stated: Mapping[str, Config],
) -> Placed | None:  # fmt: skip
    kind = need.kind
    prefix = kind.prefix_in(shapes)
    if prefix is None:
        if need.is_optional and not is_own:
            return None
        raise _wrong_kind(need, file, family, width) if is_own else missing_part(need, file, family, width)
    inner = kind.shapes_in(shapes, prefix)
    config = _read(file, lambda: kind.config(inner)) | stated.get(need.component, {})
    return Placed(
        kind.title, kind.model, config, prefix, lambda wanted: kind.sources_in(wanted, config, shapes, prefix)
    )  # fmt: skip


def _with_tokenizer(
    part: Placed, need: Need, shapes: Shapes, separate: Shapes, file: str, family: FlowFamily
) -> Placed:  # fmt: skip
    """Record which file a part's tokenizer is in: the separate file if there is one, else the part's own file."""
    kind = need.kind
    if not kind.tokenizers:
        return part
    if (name := kind.tokenizer_in(separate)) is not None:
        return replace(part, tokenizer=name)
    if (name := kind.tokenizer_in(shapes)) is not None:
        return replace(part, tokenizer=name, has_tokenizer=True)
    raise missing_tokenizer(need, file, family)


def missing_part(need: Need, file: str, family: FlowFamily, width: int | None) -> CannotRender:
    """Build the error for a checkpoint that lacks a required part.

    `width`: the width that the part must have; None if any width fits.
    """
    return CannotRender(
        f"`{file}` contains no {need.kind.title}, and none was given",
        hint=f"pass a file with {option_of(need)}; {_how_to_fetch(need, family, width)}",
        code=Cause.MISSING_PART, part=need.kind.role, file=file,
    )  # fmt: skip


def missing_tokenizer(need: Need, file: str, family: FlowFamily) -> CannotRender:
    """Build the error for a file that has a part but not the part's tokenizer."""
    return CannotRender(
        f"the {need.kind.title} in `{file}` has no tokenizer (the tensor `{need.kind.tokenizers[0]}`), "
        "and civman ships none for it",
        hint=f"pass a tokenizer with --part {TOKENIZER}=FILE, or a file that also contains the tokenizer with "
        f"{option_of(need)}; {_where_tokenizer(need, family)}",
        code=Cause.MISSING_PART, part=TOKENIZER, file=file,
    )  # fmt: skip


def _where_tokenizer(need: Need, family: FlowFamily) -> str:
    known = parts_for(str(family.architecture), TOKENIZER)
    if not known:
        return _how_to_fetch(need, family)
    return f"`{known[0].name}` is in the public repository {known[0].published} (sha256 {known[0].sha256})"


def _wrong_kind(need: Need, file: str, family: FlowFamily, width: int | None) -> CannotRender:
    return CannotRender(
        f"`{file}` is not the required part ({need.kind.title})",
        hint=f"pass a matching file with {option_of(need)}; {_how_to_fetch(need, family, width)}",
        code=Cause.MISMATCHED_PARTS, part=need.kind.role, file=file,
    )  # fmt: skip


def option_of(need: Need) -> str:
    """Return the command-line option that passes this part, with REF in place of the file: "--part t5=REF"."""
    return "--vae REF" if need.component == "vae" else f"--part {need.kind.role}=REF"


def _how_to_fetch(need: Need, family: FlowFamily, width: int | None = None) -> str:
    known = parts_for(str(family.architecture), need.kind.role, width)
    if not known:
        return "CivitAI offers text encoders and VAEs as separate models"
    return f"`civman download {known[0].sha256}` fetches {known[0].title} (`{known[0].name}`) if CivitAI has it"


def _require_widths(family: FlowFamily, placed: Mapping[str, Placed], file: str, names: Mapping[str, str]) -> None:
    for component, (option, width) in family.widths(placed[TRANSFORMER].config).items():
        if component not in placed:
            continue
        found = int(placed[component].config[option])
        if found != width:
            need = next(each for each in family.needs if each.component == component)
            name = names.get(component, file)
            raise CannotRender(
                f"the {need.kind.title} in `{name}` has a width of {found}, but `{file}` needs a width of {width}",
                hint=f"pass a matching file with {option_of(need)}; {_how_to_fetch(need, family, width)}",
                code=Cause.MISMATCHED_PARTS, part=need.kind.role, file=name,
            )  # fmt: skip


def _read(file: str, read: Callable[[], Config]) -> Config:
    try:
        return read()
    except KeyError as missing:
        raise CannotRender(
            f"`{file}` lacks the tensor `{missing.args[0]}`, so its structure is unknown",
            hint="the file is incomplete; another file of this version may be complete",
            code=Cause.MISSING_TENSOR, missing=[str(missing.args[0])],
        ) from missing  # fmt: skip
    except (IndexError, StopIteration, ZeroDivisionError, ValueError) as odd:
        raise InvalidModelFile(f"the shapes of the tensors in `{file}` match no model of its family") from odd
