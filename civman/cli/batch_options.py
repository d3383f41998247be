"""Options of `civman render` for the number of images that are computed at the same time."""

from typing import Annotated

import typer

BatchSizeOpt = Annotated[
    int | None, typer.Option(help="Number of images of one prompt to compute at the same time.", show_default="1")
]
SlotsOpt = Annotated[
    int | None,
    typer.Option(
        help="Number of images, even of different prompts, to compute at the same time; each can be "
        "rendered again alone.",
        show_default="1",
    ),
]
ExactOpt = Annotated[
    bool, typer.Option("--exact", help="Compute images one at a time, so that each is identical to a single render.")
]


def require_one_way(batch_size: int | None, slots: int | None, *, exact: bool) -> None:
    """Check that at most one of --exact, --batch-size and --slots is used. Raises: UsageError."""
    from civman.errors import UsageError

    several = [f"--batch-size {batch_size}"] if batch_size not in (None, 1) else []
    several += [f"--slots {slots}"] if slots not in (None, 1) else []
    if exact and several:
        raise UsageError(f"--exact renders one image at a time, so it cannot be combined with {several[0]}")
    if len(several) > 1:
        raise UsageError(
            "--batch-size and --slots cannot be combined",
            hint="use --slots for images of different prompts and seeds, or --batch-size for images of one prompt",
        )
