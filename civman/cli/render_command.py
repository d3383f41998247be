"""`civman render`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.grid_option import GridOpt, axes_of, draw_grid, has_prompts
from civman.cli.options import (
    DeviceOpt,
    FileOpt,
    FormatOpt,
    LowVramOpt,
    NoMetadataOpt,
    QualityOpt,
    StripPromptOpt,
    output_options,
)
from civman.cli.output import Result
from civman.cli.plan_output import plan_value, print_plans, print_renderings, rendering_value
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import HiresRequest, LoraRequest
    from civman.planning.plan import Conditions

_SIZE = re.compile(r"(\d+)[x×](\d+)")


@command()
def render(
    session: Session,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A ref or a file.", show_default=False)],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.", show_default=False)] = None,
    file: FileOpt = None,
    negative: Annotated[str, typer.Option("--negative", "-n", help="What not to draw.")] = "",
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file of prompts, one a line, for one loaded model.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", "-l", metavar="REF[:UNET[:TE]]", help="An adapter with its scales (repeatable)."),
    ] = None,
    embedding: Annotated[
        list[str] | None, typer.Option("--embedding", "-e", metavar="REF", help="A textual inversion (repeatable).")
    ] = None,
    vae: Annotated[str | None, typer.Option("--vae", metavar="REF", help="Another VAE.")] = None,
    trigger: Annotated[
        str, typer.Option(help="auto: add the LoRAs' trigger words where the prompt has none; off.")
    ] = "auto",
    sampler: Annotated[str | None, typer.Option("--sampler", "-s", help='For example "DPM++ 2M Karras".')] = None,
    schedule: Annotated[str | None, typer.Option(help="Karras, Exponential, SGM Uniform, Beta …")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", show_default="20")] = None,
    cfg: Annotated[float | None, typer.Option(help="Guidance by the prompt.", show_default="7")] = None,
    cfg_rescale: Annotated[float | None, typer.Option(help="Tames strong guidance, 0 to 1.", show_default="0")] = None,
    picture_size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels, multiples of 8.", show_default="the model's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture.", show_default="drawn")] = None,
    count: Annotated[int, typer.Option(help="Pictures; picture n has seed + n.")] = 1,
    batch_size: Annotated[int | None, typer.Option(help="Pictures at a time.", show_default="1")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="One picture at a time: each has the bytes it would have alone.")
    ] = False,
    grid: GridOpt = None,
    clip_skip: Annotated[int | None, typer.Option(help="As A1111 counts: 1 is the last layer.")] = None,
    rng: Annotated[str | None, typer.Option(help="Whose random numbers: cpu or nv.", show_default="cpu")] = None,
    ensd: Annotated[int | None, typer.Option(help="Eta noise seed delta.", show_default="0")] = None,
    pad_prompts: Annotated[bool, typer.Option("--pad-prompts", help="Pad both prompts to one length.")] = False,
    init: Annotated[str | None, typer.Option(metavar="FILE", help="The picture to start from.")] = None,
    mask: Annotated[str | None, typer.Option(metavar="FILE", help="White is painted anew.")] = None,
    mask_blur: Annotated[
        int | None, typer.Option(help="Pixels by which its edge is softened.", show_default="4")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far from the picture, up to 1.", show_default="0.75")
    ] = None,
    hires: Annotated[
        str | None, typer.Option(metavar="SCALE|WxH", help="A second pass, so many times larger or at this size.")
    ] = None,
    hires_steps: Annotated[int | None, typer.Option(help="Its steps.", show_default="as the first")] = None,
    hires_strength: Annotated[float | None, typer.Option(help="Its strength.", show_default="0.7")] = None,
    upscaler: Annotated[str | None, typer.Option(help="latent, lanczos, nearest …", show_default="latent")] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon or v_prediction, where the file is silent.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="DIR", help="Component configs, for what no tensor shape tells.")
    ] = None,
    device: DeviceOpt = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of the CPU; decides the last bit.", show_default="torch's")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16.", show_default="half on a GPU")
    ] = None,
    low_vram: LowVramOpt = False,
    force: Annotated[bool, typer.Option("--force", help="Try what compatibility says cannot work.")] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Be content where only a part of an adapter applies.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A picture's file or a folder.", show_default="the library's renders"),
    ] = None,
    format: FormatOpt = None,  # noqa: A002  # the option's name
    quality: QualityOpt = None,
    no_metadata: NoMetadataOpt = False,
    strip_prompt: StripPromptOpt = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Settle everything, load and draw nothing.")] = False,
) -> Result:
    """Draw pictures with a checkpoint and any number of LoRAs, from what the library holds. Never asks the network.

    Prompts are written as for A1111: (emphasis:1.2), BREAK, <lora:name:0.8>, embeddings by name. Everything is
    checked before a weight is loaded; the pictures carry their recipe and are never written over others.
    """
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import RenderRequest
    from civman.errors import UsageError
    from civman.planning.render_extra import require_render_extra

    require_render_extra()
    options = output_options(format, quality, no_metadata=no_metadata, strip_prompt=strip_prompt)
    axes = axes_of(grid)
    if axes and prompts is not None:
        raise UsageError("--prompts and --grid exclude each other", hint='--grid "prompt=a cat|a dog" varies it')
    if exact and batch_size not in (None, 1):
        raise UsageError(f"--exact draws one picture at a time, --batch-size asks for {batch_size}")
    width, height = _size_of(picture_size) if picture_size else (None, None)
    request = RenderRequest(
        checkpoint=checkpoint, file=file, negative_prompt=negative, loras=_loras(lora or []),
        embeddings=tuple(embedding or ()), vae=vae, sampler=sampler, schedule=schedule, steps=steps,
        guidance_scale=cfg, guidance_rescale=cfg_rescale,
        width=width, height=height, clip_skip=clip_skip, seed=seed, count=count, batch_size=batch_size, rng=rng,
        eta_seed_delta=ensd, init_image=init, mask_image=mask, strength=strength, mask_blur=mask_blur,
        hires=_hires(hires, hires_steps, hires_strength, upscaler), prediction=prediction,
        precision=precision, pad_prompts=pad_prompts, config=config,
    )  # fmt: skip
    wanted = [replace(request, prompt=text) for text in _prompts(prompt, prompts, brought=has_prompts(axes))]
    conditions = _conditions(device, trigger, force=force, allow_partial=allow_partial)
    machine = Machine(device, low_vram, threads)
    if axes:
        with session.reading() as on_event:
            grid_plan = session.library.grids.plan(wanted[0], axes, conditions=conditions, on_event=on_event)
        return draw_grid(session, grid_plan, output, options, machine, dry_run=dry_run)
    with session.reading() as on_event:
        plans = [session.library.plan(each, conditions, on_event=on_event) for each in wanted]
    for notice in dict.fromkeys(notice for plan in plans for notice in plan.notices):
        session.output.notice(notice)
    if dry_run:
        return Result(
            "plan", [plan_value(plan) for plan in plans],
            human=lambda console: print_plans(console, plans), ids=(plan.recipe.sha256 for plan in plans),
        )  # fmt: skip
    with session.drawing(len(plans)) as on_event:
        made = session.library.render(plans, output=output, options=options, machine=machine, on_event=on_event)
    return Result(
        "render", [rendering_value(each) for each in made],
        human=lambda console: print_renderings(console, made), ids=(each.path for each in made),
    )  # fmt: skip


def _conditions(device: str | None, trigger: str, *, force: bool, allow_partial: bool) -> "Conditions":
    from civman.errors import UsageError
    from civman.planning.plan import Conditions

    if trigger not in ("auto", "off"):
        raise UsageError(f"--trigger is auto or off, not `{trigger}`")
    return Conditions(device, force, allow_partial, trigger == "auto")


def _prompts(prompt: str | None, file: Path | None, *, brought: bool) -> list[str]:
    """The prompts; `brought`: a grid has its own."""
    from civman.errors import Cause, UsageError

    if prompt is None and brought:
        return [""]
    if (prompt is None) == (file is None):
        raise UsageError("a prompt or a file of prompts is needed, one of the two", hint="`civman render --help`")
    if file is None:
        return [prompt or ""]
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise UsageError(f"cannot read `{file}`: {error.strerror or error}", code=Cause.UNREADABLE_PROMPTS) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot read `{file}`: it is no text in UTF-8", hint="save it as UTF-8", code=Cause.UNREADABLE_PROMPTS
        ) from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(
            f"`{file}` holds no prompt", hint="one a line; empty lines and those that begin with # are left out",
            code=Cause.UNREADABLE_PROMPTS,
        )  # fmt: skip
    return found


def _loras(texts: list[str]) -> "tuple[LoraRequest, ...]":
    from civman.domain.recipes.recipe import LoraRequest
    from civman.domain.scales import parse_scaled

    scaled = [parse_scaled(text) for text in texts]
    return tuple(LoraRequest(each.ref, 1.0 if each.unet is None else each.unet, each.text_encoder) for each in scaled)


def _size_of(text: str) -> tuple[int, int]:
    from civman.errors import Cause, UsageError

    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(
            f"not a size: `{text}`", hint="width x height in pixels, such as 832x1216", code=Cause.BAD_SIZE
        )
    return int(found[1]), int(found[2])


def _hires(text: str | None, steps: int | None, strength: float | None, upscaler: str | None) -> "HiresRequest | None":
    from civman.domain.recipes.recipe import HiresRequest
    from civman.errors import Cause, UsageError

    if text is None:
        asked = {"--hires-steps": steps, "--hires-strength": strength, "--upscaler": upscaler}
        if alone := [option for option, value in asked.items() if value is not None]:
            raise UsageError(
                f"{alone[0]} is about the second pass, which nothing asks for", hint="`--hires 2` asks for it"
            )
        return None
    request = HiresRequest(steps=steps, strength=strength, upscaler=upscaler or "latent")
    try:
        scale = float(text)
    except ValueError:
        width, height = _size_of(text)
        return replace(request, width=width, height=height)
    if not 1 <= scale <= 8:
        raise UsageError(f"--hires {text}: a scale from 1 to 8, or a size", code=Cause.BAD_SIZE)
    return replace(request, scale=scale)
