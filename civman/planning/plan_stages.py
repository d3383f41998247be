"""What the later stages of a render have of their own: prompts, adapters and checkpoints, found and checked.

Source: A1111 1.5 to 1.10, where the tags in the second pass's prompt name all adapters of the second pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from civman.diffusion import samplers
from civman.diffusion.families.registry import unet_family_of
from civman.domain.recipes.complete import SecondResolved
from civman.domain.recipes.recipe import CheckpointUse, HypernetworkUse, LoraUse, Recipe, RenderRequest
from civman.errors import Cause, Incompatible, UsageError
from civman.planning import prompt_references
from civman.planning.checkpoint_facts import Checkpoint, read_checkpoint
from civman.planning.find_files import Finder, Found
from civman.planning.find_hypernetworks import hypernetworks_for
from civman.planning.find_loras import loras_for, uses_of
from civman.planning.prompt_references import ScaledLora, Words
from civman.prompts.editing import Rule

Networks = Sequence[tuple[Found, HypernetworkUse]]


@dataclass(frozen=True, slots=True)
class PassParts:
    """One pass's prompts without tags, with the adapters and hypernetworks that act in it."""

    prompt: str
    negative: str
    loras: Sequence[ScaledLora]
    networks: Networks
    notices: tuple[str, ...] = ()

    @property
    def files(self) -> list[Found]:
        """The files of the adapters and hypernetworks."""
        return [*(lora.found for lora in self.loras), *(found for found, _ in self.networks)]

    @property
    def uses(self) -> tuple[tuple[LoraUse, ...], tuple[HypernetworkUse, ...]]:
        """The adapters and the hypernetworks in the form in which a recipe lists them."""
        return uses_of(self.loras, has_hires=True), tuple(use for _, use in self.networks)

    def after(self, first: "PassParts", *, keeps_prompts: bool) -> SecondResolved:
        """What this second pass has of its own. `keeps_prompts`: state its prompts even if they are the first's."""
        (loras, networks), (of_first, networks_of_first) = self.uses, first.uses
        return SecondResolved(
            self.prompt if keeps_prompts or self.prompt != first.prompt else None,
            self.negative if keeps_prompts or self.negative != first.negative else None,
            loras if loras != of_first else None,
            networks if networks != networks_of_first else None,
        )


def parts_of_pass(finder: Finder, request: RenderRequest, words: Words, *, triggers: bool) -> PassParts:
    """Find the adapters and hypernetworks of a pass, and add missing trigger words to its prompt.

    Raises: the errors of `Finder.find`.
    """
    loras = loras_for(finder, request.loras, words)
    prompt, notices = prompt_references.add_triggers(words.prompt, loras) if triggers else (words.prompt, ())
    networks = hypernetworks_for(finder, request, words)
    return PassParts(prompt, words.negative, loras, networks, notices)


def second_parts(
    finder: Finder, request: RenderRequest, words: Words, first: PassParts, *, triggers: bool
) -> PassParts | None:
    """Find what acts in the second pass; None if the request has no second pass.

    `words`: the first pass's prompts with the adapters that their tags name. A tag acts in the pass in whose prompt it
    stands; adapters that are not named by tags act in both passes, unless the second pass has adapters of its own.

    Raises: the errors of `Finder.find`. UsageError (`prompt-syntax`).
    """
    hires = request.hires
    if hires is None:
        return None
    own = (hires.prompt, hires.negative_prompt, hires.loras, hires.hypernetworks)
    if all(each is None for each in own):
        return first
    negative = first.negative if hires.negative_prompt is None else hires.negative_prompt
    if hires.prompt is None:
        read = replace(words, prompt=first.prompt, negative=_without_tags(request, negative))
        triggers = False  # they have been added to the first pass's prompt
    elif request.emphasis == "comfyui":
        read = Words(hires.prompt, negative, ())
    else:
        read = prompt_references.read(hires.prompt, negative)
    wanted = replace(
        request, loras=request.loras if hires.loras is None else hires.loras,
        hypernetworks=request.hypernetworks if hires.hypernetworks is None else hires.hypernetworks,
    )  # fmt: skip
    return parts_of_pass(finder, wanted, read, triggers=triggers)


def _without_tags(request: RenderRequest, negative: str) -> str:
    """Check that a negative prompt names no adapter, and return it. Raises: UsageError (`prompt-syntax`)."""
    return negative if request.emphasis == "comfyui" else prompt_references.read("", negative).negative


def counts_own_steps(request: RenderRequest, rules: str | None, sampler: samplers.Sampler) -> bool:
    """Whether a second pass without own prompts must state them, so that its own sampler's evaluations are counted."""
    hires = request.hires
    if hires is None or not hires.sampler or rules != Rule.V1_6:
        return False
    return samplers.BY_NAME[hires.sampler].calls_per_step != sampler.calls_per_step


@dataclass(frozen=True, slots=True)
class FurtherCheckpoint:
    """A checkpoint that takes over in a render, with the facts in its header."""

    found: Found
    facts: Checkpoint
    is_same_family: bool

    @property
    def use(self) -> CheckpointUse:
        """The checkpoint in the form in which a recipe names it."""
        return CheckpointUse(self.found.sha256, self.facts.prediction, self.facts.is_zero_snr)


def second_checkpoint(
    found: Found, first: Checkpoint, *, vae: Found | None, config: str, prediction: str | None = None
) -> FurtherCheckpoint:
    """Check that a checkpoint can compute the second pass.

    Raises: Incompatible (`cannot-work`): it is of another family than the first pass's. CannotRender.
    """
    facts = read_checkpoint(found, vae=vae, config=config, prediction=prediction)
    if not unet_family_of(found.header.shapes).is_same(first.family):
        raise Incompatible(
            f"the second pass's checkpoint `{found.inspected.name}` is a model of {facts.title}, and the first pass's"
            f" is one of {first.title}",
            hint="choose two checkpoints of one family", code=Cause.CANNOT_WORK,
        )  # fmt: skip
    return FurtherCheckpoint(found, facts, is_same_family=True)


def refiner_checkpoint(
    found: Found, first: Checkpoint, *, vae: Found | None, config: str, prediction: str | None = None
) -> FurtherCheckpoint:
    """Check that a checkpoint can continue what the first pass's checkpoint began.

    Raises: Incompatible (`cannot-work`): it has other latents, or another kind of input. CannotRender.
    """
    name = found.inspected.name
    family = unet_family_of(found.header.shapes)
    is_same = family.is_same(first.family)
    facts = read_checkpoint(found, vae=vae, config=config if is_same else "", prediction=prediction)
    if not family.continues(first.family):
        raise Incompatible(
            f"the refiner `{name}` is a model of {facts.title}, which cannot continue an image that a model of"
            f" {first.title} has begun",
            hint="choose a checkpoint of the same family, or the refiner that was made for this family",
            code=Cause.CANNOT_WORK,
        )  # fmt: skip
    if facts.input_channels != first.input_channels:
        raise Incompatible(
            f"the refiner `{name}` takes {facts.input_channels} channels, and the checkpoint"
            f" {first.input_channels}: one of them is an inpainting model",
            hint="choose a refiner of the same kind", code=Cause.CANNOT_WORK,
        )  # fmt: skip
    return FurtherCheckpoint(found, facts, is_same)


@dataclass(frozen=True, slots=True)
class FurtherCheckpoints:
    """The checkpoints that take over in a render: in the second pass, and in the middle of a pass."""

    second: FurtherCheckpoint | None = None
    refiner: FurtherCheckpoint | None = None

    @property
    def files(self) -> list[Found]:
        """The checkpoints' files."""
        return [each.found for each in (self.second, self.refiner) if each is not None]

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know about the checkpoints."""
        return tuple(
            f"{each.found.inspected.name}: {notice}"
            for each in (self.second, self.refiner)
            if each is not None
            for notice in each.facts.notices
        )


def requested_checkpoints(
    finder: Finder, request: RenderRequest, checkpoint: Found, first: Checkpoint, *, vae: Found | None, config: str,
    is_flow: bool,
) -> FurtherCheckpoints:  # fmt: skip
    """Find and check the further checkpoints of a request.

    Raises: the errors of `Finder.find`; UsageError (`bad-value`): the model or the request cannot have them;
        Incompatible, CannotRender: they cannot be used.
    """
    wanted = request.hires.checkpoint if request.hires else None
    refiner = request.refiner
    if refiner is None:
        alone = {
            "--refiner-at": request.refiner_at, "--refiner-by-steps": request.refiner_by_steps,
            "--refiner-passes": request.refiner_passes,
        }  # fmt: skip
        if used := [option for option, value in alone.items() if value is not None]:
            raise UsageError(f"{used[0]} requires a refiner", hint="pass it with --refiner", code=Cause.BAD_VALUE)
    elif request.refiner_passes is not None and request.hires is None:
        raise UsageError("--refiner-passes requires a second pass", hint="`--hires 2` adds one", code=Cause.BAD_VALUE)
    if wanted is None and refiner is None:
        return FurtherCheckpoints()
    if is_flow:
        raise UsageError(
            "a flow-matching model is the only checkpoint of a render: there is no refiner, and the second pass has no"
            " other checkpoint",
            hint="leave out --refiner and --hires-checkpoint", code=Cause.BAD_VALUE,
        )  # fmt: skip
    if refiner is not None and (request.tiled_upscale is not None or request.ultimate_upscale is not None):
        raise UsageError("a redraw in tiles has no refiner", hint="leave out --refiner", code=Cause.BAD_VALUE)
    second = other = None
    if wanted is not None and (other_file := finder.find("checkpoint", wanted)).sha256 != checkpoint.sha256:
        second = second_checkpoint(other_file, first, vae=vae, config=config)
    if refiner is not None:
        other = refiner_checkpoint(finder.find("checkpoint", refiner), first, vae=vae, config=config)
        if not other.is_same_family and (request.controls or request.references):
            raise Incompatible(
                f"ControlNets and reference pictures cannot guide {other.facts.title}, which has other layers than"
                f" {first.title}",
                hint="leave out --control and --reference, or --refiner", code=Cause.CANNOT_WORK,
            )  # fmt: skip
    return FurtherCheckpoints(second, other)


def recorded_checkpoints(finder: Finder, recipe: Recipe, first: Checkpoint, vae: Found | None) -> FurtherCheckpoints:
    """Find and check the further checkpoints of a recipe by SHA-256. Raises: as `requested_checkpoints`."""
    second = recipe.hires.checkpoint if recipe.hires else None
    refiner = recipe.refiner.checkpoint if recipe.refiner else None
    found = {use.sha256: finder.with_digest("checkpoint", use.sha256) for use in (second, refiner) if use is not None}

    def checked(check: Callable[..., FurtherCheckpoint], use: CheckpointUse | None) -> FurtherCheckpoint | None:
        if use is None:
            return None
        return check(found[use.sha256], first, vae=vae, config=recipe.config, prediction=use.prediction)

    return FurtherCheckpoints(checked(second_checkpoint, second), checked(refiner_checkpoint, refiner))
