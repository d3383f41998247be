"""Options of `civman render` for an input image and a mask."""

from typing import Annotated

import typer

InitOpt = Annotated[str | None, typer.Option(metavar="FILE", help="Input image for image-to-image.")]
MaskOpt = Annotated[str | None, typer.Option(metavar="FILE", help="Mask image: white areas are inpainted.")]
MaskBlurOpt = Annotated[int | None, typer.Option(help="Blur radius of the mask's edge in pixels.", show_default="4")]
MaskContentOpt = Annotated[
    str | None,
    typer.Option(
        help="Initial content of the masked area: fill, original, latent noise or latent nothing.",
        show_default="original",
    ),
]
OnlyMaskedOpt = Annotated[
    bool,
    typer.Option("--only-masked", help="Inpaint only the masked area, at --size, and paste it into the image."),
]
PaddingOpt = Annotated[
    int | None,
    typer.Option(help="Number of pixels around the mask that --only-masked includes.", show_default="32"),
]
ResizeModeOpt = Annotated[
    str | None,
    typer.Option(
        help="How to fit the input image to --size: just resize, crop and resize, resize and fill, just "
        "resize (latent upscale), or as in ComfyUI: comfyui crop, comfyui lanczos …",
        show_default="just resize",
    ),
]
StrengthOpt = Annotated[
    float | None,
    typer.Option(help="Denoising strength, above 0 up to 1: how much the input image may change.", show_default="0.75"),
]
NoiseMultiplierOpt = Annotated[
    float | None, typer.Option(help="Factor for the noise that is added to the input image.", show_default="1")
]
ConditionalMaskWeightOpt = Annotated[
    float | None,
    typer.Option(
        help="For inpainting checkpoints: how much of the masked area to hide from the model, 0 to 1.",
        show_default="1",
    ),
]
MaskChannelOpt = Annotated[
    str | None,
    typer.Option(
        "--mask-channel",
        help="Which channel of the --mask image to use: grey, red, green, blue, or alpha (transparent "
        "areas are inpainted).",
        show_default="grey",
    ),
]
GrowMaskOpt = Annotated[
    int | None,
    typer.Option(
        "--grow-mask",
        help="Paint the masked area grey and widen the mask by N pixels, as ComfyUI's VAE Encode (for "
        "Inpainting) does.",
    ),
]
