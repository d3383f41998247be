"""Plans flow-matching models: chooses the variant, finds the files of their parts, and fills in option defaults."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.families.flow_family import Defaults, FlowFamily, Need
from civman.diffusion.families.registry import flow_family_of
from civman.diffusion.flow_parts import TOKENIZER, TRANSFORMER, Placed, missing_parts, option_of, place_parts
from civman.diffusion.memory_plan import Estimate, layer_bytes
from civman.domain.base_models import architectures_of
from civman.domain.part_families import same_scale
from civman.domain.recipes.recipe import Flow, PartUse, Recipe, RenderRequest
from civman.errors import AmbiguousRef, CannotRender, Cause, UsageError
from civman.manage.inspection import Inspected
from civman.planning.checkpoint_facts import Checkpoint, native_size
from civman.planning.find_files import Finder, Found
from civman.planning.find_tokenizer import tokenizer_for, with_tokenizer

_TRANSFORMER_FACTOR = 30
"""Estimates the memory for a transformer's activations: this many values for each token and channel."""


@dataclass(frozen=True, slots=True)
class FlowChoice:
    """A flow-matching checkpoint with its variant and parts.

    `parts`: maps each role to its file, including a separate tokenizer but not the VAE.
    """

    family: FlowFamily
    variant: str
    defaults: Defaults
    checkpoint: Found
    placed: Mapping[str, Placed]
    parts: Mapping[str, Found]
    vae: Found | None
    notices: tuple[str, ...]

    @property
    def uses(self) -> tuple[PartUse, ...]:
        """The parts as a recipe lists them."""
        return tuple(PartUse(role, found.sha256) for role, found in sorted(self.parts.items()))

    def flow(self, request: RenderRequest, size: tuple[int, int], steps: int) -> Flow:
        """Return the shift and the embedded guidance for a request; the family's defaults replace missing values.

        `size` and `steps` are those of the first pass, on which the shift of some families depends.
        """
        guidance = self.defaults.guidance if request.guidance is None else request.guidance
        shift = self.family.shift(self.variant, size, steps) if request.shift is None else request.shift
        return Flow(float(shift), self.family.entries, float(guidance) if self.defaults.guidance else 0.0)

    def facts(self) -> Checkpoint:
        """Return the facts about the checkpoint in the form that all model families share."""
        family = self.family
        return Checkpoint(
            family, family.title, native_size(self.checkpoint.header.metadata, family.multiple) or family.native_size,
            family.prediction, False, None, self.notices,
            vae_reads_pictures=not self.placed["vae"].config.get("decoder_only"),
        )  # fmt: skip

    def memory(self, recipe: Recipe) -> Estimate:
        """Estimate the memory in bytes that rendering a recipe needs."""
        sizes = [(recipe.width, recipe.height)] + ([(recipe.hires.width, recipe.hires.height)] if recipe.hires else [])
        pixels = max(width * height for width, height in sizes)
        shown = [image.width * image.height for image in recipe.edit_images]
        value = 4 if recipe.precision == "float32" else 2
        # `flow_model.load_flow` computes the VAE in float32 if it overflows in float16
        vae_value = 4 if self.family.vae_overflows and recipe.precision == "float16" else value
        counted = {"transformer": 0, "vae": 0, "text": 0}
        for component, part in self.placed.items():
            role = component if component in counted else "text" if component.startswith("text") else "transformer"
            counted[role] += self._elements(component, part)
        config = self.placed[TRANSFORMER].config
        width = int(config.get("attention_head_dim", 128)) * int(config.get("num_attention_heads", 24))
        channels = list(self.placed["vae"].config.get("block_out_channels", [96]))
        tokens = (pixels + sum(shown)) // 256 + 512
        return Estimate(
            unet=counted["transformer"] * value, vae=counted["vae"] * vae_value, text=counted["text"] * value,
            unet_work=recipe.at_a_time * tokens * width * _TRANSFORMER_FACTOR * value,
            vae_work=max([pixels, *shown]) * int(channels[0]) * 10 * vae_value,
            layer=layer_bytes((tensor for file in self._files() for tensor in file.header.tensors.values()), value),
        )  # fmt: skip

    def _files(self) -> list[Found]:
        return [self.checkpoint, *self.parts.values(), *([self.vae] if self.vae is not None else [])]

    def _elements(self, component: str, part: Placed) -> int:
        """Count the parameters of a component in its file."""
        need = next((each for each in self.family.needs if each.component == component), None)
        file = self.checkpoint if need is None else self._file_of(need)
        return sum(prod(shape) for name, shape in file.header.shapes.items() if name.startswith(part.prefix))

    def _file_of(self, need: Need) -> Found:
        return (self.vae if need.component == "vae" else self.parts.get(need.kind.role)) or self.checkpoint


def flow_choice(finder: Finder, found: Found, request: RenderRequest, *, config: str = "") -> FlowChoice | None:
    """Choose the variant and the parts of a flow-matching checkpoint; None for checkpoints of other kinds.

    Parts that the checkpoint does not contain are taken from the request or, if exactly one stored file fits, from the
    library.

    Raises:
        CannotRender: a part is missing (`missing-part`), or is of another kind or width (`mismatched-parts`), or
            civman recognises the family but cannot render it.
        UsageError: an unknown variant or role. AmbiguousRef: several stored files fit a part.
    """
    family = flow_family_of(found.header.shapes)
    if family is None:
        return None
    given = _given(family, request.parts)
    refs = dict(given) | ({"vae": request.vae} if request.vae is not None else {})
    named = {role: finder.find(role, ref) for role, ref in refs.items()}
    notices: list[str] = []
    for need in missing_parts(family, found.header.shapes):
        if need.kind.role not in named and (stored := _stored(finder, need, family, found)) is not None:
            named[need.kind.role] = stored
            notices.append(f"the {need.kind.title} is `{stored.inspected.name}`, the only stored file that fits")
    tokenizer, notice = tokenizer_for(finder, family, found, named)
    if tokenizer is not None:
        named[TOKENIZER] = tokenizer
    notices += [notice] if notice else []
    return _chosen(family, found, named, request.variant, config, notices)


def recorded_choice(finder: Finder, found: Found, recipe: Recipe) -> FlowChoice | None:
    """Find the parts of a recipe's flow-matching checkpoint; None for checkpoints of other kinds.

    The recipe's files are found by SHA-256. Raises: the errors of `flow_choice`; NotFound: a file is missing.
    """
    family = flow_family_of(found.header.shapes)
    if family is None:
        return None
    named = {use.role: finder.with_digest(use.role, use.sha256) for use in recipe.parts}
    if recipe.vae:
        named["vae"] = finder.with_digest("vae", recipe.vae)
    return _chosen(family, found, named, recipe.variant or None, recipe.config, [])


def with_defaults(request: RenderRequest, choice: FlowChoice) -> RenderRequest:
    """Fill in the family's defaults for options that the request does not set."""
    usual = choice.defaults
    return replace(
        request, steps=usual.steps if request.steps is None else request.steps,
        guidance_scale=usual.cfg if request.guidance_scale is None else request.guidance_scale,
        sampler=usual.sampler if request.sampler is None else request.sampler,
        schedule=usual.schedule if request.schedule is None else request.schedule,
    )  # fmt: skip


def require_size(recipe: Recipe, choice: FlowChoice) -> None:
    """Check that the family's models can render the image's size. Raises: UsageError (`bad-size`)."""
    sizes = [(recipe.width, recipe.height)] + ([(recipe.hires.width, recipe.hires.height)] if recipe.hires else [])
    sizes += [(made.width, made.height) for made in recipe.details]
    step = choice.family.multiple
    for width, height in sizes:
        if width % step or height % step:
            near = f"{max(step, round(width / step) * step)}x{max(step, round(height / step) * step)}"
            raise UsageError(
                f"{choice.family.title} cannot render {width}x{height}: both sides must be multiples "
                f"of {step}",
                hint=f"the nearest valid size is {near}", code=Cause.BAD_SIZE,
            )  # fmt: skip


def _chosen(
    family: FlowFamily, found: Found, named: Mapping[str, Found], variant: str | None, config: str, notices: list[str]
) -> FlowChoice:
    by_component = {
        need.component: named[need.kind.role] for need in family.needs if need.kind.role in named
    } | {component: named[component] for component in (TOKENIZER,) if component in named}  # fmt: skip
    stated: dict[str, Config] = json.loads(config) if config else {}
    placed = place_parts(
        family, found.header.shapes, found.inspected.name,
        {component: file.header.shapes for component, file in by_component.items()},
        {component: file.inspected.name for component, file in by_component.items()}, stated,
        found.header.metadata,
    )  # fmt: skip
    possible = family.variants(own_shapes(family, found.header.shapes))
    chosen, told = variant_of(family, found.inspected, possible, variant)
    parts = {role: file for role, file in named.items() if role != "vae"}
    return FlowChoice(
        family, chosen, family.defaults(chosen), found, placed, parts, named.get("vae"), (*notices, *told)
    )  # fmt: skip


def variant_of(
    family: FlowFamily, file: Inspected, possible: Sequence[str], asked: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Choose the variant of a file: the requested one, else the one that CivitAI's label or the file's name indicates.

    If neither indicates one, the family's most common variant is chosen, with a notice. `possible`: the variants that
    the tensors allow. Returns the variant and the notices.

    Raises:
        UsageError: the requested variant is not a possible one.
        CannotRender: the label or the name is that of a model that civman cannot render, and no variant was requested.
    """
    if asked is not None:
        if asked not in possible:
            raise UsageError(
                f"`{file.name}` cannot be the variant `{asked}` of {family.title}",
                hint="choose one of: " + ", ".join(each or "(none)" for each in possible), code=Cause.BAD_CONFIG,
            )  # fmt: skip
        return asked, ()
    if why := why_refused(family, file):
        raise CannotRender(
            f"civman cannot render with `{file.name}`: {why}",
            hint="if it is another model, choose its variant with --variant: " + ", ".join(possible),
            code=Cause.UNKNOWN_FAMILY,
        )
    if len(possible) == 1:
        return possible[0], ()
    label, name = _names(file)
    for words, witness in ((label, f"CivitAI says {file.label}"), (name, "according to the file's name")):
        # try the most common variant last, because the other variants' names begin with its name
        for variant in reversed(possible):
            if any(word in words for word in family.variant_words[variant]):
                return variant, (f"the file is read as the variant {variant} of {family.title} ({witness})",)
    words = (
        f"the file is read as the variant {possible[0]} of {family.title}, because its tensors do not show the variant "
        "(--variant changes this)"
    )
    return possible[0], (words,)


def why_refused(family: FlowFamily, file: Inspected) -> str:
    """Return why civman cannot render with a checkpoint, judged by its label and name; empty if they give no reason."""
    found = (why for word, why in family.refused_words.items() if any(word in name for name in _names(file)))
    return next(found, "")


def _names(file: Inspected) -> tuple[str, str]:
    """Return CivitAI's label and the file's name in lower case."""
    return (file.label or "").casefold(), file.name.casefold()


def _given(family: FlowFamily, parts: Sequence[str]) -> dict[str, str]:
    """Parse `--part ROLE=REF`. Raises: UsageError: a text has another form, or the family has no part of this role."""
    roles = [need.kind.role for need in family.needs if need.component != "vae"]
    roles += [TOKENIZER] if with_tokenizer(family) is not None else []
    found: dict[str, str] = {}
    for text in parts:
        role, equals, ref = text.partition("=")
        if not equals or role not in roles or not ref:
            raise UsageError(
                f"`{text}` does not specify a part of {family.title}",
                hint="write ROLE=REF, where ROLE is " + " or ".join(roles),
            )
        found[role] = ref
    return found


def fitting_files(finder: Finder, need: Need, family: FlowFamily, found: Found) -> list[Found]:
    """List the stored files that fit a part of a checkpoint, by kind, width and, for VAEs, by CivitAI's label."""
    widths = part_widths(family, found)
    if widths is None:
        return []
    fitting = [each for each in finder.stored(need.kind.role) if _fits(need, each, widths.get(need.component))]
    if need.component != "vae":
        return fitting
    # leave out VAEs that, by CivitAI's label, belong to models with another scale of latents: no tensor shows this
    # scale
    ours = family.architecture
    return [each for each in fitting if same_scale(ours, architectures_of(each.inspected.label)) is not False]


def own_shapes(family: FlowFamily, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the transformer's tensors in a file, by their names without prefix."""
    prefix = family.prefix_in(shapes) or ""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def part_widths(family: FlowFamily, found: Found) -> dict[str, tuple[str, int]] | None:
    """Return the required width of each part of a checkpoint, in the format of `FlowFamily.widths`.

    None if the transformer's tensors are invalid, so that no part fits; `place_parts` reports the error later.
    """
    try:
        return family.widths(family.config(own_shapes(family, found.header.shapes)))
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def _stored(finder: Finder, need: Need, family: FlowFamily, found: Found) -> Found | None:
    """Return the only stored file that fits a part, or None. Raises: AmbiguousRef: several files fit."""
    fitting = fitting_files(finder, need, family, found)
    if len(fitting) > 1:
        raise AmbiguousRef(
            f"{len(fitting)} stored files could be the {need.kind.title}: "
            + ", ".join(f"`{each.inspected.name}` (sha256 {each.sha256[:12]}…)" for each in fitting),
            hint=f"choose one of these files with {option_of(need)}",
        )  # fmt: skip
    return fitting[0] if fitting else None


def _fits(need: Need, file: Found, width: tuple[str, int] | None) -> bool:
    shapes = file.header.shapes
    prefix = need.kind.prefix_in(shapes)
    if prefix is None:
        return False
    try:
        config = need.kind.config(need.kind.shapes_in(shapes, prefix))
    except (KeyError, IndexError, ValueError, ZeroDivisionError, CannotRender):
        return False
    return width is None or int(config[width[0]]) == width[1]
