"""The command `civman inspect`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt, RefArg
from civman.cli.output import Result, clean, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.identification.claims import Claims
    from civman.manage.inspection import Inspected


@command(network="option")
def inspect(
    session: Session,
    ref: RefArg,
    file: FileOpt = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Also list the name, type and shape of every tensor.")
    ] = False,
) -> Result:
    """Show what a file really is: kind, architecture, format, precision, and its base model from three sources.

    REF may be a file on this disk, in the library or on CivitAI. From CivitAI only the header is downloaded.
    """
    found = session.library.inspect(ref, file=file)
    return Result(
        "inspect",
        _value(found, tensors),
        human=lambda console: _print(console, found, tensors),
        ids=[str(found.identity.architecture) if found.identity else str(found.content)],
        error=found.refusal,
    )


def _value(found: "Inspected", tensors: bool) -> dict[str, object]:
    value: dict[str, object] = {
        "name": found.name,
        "path": found.path,
        "size_bytes": found.size_bytes,
        "content": found.content,
        "civitai_says": found.label,
        "tensors_show": found.identity,
        "file_claims": found.claims,
        "conflicts": found.conflicts,
        "asset": found.asset,
    }
    if found.pickle is not None or found.refusal is not None:
        value["pickle"] = {
            "is_readable": found.pickle is not None,
            "refusal": found.refusal.message if found.refusal is not None else None,
        }
    if found.gguf is not None:
        value["gguf"] = {
            "version": found.gguf.version,
            "architecture": found.gguf.architecture,
            "quantisation": found.gguf.quantisation,
            "tensor_count": len(found.gguf.tensors),
        }
    if tensors and found.header is not None:
        value["tensors"] = {
            name: {"dtype": tensor.dtype, "shape": tensor.shape} for name, tensor in found.header.tensors.items()
        }
    return value


def _print(console: "Console", found: "Inspected", tensors: bool) -> None:
    console.print(f"{clean(found.name)}  {size(found.size_bytes)}")
    if found.path is None:
        console.print("only the header was downloaded from CivitAI; nothing was stored")
    identity = found.identity
    if found.gguf is not None:
        console.print(f"  format         {clean(found.gguf.words)}")
    if found.refusal is not None:
        console.print("  a pickle that civman refuses to read", style="red")
        return
    if identity is None:
        console.print(f"  not a model file that civman can read: its content is {found.content}")
        return
    if found.pickle is not None:
        console.print("  a pickle, read without running any of its code")
    console.print(f"  tensors        {clean(identity.describe())}")
    for reason in identity.reasons[:4]:
        console.print(f"                 because {clean(reason)}", style="dim")
    console.print(f"  CivitAI label  {clean(found.label or 'none (unknown to CivitAI, or not requested)')}")
    claims = found.claims
    console.print(f"  file metadata  {clean(_claims(claims)) if claims else 'none'}")
    if claims is not None and claims.trigger_words:
        console.print(
            f"  trigger words  {clean(', '.join(claims.trigger_words))} (from the training metadata in the file)"
        )
    for conflict in found.conflicts:
        console.print(f"  contradiction  {clean(conflict)}", style="red")
    if tensors and found.header is not None:
        for name, tensor in found.header.tensors.items():
            console.print(f"  {tensor.dtype:<8} {'x'.join(map(str, tensor.shape)) or 'scalar':<18} {clean(name)}")


def _claims(claims: "Claims") -> str:
    words = [claims.base, claims.title and f"title {claims.title}", claims.author and f"by {claims.author}"]
    words += [claims.trained_on and f"trained on {claims.trained_on}", claims.resolution and f"at {claims.resolution}"]
    words += [claims.prediction_type and f"{claims.prediction_type} prediction"]
    return ", ".join(word for word in words if word) or "none"
