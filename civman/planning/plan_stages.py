"""Finds and checks the prompts, adapters and checkpoints that only the second pass or the refiner uses.

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
    """The prompts of one pass without tags, with the adapters and hypernetworks that act in the pass."""

    prompt: str
    negative: str
    loras: Sequence[ScaledLora]
    networks: Networks
    notices: tuple[str, ...] = ()

    @property
    def files(self) -> list[Found]:
        """The files of the adapters and hypernetworks that act in this pass."""
        return [*(lora.found for lora in self.loras), *(found for found, _ in self.networks)]

    @property
    def uses(self) -> tuple[tuple[LoraUse, ...], tuple[HypernetworkUse, ...]]:
        """The adapters and hypernetworks as a recipe lists them."""
        return uses_of(self.loras, has_hires=True), tuple(use for _, use in self.networks)

    def after(self, first: "PassParts", *, keeps_prompts: bool) -> SecondResolved:
        """Return the values of this second pass that differ from those of the first pass.

        `keeps_prompts`: also return the prompts if they are equal to the first pass's.
        """
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
    """Find the prompts, adapters and hypernetworks of the second pass; None if the request has no second pass.

    `words`: the first pass's prompts and the adapters that their tags name. A tag acts only in the pass whose prompt
    contains it; other adapters act in both passes, unless the second pass has adapters of its own.

    Raises: the errors of `Finder.find`. UsageError (`prompt-syntax`): a negative prompt names an adapter.
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
        triggers = False  # the trigger words have already been added to the first pass's prompt, which this pass uses
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
    """Return a negative prompt after checking that it has no adapter tag. Raises: UsageError (`prompt-syntax`)."""
    return negative if request.emphasis == "comfyui" else prompt_references.read("", negative).negative


def counts_own_steps(request: RenderRequest, rules: str | None, sampler: samplers.Sampler) -> bool:
    """Whether the recipe must contain the prompts again for the second pass.

    This is the case if the sampler of the second pass needs a different number of evaluations per step: without
    separate prompts, prompt editing in the second pass would count the evaluations of the first pass's sampler.
    """
    hires = request.hires
    if hires is None or not hires.sampler or rules != Rule.V1_6:
        return False
    return samplers.BY_NAME[hires.sampler].calls_per_step != sampler.calls_per_step


@dataclass(frozen=True, slots=True)
class FurtherCheckpoint:
    """A further checkpoint of a render, used for the second pass or as the refiner, and the facts from its header."""

    found: Found
    facts: Checkpoint
    is_same_family: bool

    @property
    def use(self) -> CheckpointUse:
        """The checkpoint as a recipe lists it."""
        return CheckpointUse(self.found.sha256, self.facts.prediction, self.facts.is_zero_snr)


def second_checkpoint(
    found: Found, first: Checkpoint, *, vae: Found | None, config: str, prediction: str | None = None
) -> FurtherCheckpoint:
    """Check that a checkpoint can be used for the second pass, and read its facts.

    Raises: Incompatible (`cannot-work`): the model families of the two passes' checkpoints differ. CannotRender.
    """
    facts = read_checkpoint(found, vae=vae, config=config, prediction=prediction)
    if not unet_family_of(found.header.shapes).is_same(first.family):
        raise Incompatible(
            f"the second pass's checkpoint `{found.inspected.name}` is a model of {facts.title}, but "
                    f"the first pass's checkpoint is a model of {first.title}",
            hint="choose two checkpoints of the same model family", code=Cause.CANNOT_WORK,
        )  # fmt: skip
    return FurtherCheckpoint(found, facts, is_same_family=True)


def refiner_checkpoint(
    found: Found, first: Checkpoint, *, vae: Found | None, config: str, prediction: str | None = None
) -> FurtherCheckpoint:
    """Check that a checkpoint can be the refiner of the first pass's checkpoint, and read its facts.

    Raises: Incompatible (`cannot-work`): the two have different latents, or only one of them is an inpainting model.
        CannotRender.
    """
    name = found.inspected.name
    family = unet_family_of(found.header.shapes)
    is_same = family.is_same(first.family)
    facts = read_checkpoint(found, vae=vae, config=config if is_same else "", prediction=prediction)
    if not family.continues(first.family):
        raise Incompatible(
            f"the refiner `{name}` is a model of {facts.title}, which cannot continue an image that a model of"
            f" {first.title} has begun",
            hint="choose a checkpoint of the same model family, or the refiner that was made for this "
            "family",
            code=Cause.CANNOT_WORK,
        )  # fmt: skip
    if facts.input_channels != first.input_channels:
        raise Incompatible(
            f"only one of the two models is for inpainting: the refiner `{name}` has "
                    f"{facts.input_channels} input channels, the checkpoint {first.input_channels}",
            hint="use inpainting models for both, or for neither", code=Cause.CANNOT_WORK,
        )  # fmt: skip
    return FurtherCheckpoint(found, facts, is_same)


@dataclass(frozen=True, slots=True)
class FurtherCheckpoints:
    """The checkpoints of a render besides the first pass's: that of the second pass, and the refiner."""

    second: FurtherCheckpoint | None = None
    refiner: FurtherCheckpoint | None = None

    @property
    def files(self) -> list[Found]:
        """The model files of the second pass's checkpoint and of the refiner, if there are any."""
        return [each.found for each in (self.second, self.refiner) if each is not None]

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user about the checkpoints, each with the file's name."""
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
    """Find and check the second pass's checkpoint and the refiner of a request.

    Raises: the errors of `Finder.find`; UsageError (`bad-value`): the model or another option rules them out;
        Incompatible, CannotRender: a checkpoint does not fit the first one.
    """
    wanted = request.hires.checkpoint if request.hires else None
    refiner = request.refiner
    if refiner is None:
        alone = {
            "--refiner-at": request.refiner_at, "--refiner-by-steps": request.refiner_by_steps,
            "--refiner-passes": request.refiner_passes,
        }  # fmt: skip
        if used := [option for option, value in alone.items() if value is not None]:
            raise UsageError(
                f"{used[0]} requires a refiner",
                hint="pass the refiner's checkpoint with --refiner",
                code=Cause.BAD_VALUE,
            )
    elif request.refiner_passes is not None and request.hires is None:
        raise UsageError(
            "--refiner-passes requires a second pass",
            hint="add a second pass, such as `--hires 2`",
            code=Cause.BAD_VALUE,
        )
    if wanted is None and refiner is None:
        return FurtherCheckpoints()
    if is_flow:
        raise UsageError(
            "a render with a flow-matching model uses one checkpoint only: no refiner, and no other "
                    "checkpoint for the second pass",
            hint="leave out --refiner and --hires-checkpoint", code=Cause.BAD_VALUE,
        )  # fmt: skip
    if refiner is not None and (request.tiled_upscale is not None or request.ultimate_upscale is not None):
        raise UsageError(
            "a refiner cannot be used for an image that is rendered in tiles",
            hint="leave out --refiner",
            code=Cause.BAD_VALUE,
        )
    second = other = None
    if wanted is not None and (other_file := finder.find("checkpoint", wanted)).sha256 != checkpoint.sha256:
        second = second_checkpoint(other_file, first, vae=vae, config=config)
    if refiner is not None:
        other = refiner_checkpoint(finder.find("checkpoint", refiner), first, vae=vae, config=config)
        if not other.is_same_family and (request.controls or request.references):
            raise Incompatible(
                f"ControlNets and reference pictures cannot act on the refiner ({other.facts.title}), "
                f"whose layers differ from those of {first.title}",
                hint="leave out --control and --reference, or --refiner", code=Cause.CANNOT_WORK,
            )  # fmt: skip
    return FurtherCheckpoints(second, other)


def recorded_checkpoints(finder: Finder, recipe: Recipe, first: Checkpoint, vae: Found | None) -> FurtherCheckpoints:
    """Find and check the second pass's checkpoint and the refiner of a recipe by SHA-256.

    Raises: the errors of `requested_checkpoints`.
    """
    second = recipe.hires.checkpoint if recipe.hires else None
    refiner = recipe.refiner.checkpoint if recipe.refiner else None
    found = {use.sha256: finder.with_digest("checkpoint", use.sha256) for use in (second, refiner) if use is not None}

    def checked(check: Callable[..., FurtherCheckpoint], use: CheckpointUse | None) -> FurtherCheckpoint | None:
        if use is None:
            return None
        return check(found[use.sha256], first, vae=vae, config=recipe.config, prediction=use.prediction)

    return FurtherCheckpoints(checked(second_checkpoint, second), checked(refiner_checkpoint, refiner))
