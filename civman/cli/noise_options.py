"""The options of `civman render` for the noise that an image starts from and that its steps add."""

from typing import Annotated

import typer

EtaOpt = Annotated[
    float | None,
    typer.Option(help="Eta: how much noise ancestral and SDE samplers add in each step.", show_default="1"),
]
EtaDdimOpt = Annotated[
    float | None, typer.Option(help="Eta DDIM: how much noise DDIM adds in each step.", show_default="0")
]
SChurnOpt = Annotated[
    float | None,
    typer.Option(help="Sigma churn: how much noise Euler, Heun and DPM2 add before their steps.", show_default="0"),
]
STminOpt = Annotated[
    float | None, typer.Option(help="Lowest noise level at which --s-churn adds noise.", show_default="0")
]
STmaxOpt = Annotated[
    float | None, typer.Option(help="Highest noise level at which --s-churn adds noise.", show_default="no limit")
]
SNoiseOpt = Annotated[
    float | None, typer.Option(help="Sigma noise: factor for the noise that a sampler adds.", show_default="1")
]
VariationSeedOpt = Annotated[
    int | None, typer.Option(help="Variation seed: the seed of the noise to mix in.", show_default="drawn")
]
VariationStrengthOpt = Annotated[
    float | None, typer.Option(help="How much of the variation seed's noise to mix in, 0 to 1.", show_default="0")
]
SeedResizeOpt = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Generate the noise for this size, so that a seed gives similar images at different sizes."
    ),
]
EnsdOpt = Annotated[int | None, typer.Option(help="Eta noise seed delta (ENSD), as in A1111.", show_default="0")]
