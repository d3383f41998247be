"""The command `civman check`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.options import FileOpt
from civman.cli.output import Result, clean, plain
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from civman.diffusion.block_norms import BlockNorm
    from civman.domain.compatibility import Compatibility
    from civman.domain.licence import Terms

_REASONS = 6
_BAR = 20
"""The length of the longest bar in characters."""


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
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", autocompletion=completion.refs, help="An IP-Adapter (repeatable)."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept adapters that only partly fit the model.")
    ] = False,
    blocks: Annotated[
        bool,
        typer.Option("--blocks", help="Also show how much each LoRA changes each block of the model, at scale 1."),
    ] = False,
) -> Result:
    """Check whether LoRAs, embeddings, control models, IP-Adapters and a VAE fit a checkpoint, from the file headers.

    With --blocks, the weights are read, too; for this, all files must be on this machine. Exit code 7: something cannot
    work or applies only partly. Exit code 11: it is unknown whether the files work together.
    """
    from civman.domain.compatibility import Verdict
    from civman.domain.scales import parse_scaled
    from civman.errors import CivmanError, Incompatible, UnknownFit
    from civman.planning.check_files import check_files

    asked = [("lora", parse_scaled(text).ref) for text in lora or []]
    asked += [("embedding", ref) for ref in embedding or []] + ([("vae", vae)] if vae else [])
    asked += [("control", ref) for ref in control or []] + [("reference", ref) for ref in reference or []]
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
    value, norms = plain(found), {}
    if blocks:
        measured = [
            number for number, (role, _) in enumerate(asked)
            if role == "lora" and found.parts[number].verdict is not Verdict.CANNOT
        ]  # fmt: skip
        with session.reading() as on_event:
            made = session.library.files.block_norms(
                checkpoint, [asked[number][1] for number in measured], file=file, vae=vae, on_event=on_event
            )
        norms = dict(zip(measured, made, strict=True))
        for number, each in norms.items():
            value["parts"][number]["blocks"] = plain(each)
    return Result(
        "check",
        {**value, "licence": terms},
        human=lambda console: _print(console, found, terms, norms),
        ids=[found.verdict],
        error=error,
    )


def _print(
    console: "Console", found: "Compatibility", terms: "Terms", norms: "Mapping[int, Sequence[BlockNorm]]"
) -> None:
    if found.weights:
        console.print(f"the checkpoint: its weights are stored as {clean(found.weights)}", style="dim")
    for reason in found.reasons:
        console.print(f"the checkpoint: {clean(reason)}", style="yellow")
    for number, part in enumerate(found.parts):
        style = {"fits": "green", "cannot work": "red", "partly applies": "red"}.get(part.verdict, "yellow")
        console.print(f"{clean(part.name)}: ", end="")
        console.print(str(part.verdict), style=style, end="")
        console.print(
            f" (compared by {part.depth}){f'; its weights are stored as {clean(part.weights)}' if part.weights else ''}"
        )
        if part.support is not None:
            console.print(f"  CivitAI's support for this pair of base models: {part.support}", style="dim")
        for reason in part.reasons[:_REASONS]:
            console.print(f"  {clean(reason)}")
        if len(part.reasons) > _REASONS:
            console.print(f"  … and {len(part.reasons) - _REASONS} more reasons; --json lists all")
        if number in norms:
            _print_norms(console, norms[number])
    if len(found.parts) != 1:
        console.print(f"all together: {found.verdict}")
    console.print(f"licence of the combination: {clean('; '.join(terms.words))}")
    for reason in terms.reasons:
        console.print(f"  {clean(reason)}", style="dim")


def _print_norms(console: "Console", norms: "Sequence[BlockNorm]") -> None:
    """Print how much a LoRA changes each block; each bar's length is relative to the most changed block."""
    most = max((each.share for each in norms), default=0.0) or 1.0
    columns = [
        Column("block", is_whole=True), Column("weights", is_right=True, drop=1), Column("change", is_right=True),
        Column("of the weights", is_right=True), Column("", style="dim", is_whole=True, drop=2),
    ]  # fmt: skip
    print_table(console, columns, [
        (each.block, str(each.weights), f"{each.norm:.3g}", f"{each.share:.2%}", "#" * round(_BAR * each.share / most))
        for each in norms
    ])  # fmt: skip
