"""The output of render plans and of finished images, as JSON and as text for people."""

from typing import TYPE_CHECKING

from civman.cli.output import clean, counted, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.planning.plan_types import Planned, Rendering

_SHOWN = 3


def print_plans(console: "Console", plans: "Sequence[Planned]", *, among: "Sequence[Planned] | None" = None) -> None:
    """Print the files, settings and memory requirement of each plan.

    `among`: all plans of the job, if `plans` are only some of them. The images that share slots are counted in all
    plans of the job.
    """
    from civman.planning.slot_groups import beside

    others = beside(plans if among is None else among)
    for number, plan in enumerate(plans):
        recipe = plan.recipe
        console.print(f"recipe {recipe.sha256[:12]}: {clean(recipe.prompt) or '(no prompt)'}", soft_wrap=True)
        for file in plan.files:
            console.print(
                f"  {file.role:<10} {clean(file.name)}  sha256 {file.sha256[:12]}…{_form(file.weights)}", soft_wrap=True
            )
        for image in recipe.edit_images:
            part = f" ({','.join(map(str, image.crop))})" if image.crop else ""
            console.print(
                f"  edit image {clean(plan.name(image.sha256))}{part} at {image.width}x{image.height}", soft_wrap=True
            )
        if recipe.hires is not None and recipe.hires.prompt is not None:
            console.print(f"  second-pass prompt {clean(recipe.hires.prompt) or '(no prompt)'}", soft_wrap=True)
        for use in dict.fromkeys((*recipe.loras, *((recipe.hires and recipe.hires.loras) or ()))):
            second = f", second pass {use.hires_keyframes}" if use.hires_keyframes else ""
            console.print(
                f"  scale      {clean(plan.name(use.sha256))}: UNet {use.keyframes or f'{use.scale:g}'}{second}, "
                f"text {use.text_scale:g}", soft_wrap=True,
            )  # fmt: skip
        console.print(
            f"  {recipe.width}x{recipe.height}, {recipe.steps} steps of {recipe.sampler} ({recipe.schedule}), "
            f"cfg {recipe.guidance_scale:g}, clip skip {recipe.clip_skip}, {recipe.precision}"
        )
        for made in recipe.details:
            console.print(
                f"  detail     {made.box or made.region} at strength {made.strength:g}, {made.steps} steps, "
                f"{made.width}x{made.height}"
            )
        shared = f" in slots that can be shared with {counted(others[number], 'other image')}" if recipe.slots else ""
        console.print(
            f"  {counted(recipe.count, 'image')} from seed {recipe.seed} ({recipe.rng}), {recipe.at_a_time} at a time"
            f"{shared}",
            soft_wrap=True,
        )
        console.print(f"  memory     {size(plan.memory.weights)} of weights; about {size(plan.needed_bytes)} at peak")
        if plan.licence is not None:
            console.print(f"  licence    {clean('; '.join(plan.licence.words))}", soft_wrap=True)
            for reason in plan.licence.reasons:
                console.print(f"             {clean(reason)}", soft_wrap=True)


def _form(weights: str) -> str:
    return f", {clean(weights)}" if weights else ""


def print_renderings(console: "Console", made: "Sequence[Rendering]") -> None:
    """Print the saved images, their licence and notes, and how many modules each adapter changed."""
    for each in made:
        console.print(f"{clean(str(each.path))}  (picture:{each.id}, seed {each.seed})", soft_wrap=True)
    for terms in dict.fromkeys(each.record.licence for each in made if each.record.licence):
        console.print(f"  licence: {clean('; '.join(terms))}", style="dim", soft_wrap=True)
    for note in dict.fromkeys(note for each in made for note in each.notes):
        console.print(f"  note: {clean(note)}", style="dim", soft_wrap=True)
    for use in {(use.sha256, use.scale, use.keyframes): use for each in made for use in each.applied}.values():
        rest = f", {len(use.unmatched)} modules of the adapter do not fit" if use.unmatched else ""
        scale = use.keyframes or f"{use.scale:g}"
        console.print(f"  {clean(use.name)}: changed {use.matched} modules at scale {scale}{rest}", soft_wrap=True)
        for name in use.unmatched[:_SHOWN]:
            console.print(f"    {clean(name)}", soft_wrap=True)
