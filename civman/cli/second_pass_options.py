"""Options of `civman render` for the second (hires) pass, and for a refiner that takes over during a pass."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.render_values import loras_from

if TYPE_CHECKING:
    from civman.domain.recipes.recipe import LoraRequest

HiresOpt = Annotated[
    str | None,
    typer.Option(
        metavar="SCALE|WxH",
        help="Add a second (hires) pass, larger by this factor or at this size; if one side is 0, the "
        "aspect ratio is kept.",
    ),
]
HiresStepsOpt = Annotated[
    int | None, typer.Option(help="Sampling steps of the second (hires) pass.", show_default="as the first")
]
HiresStrengthOpt = Annotated[
    float | None, typer.Option(help="Denoising strength of the second (hires) pass.", show_default="0.7")
]
HiresTrimOpt = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Crop W and H pixels in total from the width and height of the first pass's image, then stretch it to the "
        "second pass's size, as A1111 did in 2022.",
    ),
]
UpscalerOpt = Annotated[
    str | None,
    typer.Option(
        "--upscaler",
        help="How to enlarge the image before the second pass: latent, lanczos, nearest …, or the ref of "
        "an upscaler model.",
        show_default="latent",
    ),
]
HiresResizeOpt = Annotated[
    str | None,
    typer.Option(
        "--hires-resize",
        help="Run the upscaler model in ComfyUI's tiles and resize its result with nearest-exact, "
        "bilinear, bicubic, area or lanczos.",
        show_default="as A1111",
    ),
]
HiresSeedOpt = Annotated[
    int | None, typer.Option("--hires-seed", help="Seed of the second pass's noise.", show_default="as the first")
]
HiresCfgOpt = Annotated[
    float | None, typer.Option("--hires-cfg", help="CFG scale of the second pass.", show_default="as the first")
]
HiresSamplerOpt = Annotated[
    str | None,
    typer.Option(
        "--hires-sampler", autocompletion=completion.samplers, help="Sampler of the second pass.",
        show_default="as the first",
    ),
]  # fmt: skip
HiresScheduleOpt = Annotated[
    str | None,
    typer.Option(
        "--hires-schedule", autocompletion=completion.schedules, help="Noise schedule of the second pass.",
        show_default="as the first",
    ),
]  # fmt: skip
HiresTokenMergingOpt = Annotated[
    float | None,
    typer.Option(
        "--hires-token-merging",
        help="Fraction of the image tokens to merge in the second pass (ToMe).",
        show_default="as the first",
    ),
]
HiresPromptOpt = Annotated[
    str | None, typer.Option("--hires-prompt", help="Prompt of the second pass.", show_default="as the first")
]
HiresNegativeOpt = Annotated[
    str | None,
    typer.Option("--hires-negative", help="Negative prompt of the second pass.", show_default="as the first"),
]
HiresLoraOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--hires-lora",
        metavar="REF[:UNET[:TE]][:lbw=BLOCKS]|none",
        autocompletion=completion.refs,
        help="A LoRA for the second pass, in place of those of --lora; `none` for no LoRA (repeatable).",
    ),
]
HiresCheckpointOpt = Annotated[
    str | None,
    typer.Option(
        "--hires-checkpoint",
        metavar="REF",
        autocompletion=completion.refs,
        help="Checkpoint for the second pass, of the same model family as the first one.",
        show_default="as the first",
    ),
]
RefinerOpt = Annotated[
    str | None,
    typer.Option(
        "--refiner",
        metavar="REF",
        autocompletion=completion.refs,
        help="A checkpoint that takes over during the steps: SDXL's refiner, or one of the checkpoint's own family.",
    ),
]
RefinerAtOpt = Annotated[
    float | None,
    typer.Option(
        "--refiner-at",
        help="Fraction of the denoising after which the refiner takes over, 0 to 1.",
        show_default="0.8",
    ),
]
RefinerByStepsOpt = Annotated[
    bool,
    typer.Option(
        "--refiner-by-steps", help="Interpret --refiner-at as a fraction of the steps, as A1111 before version 1.8 did."
    ),
]
RefinerPassesOpt = Annotated[
    str | None,
    typer.Option(
        "--refiner-passes",
        help="With --hires: the passes in which the refiner takes over: first, second or both.",
        show_default="second",
    ),
]


def hires_loras(texts: list[str] | None) -> "tuple[LoraRequest, ...] | None":
    """Parse the adapters of --hires-lora; None if the option was not used."""
    if texts is None:
        return None
    return () if texts == ["none"] else loras_from(texts)
