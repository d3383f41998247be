"""The command `civman check`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.options import FileOpt
from civman.cli.output import Result, clean, plain
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.compatibility import Compatibility
    from civman.domain.licence import Terms

_REASONS = 6


@command(network="option")
def check(
    session: Session,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            autocompletion=completion.refs,
            help="The checkpoint: a ref or a file path.",
            show_default=False,
        ),
    ],
    file: FileOpt = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            "-l",
            metavar="REF[:SCALE]",
            autocompletion=completion.refs,
            help="A LoRA or other adapter (repeatable).",
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
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", metavar="REF", autocompletion=completion.refs, help="A VAE to use instead of the checkpoint's own."
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="REF",
            autocompletion=completion.refs,
            help="A ControlNet or T2I-Adapter (repeatable).",
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept adapters that only partly fit the model.")
    ] = False,
) -> Result:
    """Check whether LoRAs, embeddings, control models and a VAE fit a checkpoint, from the file headers.

    Exit code 7: something cannot work or applies only partly. Exit code 11: it is unknown whether it works.
    """
    from civman.domain.scales import parse_scaled
    from civman.errors import CivmanError, Incompatible, UnknownFit
    from civman.planning.check_files import check_files

    asked = [("lora", parse_scaled(text).ref) for text in lora or []]
    asked += [("embedding", ref) for ref in embedding or []] + ([("vae", vae)] if vae else [])
    asked += [("control", ref) for ref in control or []]
    base = session.library.inspect(checkpoint, file=file)
    parts = [(role, session.library.inspect(ref)) for role, ref in asked]
    models = [base, *(model for _, model in parts)]
    for model in models:
        if model.refusal is not None:
            raise model.refusal
    found = check_files(base, parts)
    terms = session.library.files.terms(models)
    error: CivmanError | None = None
    try:
        found.raise_if_blocked(allow_partial=allow_partial)
        found.raise_if_unknown()
    except (Incompatible, UnknownFit) as blocked:
        error = blocked
    return Result(
        "check",
        {**plain(found), "licence": terms},
        human=lambda console: _print(console, found, terms),
        ids=[found.verdict],
        error=error,
    )


def _print(console: "Console", found: "Compatibility", terms: "Terms") -> None:
    if found.weights:
        console.print(f"the checkpoint: weights stored as {clean(found.weights)}", style="dim")
    for reason in found.reasons:
        console.print(f"the checkpoint: {clean(reason)}", style="yellow")
    for part in found.parts:
        style = {"fits": "green", "cannot work": "red", "partly applies": "red"}.get(part.verdict, "yellow")
        console.print(f"{clean(part.name)}: ", end="")
        console.print(str(part.verdict), style=style, end="")
        console.print(
            f" (compared by {part.depth}){f'; weights stored as {clean(part.weights)}' if part.weights else ''}"
        )
        if part.support is not None:
            console.print(f"  CivitAI's compatibility table says {part.support} for the two base models", style="dim")
        for reason in part.reasons[:_REASONS]:
            console.print(f"  {clean(reason)}")
        if len(part.reasons) > _REASONS:
            console.print(f"  … and {len(part.reasons) - _REASONS} more; --json has them all")
    if len(found.parts) != 1:
        console.print(f"all together: {found.verdict}")
    console.print(f"licence of the combination: {clean('; '.join(terms.words))}")
    for reason in terms.reasons:
        console.print(f"  {clean(reason)}", style="dim")
