"""Computes, by the prompt rules, the texts of each pass that result from prompt editing, alternation and `AND`.

Planning uses the texts to find embeddings and to refuse what cannot be rendered; rendering encodes the same texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from civman.diffusion import sampler_names, samplers
from civman.domain.recipes.recipe import Recipe
from civman.domain.recipes.recipe_limits import PROMPT_RULES
from civman.errors import Cause, UsageError
from civman.prompts import editing
from civman.prompts.editing import Part, Rule, Stage, Timing

_WITHOUT_AND = ("DDIM", "PLMS")
"""Samplers with which A1111 before version 1.6 could not combine prompts with `AND`."""
_EVER = 2**31
"""A number of evaluations that no pass reaches: the end of a stage that lasts until the end of a pass."""


@dataclass(frozen=True, slots=True)
class PassPrompts:
    """The texts of one pass: the weight and stages of each part of the prompt, and the negative prompt's stages."""

    parts: tuple[tuple[float, tuple[Stage, ...]], ...]
    negative: tuple[Stage, ...]

    def texts(self) -> Iterator[str]:
        """All texts of the pass: those of the prompt's parts first, then those of the negative prompt."""
        for _, stages in self.parts:
            yield from (stage.text for stage in stages)
        yield from (stage.text for stage in self.negative)


def rules_for(prompt: str, negative: str, wanted: str | None) -> str:
    """Return the rules for reading prompts that a recipe needs: `wanted`, or the newest ones if it is None.

    The result is empty if the prompts neither change during the steps nor are combined. If `wanted` is empty, a number
    at the end of a prompt is read as text, as in recipes before schema 4.

    Raises: UsageError (`bad-value`): the rules `wanted` do not exist.
    """
    if wanted not in (None, *PROMPT_RULES):
        raise UsageError(
            f"`{wanted}` is not a version of the prompt rules", hint=(
                "choose one of: "
                f"{', '.join(filter(None, PROMPT_RULES))}"
            ),
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    has_weight = wanted != "" and editing.is_composed(prompt)
    return wanted or Rule.V1_6.value if changes(prompt, negative) or has_weight else ""


def notices(prompt: str, negative: str, rules: str) -> tuple[str, ...]:
    """Notices for the user about how the prompts are read."""
    found = []
    for name, text in (("prompt", prompt), ("negative prompt", negative)):
        if editing.is_plain_because_of_bar(text):
            found.append(
                f"a `|` or `\\` in the {name} makes A1111 read the whole {name} as plain text, so it does not change "
                "during "
                "the steps"
            )
    [first, *others] = editing.parts(prompt)
    if rules and not others and first.weight != 1:
        found.append(f"the prompt ends with a weight, so the guidance is multiplied by {first.weight:g}, as in A1111")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SecondPass:
    """The values that determine the texts of the second pass. A prompt that is None is the same as the first pass's.

    If the second pass has prompts of its own, prompt editing in these prompts counts the evaluations of the second
    pass's sampler, as in A1111. Otherwise, it counts those of the first pass's sampler, as recipes before schema 10
    always did.
    """

    steps: int
    sampler: samplers.Sampler
    prompt: str | None = None
    negative: str | None = None

    @property
    def has_own_prompts(self) -> bool:
        """Whether the second pass has a prompt or a negative prompt of its own."""
        return (self.prompt, self.negative) != (None, None)


def passes(
    prompt: str, negative: str, rules: str, *, sampler: samplers.Sampler, steps: int, second: SecondPass | None
) -> tuple[PassPrompts, PassPrompts | None]:
    """Compute the texts of the first pass and of the second pass; None for the second pass if both have the same texts.

    Raises: UsageError (`prompt-syntax`): brackets are nested too deeply.
    """
    after = second or SecondPass(steps, sampler)
    texts = (
        prompt if after.prompt is None else after.prompt,
        negative if after.negative is None else after.negative,
    )
    if not rules:
        both = [
            PassPrompts(((1.0, (Stage(_EVER, words),)),), (Stage(_EVER, unwanted),))
            for words, unwanted in ((prompt, negative), texts)
        ]
        return both[0], both[1] if both[1] != both[0] else None
    first, then = editing.timings(
        Rule(rules), steps=steps, calls_per_step=sampler.calls_per_step,
        hires_steps=second.steps if second else None,
        hires_calls_per_step=(after.sampler if after.has_own_prompts else sampler).calls_per_step,
    )  # fmt: skip
    made = _pass(editing.parts(prompt), negative, first)
    if then is None or (then == first and texts == (prompt, negative)):
        return made, None
    return made, _pass(editing.parts(texts[0]), texts[1], then)


def passes_of(recipe: Recipe) -> tuple[PassPrompts, PassPrompts | None]:
    """Compute the texts of a recipe's two passes; None for the second pass if both have the same texts."""
    hires = recipe.hires
    second = None
    if hires is not None:
        named = sampler_names.of_second_pass(recipe)[0]
        second = SecondPass(hires.steps, named, hires.prompt, hires.negative_prompt)
    return passes(
        recipe.prompt, recipe.negative_prompt, recipe.prompt_rules,
        sampler=sampler_names.of_recipe(recipe)[0], steps=recipe.steps, second=second,
    )  # fmt: skip


def require_readable(recipe: Recipe) -> None:
    """Check that a recipe specifies prompt rules if its prompts need any. Raises: UsageError (`prompt-syntax`)."""
    hires = recipe.hires
    _require_readable(recipe, recipe.prompt, recipe.negative_prompt, recipe.sampler)
    if hires is not None and (hires.prompt, hires.negative_prompt) != (None, None):
        prompt = recipe.prompt if hires.prompt is None else hires.prompt
        negative = recipe.negative_prompt if hires.negative_prompt is None else hires.negative_prompt
        _require_readable(recipe, prompt, negative, hires.sampler or recipe.sampler)


def _require_readable(recipe: Recipe, prompt: str, negative: str, sampler: str) -> None:
    if not recipe.prompt_rules:
        if recipe.emphasis != "comfyui" and changes(prompt, negative):
            raise UsageError(
                "a prompt of the recipe changes during the steps or contains AND, but the recipe "
                "does not specify the rules for reading it (`prompt_rules`)",
                hint="set prompt_rules to a1111-1.6, or write a backslash before the brackets",
                code=Cause.PROMPT_SYNTAX,
            )
        return
    if len(editing.parts(prompt)) == 1:
        return
    if recipe.guidance_rescale:
        raise UsageError(
            "CFG rescale does not work with prompts that are combined with AND",
            hint="leave out --cfg-rescale, or combine the prompts without AND", code=Cause.PROMPT_SYNTAX,
        )  # fmt: skip
    if recipe.prompt_rules != Rule.V1_6 and sampler in _WITHOUT_AND:
        raise UsageError(
            "A1111 before version 1.6 could not combine prompts with AND when it used the sampler "
                    f"{sampler}",
            hint="use --prompt-rules a1111-1.6, or another sampler", code=Cause.PROMPT_SYNTAX,
        )  # fmt: skip


def changes(prompt: str, negative: str) -> bool:
    """Whether a prompt changes during the steps or combines several prompts."""
    parts = editing.parts(prompt)
    return len(parts) > 1 or any(editing.changes(text) for text in (*(part.text for part in parts), negative))


def _pass(parts: tuple[Part, ...], negative: str, timing: Timing) -> PassPrompts:
    return PassPrompts(
        tuple((part.weight, editing.stages(part.text, timing)) for part in parts), editing.stages(negative, timing)
    )
