"""The command `civman renders`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.list_command import since_of
from civman.cli.output import Result, clean, counted
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.index.read_pictures import KeptPicture

_COLUMNS = (
    Column("ref", "cyan", is_whole=True), Column("made", is_whole=True, drop=2),
    Column("seed", is_whole=True, drop=1, is_right=True), Column("prompt", is_one_line=True),
    Column("file", drop=3, is_one_line=True),
)  # fmt: skip
_PROMPT = 60


@command(needs_library=True)
def renders(
    session: Session,
    words: Annotated[
        list[str] | None, typer.Argument(help="Words in prompts or model names.", show_default=False)
    ] = None,
    made_with: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="REF",
            autocompletion=completion.refs,
            help="Only images made with this checkpoint, LoRA, embedding or VAE.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Only images made since this date (2026-03-01) or at most this long ago (30d)."
        ),
    ] = None,
    scan: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="First import all images in this folder that contain a recipe."),
    ] = None,
    forget: Annotated[
        bool,
        typer.Option("--forget-missing", help="Remove listed images from the index if their files no longer exist."),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Maximum number of results; 0 for all.")] = 50,
    skip: Annotated[int, typer.Option("--skip", min=0, help="Number of results to skip.")] = 0,
) -> Result:
    """List the images made with this library, newest first. `civman show` and `replay` accept `picture:12`."""
    from civman.domain.printed_refs import picture_ref
    from civman.errors import UsageError
    from civman.index.read_pictures import PictureFilter

    pictures = session.library.pictures
    if scan is not None:
        if not scan.is_dir():
            raise UsageError(f"`{scan}` is not a folder")
        imported = pictures.import_folder(scan)
        session.output.notice(
            f"{counted(imported.taken, 'picture')} imported, {imported.known} already in the library, "
            f"{imported.others} without a"
            " civman recipe"
        )
        for problem in imported.problems:
            session.output.notice(problem)
    digests = tuple({asset.blob.sha256 for asset in session.library.files.find(made_with)}) if made_with else ()
    wanted = PictureFilter(words=tuple(words or ()), digests=digests, since=since_of(since))
    found = pictures.list(wanted, limit=limit or None, offset=skip)
    total = pictures.count(wanted)
    gone = [each for each in found if not each.is_here]
    if forget and gone:
        pictures.forget(gone)
        session.output.notice(
            f"{counted(len(gone), 'image')} removed from the index, because the files no longer exist"
        )
        found, total = [each for each in found if each.is_here], total - len(gone)
    from civman.manage.listed_values import picture_value

    return Result(
        "renders", {"total": total, "skip": skip, "pictures": [picture_value(each) for each in found]},
        human=lambda console: _table(console, found, total, skip), ids=(picture_ref(each.id) for each in found),
    )  # fmt: skip


def _table(console: "Console", found: "Sequence[KeptPicture]", total: int, skip: int) -> None:
    from civman.domain.printed_refs import picture_ref
    from civman.domain.recipes.record import UpscaleRecord

    if not found:
        images = "1 image matches" if total == 1 else f"{total:,} images match"
        if total > skip:  # --forget-missing removed all images of this page from the index
            console.print(f"no images on this page; {images} on other pages")
        elif total:
            console.print(f"only {images}, so --skip {skip} skips all of them")
        else:
            console.print("no images match; `civman render CHECKPOINT PROMPT` makes an image")
        return
    rows = []
    for each in found:
        record = each.record
        if isinstance(record, UpscaleRecord):
            seed, prompt = "", f"(upscaled from {clean(record.picture_name)})"
        else:
            seed, prompt = str(record.seed), " ".join(record.recipe.prompt.split()) or "(no prompt)"
        prompt = prompt if len(prompt) <= _PROMPT else f"{prompt[: _PROMPT - 1]}…"
        name = Path(each.path).name
        rows.append([
            picture_ref(each.id), f"{each.made_at:%Y-%m-%d %H:%M}", seed, prompt,
            name if each.is_here else f"{name} (missing)",
        ])  # fmt: skip
    print_table(console, _COLUMNS, rows)
    shown = skip + len(found)
    if shown < total:
        console.print(f"{skip + 1} to {shown} of {total}; --skip {shown} shows more", style="dim")
