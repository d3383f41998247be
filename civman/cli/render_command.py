"""The command `civman render`."""

from pathlib import Path
from typing import Annotated

import typer

from civman.cli import completion, render_values
from civman.cli.batch_options import BatchSizeOpt, ExactOpt, SlotsOpt, require_one_way
from civman.cli.control_options import (
    ControlMapOpt,
    ControlModeOpt,
    ControlOpt,
    ControlResizeOpt,
    ControlTypeOpt,
    controls_from,
)
from civman.cli.finishing_options import (
    DetailNegativeOpt,
    DetailOpt,
    DetailPromptOpt,
    DetailStrengthOpt,
    FaceRestorationOpt,
    InitUpscaleOpt,
    TileBatchOpt,
    TiledDiffusionOpt,
    TiledUpscaleOpt,
    TileOverlapOpt,
    UltimateUpscaleOpt,
    UpscaleOpt,
)
from civman.cli.grid_option import GridOpt, axes_of, draw_grid, has_prompts
from civman.cli.guidance_options import NgmsAllOpt, NgmsOpt, SkipEarlyCfgOpt, ThresholdingOpt, TokenMergingOpt
from civman.cli.input_options import (
    ConditionalMaskWeightOpt,
    GrowMaskOpt,
    InitOpt,
    MaskBlurOpt,
    MaskChannelOpt,
    MaskContentOpt,
    MaskOpt,
    NoiseMultiplierOpt,
    OnlyMaskedOpt,
    PaddingOpt,
    ResizeModeOpt,
    StrengthOpt,
)
from civman.cli.noise_options import (
    EnsdOpt,
    EtaDdimOpt,
    EtaOpt,
    SChurnOpt,
    SeedResizeOpt,
    SNoiseOpt,
    STmaxOpt,
    STminOpt,
    VariationSeedOpt,
    VariationStrengthOpt,
)
from civman.cli.options import (
    CompileOpt,
    DeviceOpt,
    FastOpt,
    FileOpt,
    FormatOpt,
    LowVramOpt,
    NoMetadataOpt,
    OnOpt,
    PrecisionOpt,
    QualityOpt,
    ResumeOpt,
    StripPromptOpt,
    ThreadsOpt,
    output_options,
)
from civman.cli.output import Result
from civman.cli.picture_preview import Viewing, viewed
from civman.cli.plan_output import print_plans, print_renderings
from civman.cli.prompt_options import DynamicOpt, PromptsOpt, RequireOpt, StyleOpt, StylesOpt, WildcardsOpt, requests_of
from civman.cli.reference_options import ReferenceCropOpt, ReferenceOpt, ReferenceSizeOpt, references_from
from civman.cli.render_defaults import PresetOpt, checkpoint_and_prompt, chosen_preset
from civman.cli.render_panels import PANELS
from civman.cli.running_server import HereOpt
from civman.cli.sampling_options import (
    FreeUOpt,
    JoinNegativeOpt,
    JoinPromptOpt,
    NoiseSliceOpt,
    OddSizesOpt,
    RescaleVelocityOpt,
    SamplingRulesOpt,
    SigmasOpt,
    StepRngOpt,
    ToldSizesOpt,
)
from civman.cli.second_pass_options import (
    HiresCfgOpt,
    HiresCheckpointOpt,
    HiresLoraOpt,
    HiresNegativeOpt,
    HiresOpt,
    HiresPromptOpt,
    HiresResizeOpt,
    HiresSamplerOpt,
    HiresScheduleOpt,
    HiresSeedOpt,
    HiresStepsOpt,
    HiresStrengthOpt,
    HiresTokenMergingOpt,
    HiresTrimOpt,
    RefinerAtOpt,
    RefinerByStepsOpt,
    RefinerOpt,
    RefinerPassesOpt,
    UpscalerOpt,
    hires_loras,
)
from civman.cli.session import Session, command
from civman.planning.plan_values import plan_value, rendering_value


@command(panels=PANELS)
def render(
    session: Session,
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            autocompletion=completion.refs,
            help="The checkpoint: a ref or a file path. Default: render.checkpoint in the settings, else the only "
            "checkpoint in the library.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt.", show_default=False)] = None,
    preset: PresetOpt = None,
    file: FileOpt = None,
    negative: Annotated[str, typer.Option("--negative", "-n", help="The negative prompt.")] = "",
    prompts: PromptsOpt = None,
    style: StyleOpt = None,
    styles: StylesOpt = None,
    dynamic: DynamicOpt = None,
    wildcards: WildcardsOpt = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            "-l",
            metavar="REF[:UNET[:TE]]",
            autocompletion=completion.refs,
            help="A LoRA or other adapter with its scales (repeatable). The UNet scale can change over the steps, such "
            "as REF:0@0,1@0.5. Append :hr=UNET for another scale in the second pass, :lbw=BLOCKS for block weights.",
        ),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding",
            "-e",
            metavar="REF",
            autocompletion=completion.refs,
            help="A textual inversion embedding (repeatable).",
        ),
    ] = None,
    hypernetwork: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF[:STRENGTH]",
            autocompletion=completion.refs,
            help="A hypernetwork with its strength (repeatable).",
        ),
    ] = None,
    require: RequireOpt = None,
    control: ControlOpt = None,
    control_map: ControlMapOpt = None,
    control_mode: ControlModeOpt = None,
    control_type: ControlTypeOpt = None,
    control_resize: ControlResizeOpt = None,
    reference: ReferenceOpt = None,
    reference_crop: ReferenceCropOpt = None,
    reference_size: ReferenceSizeOpt = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", metavar="REF", autocompletion=completion.refs, help="A VAE to use instead of the checkpoint's own."
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=REF",
            help="A part that the checkpoint does not contain. ROLE is t5, clip-vision, tokenizer … (repeatable).",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="The checkpoint's variant within its family, if its tensors do not show it: dev, krea, kontext …"
        ),
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="The shift of the noise levels of a flow-matching model, such as 3.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="The embedded (distilled) guidance scale of a model such as Flux.1 dev; independent of --cfg."
        ),
    ] = None,
    trigger: Annotated[
        str,
        typer.Option(help="auto: add a LoRA's trigger words if the prompt contains none of them; off: never add any."),
    ] = "auto",
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler", "-s", autocompletion=completion.samplers, help='The sampler, for example "DPM++ 2M Karras".'
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.schedules, help="The noise schedule: Karras, Exponential, SGM Uniform, Beta …"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of sampling steps.", show_default="20")] = None,
    cfg: Annotated[
        float | None, typer.Option(help="CFG scale: how strongly to follow the prompt.", show_default="7")
    ] = None,
    cfg_rescale: Annotated[
        float | None,
        typer.Option(help="CFG rescale, 0 to 1, which reduces overexposure at high CFG.", show_default="0"),
    ] = None,
    cfg_rescale_v: RescaleVelocityOpt = False,
    picture_size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH", help="Width and height in pixels, multiples of 8.", show_default="the model's"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image.", show_default="drawn")] = None,
    count: Annotated[int, typer.Option(help="Number of images; the seed increases by 1 from image to image.")] = 1,
    batch_size: BatchSizeOpt = None,
    slots: SlotsOpt = None,
    exact: ExactOpt = False,
    grid: GridOpt = None,
    clip_skip: Annotated[int | None, typer.Option(help="Clip skip as in A1111: 1 uses the last layer.")] = None,
    eta: EtaOpt = None,
    eta_ddim: EtaDdimOpt = None,
    s_churn: SChurnOpt = None,
    s_tmin: STminOpt = None,
    s_tmax: STmaxOpt = None,
    s_noise: SNoiseOpt = None,
    drop_penultimate: Annotated[
        bool,
        typer.Option("--drop-penultimate", help="Discard the penultimate sigma (noise level), with any sampler."),
    ] = False,
    half_levels: Annotated[
        bool,
        typer.Option("--half-levels", help="Round noise levels to half precision, as A1111 did before version 1.8."),
    ] = False,
    sampling_rules: SamplingRulesOpt = None,
    sigmas: SigmasOpt = None,
    freeu: FreeUOpt = None,
    tiled_diffusion: TiledDiffusionOpt = None,
    told_sizes: ToldSizesOpt = None,
    token_merging: TokenMergingOpt = None,
    thresholding: ThresholdingOpt = None,
    ngms: NgmsOpt = None,
    ngms_all: NgmsAllOpt = False,
    skip_early_cfg: SkipEarlyCfgOpt = None,
    rng: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help='Source of the noise: cpu, nv (as on a large NVIDIA GPU), nv:THREADS, or a card such as "RTX 3060".',
            show_default="cpu",
        ),
    ] = None,
    step_rng: StepRngOpt = None,
    noise_slice: NoiseSliceOpt = None,
    ensd: EnsdOpt = None,
    variation_seed: VariationSeedOpt = None,
    variation_strength: VariationStrengthOpt = None,
    seed_resize: SeedResizeOpt = None,
    prompt_rules: Annotated[
        str | None,
        typer.Option(
            help="How steps in [from:to:when] are counted: a1111-1.0, a1111-1.3 or a1111-1.6.", show_default="a1111-1.6"
        ),
    ] = None,
    emphasis: Annotated[
        str | None,
        typer.Option(
            help="How emphasis such as (word:1.2) is applied: original, no norm, ignore, none or comfyui.",
            show_default="original",
        ),
    ] = None,
    join_prompt: JoinPromptOpt = None,
    join_negative: JoinNegativeOpt = None,
    fit_negative: Annotated[
        bool,
        typer.Option("--fit-negative", help="Cut or extend the negative prompt to the length of the prompt."),
    ] = False,
    pad_prompts: Annotated[
        bool, typer.Option("--pad-prompts", help="Pad prompt and negative prompt to the same length.")
    ] = False,
    init: InitOpt = None,
    mask: MaskOpt = None,
    mask_blur: MaskBlurOpt = None,
    mask_content: MaskContentOpt = None,
    mask_channel: MaskChannelOpt = None,
    grow_mask: GrowMaskOpt = None,
    only_masked: OnlyMaskedOpt = False,
    padding: PaddingOpt = None,
    resize_mode: ResizeModeOpt = None,
    strength: StrengthOpt = None,
    noise_multiplier: NoiseMultiplierOpt = None,
    conditional_mask_weight: ConditionalMaskWeightOpt = None,
    tiled_upscale: TiledUpscaleOpt = None,
    tile_overlap: TileOverlapOpt = None,
    tile_batch: TileBatchOpt = None,
    ultimate_upscale: UltimateUpscaleOpt = None,
    init_upscale: InitUpscaleOpt = None,
    hires: HiresOpt = None,
    hires_steps: HiresStepsOpt = None,
    hires_strength: HiresStrengthOpt = None,
    hires_token_merging: HiresTokenMergingOpt = None,
    hires_trim: HiresTrimOpt = None,
    upscaler: UpscalerOpt = None,
    hires_resize: HiresResizeOpt = None,
    hires_seed: HiresSeedOpt = None,
    hires_cfg: HiresCfgOpt = None,
    hires_sampler: HiresSamplerOpt = None,
    hires_schedule: HiresScheduleOpt = None,
    hires_prompt: HiresPromptOpt = None,
    hires_negative: HiresNegativeOpt = None,
    hires_lora: HiresLoraOpt = None,
    hires_checkpoint: HiresCheckpointOpt = None,
    refiner: RefinerOpt = None,
    refiner_at: RefinerAtOpt = None,
    refiner_by_steps: RefinerByStepsOpt = False,
    refiner_passes: RefinerPassesOpt = None,
    face_restoration: FaceRestorationOpt = None,
    detail: DetailOpt = None,
    detail_prompt: DetailPromptOpt = None,
    detail_negative: DetailNegativeOpt = None,
    detail_strength: DetailStrengthOpt = None,
    upscale: UpscaleOpt = None,
    odd_sizes: OddSizesOpt = None,
    prediction: Annotated[
        str | None,
        typer.Option(help="Prediction type, epsilon or v_prediction, if it cannot be detected from the checkpoint."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder with the model's diffusers configs, for settings that the tensors do not show."
        ),
    ] = None,
    device: DeviceOpt = None,
    threads: ThreadsOpt = None,
    precision: PrecisionOpt = None,
    fast: FastOpt = False,
    compile_: CompileOpt = None,
    low_vram: LowVramOpt = False,
    on: OnOpt = None,
    resume: ResumeOpt = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Render even if the compatibility check fails, and keep an image that is nothing but noise."
        ),
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept adapters that only partly fit the model.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output file or folder.", show_default="the library's renders folder"),
    ] = None,
    format: FormatOpt = None,  # noqa: A002  # the option's name
    quality: QualityOpt = None,
    no_metadata: NoMetadataOpt = False,
    strip_prompt: StripPromptOpt = False,
    here: HereOpt = False,  # noqa: ARG001  # `main` has asked the server already
    open_: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the first image, or a grid's contact sheet, in the system's image viewer.",
            show_default="settings",
        ),
    ] = None,
    preview: Annotated[
        bool | None,
        typer.Option(
            "--preview/--no-preview",
            help="Show small images in terminals that can (kitty, Ghostty, Konsole, iTerm2, WezTerm, mintty).",
            show_default="settings",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan, but load and render nothing.")
    ] = False,
) -> Result:
    r"""Make images with a checkpoint and any number of LoRAs from the library. Never uses the network.

    Prompts use A1111's syntax: (emphasis:1.2), BREAK, AND, \[from:to:when], \[a|b], <lora:name:0.8>, embeddings.
    Everything is checked before weights are loaded. Images contain their recipe; existing files are never overwritten.
    If you pass a single argument, it is the prompt, and the default checkpoint is used.
    """
    from civman.domain.recipes.enlargement import upscale_from
    from civman.domain.recipes.machine import Machine
    from civman.domain.recipes.recipe import RenderRequest
    from civman.domain.recipes.tiled import tiled_from
    from civman.domain.recipes.ultimate import ultimate_from
    from civman.errors import UsageError
    from civman.planning.compiling import require_compilable
    from civman.planning.expand_prompts import Expansion
    from civman.planning.render_extra import require_render_extra

    require_render_extra()
    options = output_options(format, quality, no_metadata=no_metadata, strip_prompt=strip_prompt)
    axes = axes_of(grid)
    if axes and prompts is not None:
        raise UsageError("--prompts and --grid cannot be combined", hint='--grid "prompt=a cat|a dog" varies prompts')
    chosen = chosen_preset(session, context, preset)
    checkpoint, prompt = checkpoint_and_prompt(
        session, checkpoint, prompt, chosen, has_prompts=prompts is not None or has_prompts(axes)
    )
    require_one_way(batch_size, slots, exact=exact)
    width, height = render_values.size_from(picture_size) if picture_size else (None, None)
    request = RenderRequest(
        checkpoint=checkpoint, file=file, negative_prompt=negative, loras=render_values.loras_from(lora or []),
        controls=controls_from(control, control_map, control_mode, control_type, control_resize),
        embeddings=tuple(embedding or ()), hypernetworks=tuple(hypernetwork or ()), vae=vae,
        sampler=sampler, schedule=schedule, steps=steps,
        guidance_scale=cfg, guidance_rescale=cfg_rescale, parts=tuple(part or ()), variant=variant, shift=shift,
        guidance=guidance, references=references_from(reference, reference_crop, reference_size),
        width=width, height=height, clip_skip=clip_skip, seed=seed, count=count, batch_size=batch_size, slots=slots,
        rng=rng,
        eta_seed_delta=ensd, init_image=init, mask_image=mask, strength=strength, mask_blur=mask_blur,
        hires=render_values.hires_from(
            hires, steps=hires_steps, strength=hires_strength, upscaler=upscaler, token_merging=hires_token_merging,
            trim=hires_trim, seed=hires_seed, guidance_scale=hires_cfg, sampler=hires_sampler,
            schedule=hires_schedule, resize=hires_resize, prompt=hires_prompt, negative_prompt=hires_negative,
            loras=hires_loras(hires_lora), checkpoint=hires_checkpoint,
        ),
        details=render_values.details_from(detail or [], detail_prompt or [], detail_negative or [], detail_strength),
        refiner=refiner, refiner_at=refiner_at, refiner_by_steps=refiner_by_steps or None,
        refiner_passes=refiner_passes,
        face_restoration=face_restoration, upscale=upscale_from(upscale) if upscale else None, prediction=prediction,
        tiled_upscale=tiled_from(tiled_upscale, tile_overlap, tile_batch),
        ultimate_upscale=ultimate_from(ultimate_upscale) if ultimate_upscale else None,
        init_upscale=upscale_from(init_upscale) if init_upscale else None, tiled_diffusion=tiled_diffusion,
        precision=render_values.precision_from(precision, is_fast=fast), pad_prompts=pad_prompts, config=config,
        resize_mode=resize_mode,
        masked_content=mask_content, mask_channel=mask_channel, grow_mask=grow_mask,
        only_masked=only_masked or None, padding=padding, eta=eta, eta_ddim=eta_ddim,
        conditioning_weight=conditional_mask_weight, noise_multiplier=noise_multiplier, s_churn=s_churn,
        s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise, odd_sizes=odd_sizes, prompt_rules=prompt_rules,
        emphasis=emphasis, fit_negative=fit_negative or None, token_merging=token_merging, thresholding=thresholding,
        skip_negative_below=ngms, skip_negative_always=ngms_all or None, skip_early_guidance=skip_early_cfg,
        drop_penultimate=drop_penultimate or None, half_levels=half_levels or None,
        variation_seed=variation_seed, variation_strength=variation_strength, seed_resize=seed_resize,
        sampling_rules=sampling_rules, sigmas=sigmas, step_rng=step_rng, noise_slice=noise_slice, freeu=freeu,
        rescales_velocity=cfg_rescale_v or None, told_sizes=told_sizes, prompt_parts=tuple(join_prompt or ()),
        negative_parts=tuple(join_negative or ()),
    )  # fmt: skip
    expansion = Expansion(tuple(style or ()), styles, dynamic, wildcards)
    wanted = requests_of(request, prompt, prompts, expansion, has_grid_prompts=has_prompts(axes))
    conditions = render_values.conditions_from(device, trigger, require, force=force, allow_partial=allow_partial)
    machine = Machine(device, low_vram, threads, compile_)
    if axes:
        with session.reading() as on_event:
            grid_plan = session.library.grids.plan(wanted[0], axes, conditions=conditions, on_event=on_event)
        viewing = Viewing(open_, preview)
        return draw_grid(session, grid_plan, output, options, machine, dry_run=dry_run, viewing=viewing)
    with session.reading() as on_event:
        plans = [session.library.plan(each, conditions, on_event=on_event) for each in wanted]
    for notice in dict.fromkeys(notice for plan in plans for notice in plan.notices):
        session.output.notice(notice)
    require_compilable([plan.recipe for plan in plans], machine)
    if dry_run:
        return Result(
            "plan", [plan_value(plan, chosen) for plan in plans],
            human=lambda console: print_plans(console, plans), ids=(plan.recipe.sha256 for plan in plans),
        )  # fmt: skip
    with session.drawing([plan.recipe for plan in plans], is_spread=on is not None or resume) as on_event:
        made = session.library.render(
            plans, output=output, options=options, machine=machine, on=on, resume=resume, on_event=on_event
        )
    result = Result(
        "render", [rendering_value(each) for each in made],
        human=lambda console: print_renderings(console, made), ids=(each.path for each in made),
    )  # fmt: skip
    return viewed(session, result, [each.path for each in made], Viewing(open_, preview))
