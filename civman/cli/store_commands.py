"""The commands `civman push` and `civman pull`, which copy models to and from an S3-compatible object store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt
from civman.cli.output import Result, clean, counted, error_value, size
from civman.cli.project_commands import AllowPickleOpt, first_error
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.exchange.second_home import Moved, Offer

_StoreAndRefs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[S3-URL] [REF]...",
        help="The store, such as s3://bucket/models (default: `object_store` in the settings), then the models.",
        show_default=False,
    ),
]


@command(network="option", needs_library=True)
def push(
    session: Session,
    words: _StoreAndRefs = None,
    file: FileOpt = None,
    lock: Annotated[bool, typer.Option("--lock", help="Push the files listed in the project's civman.lock.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Push the whole library.")] = False,
    with_notes: Annotated[
        bool, typer.Option("--with-notes", help="Include your notes, tags, ratings and aliases.")
    ] = False,
) -> Result:
    """Upload models with their metadata to an S3-compatible object store; files that it already has are skipped.

    Access keys are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from ~/.aws/credentials.
    """
    url, refs = _split(words)
    _require_one_choice("push", [bool(refs), lock, everything], "REFs, --lock or --all")
    with session.downloading() as on_event:
        moved = list(session.library.object_store.push(
            refs, url=url, file=file, project=Path.cwd() if lock else None, with_notes=with_notes, on_event=on_event,
        ))  # fmt: skip
    return _result("push", moved, "uploaded", "was already in the store")


@command(network="option")
def pull(
    session: Session,
    words: _StoreAndRefs = None,
    file: FileOpt = None,
    lock: Annotated[bool, typer.Option("--lock", help="Pull the files listed in the project's civman.lock.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Pull everything in the store.")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Only list the files in the store.")] = False,
    allow_pickle: AllowPickleOpt = False,
) -> Result:
    """Download models from an S3-compatible object store and verify their SHA-256; downloads resume.

    Access keys are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from ~/.aws/credentials.
    """
    from civman.domain.access import Permits

    url, refs = _split(words)
    if only_list:
        return _listed(session.library.object_store.offers(refs, url=url, file=file))
    _require_one_choice(
        "pull", [bool(refs), lock, everything], "REFs, --lock or --all; --list lists the files in the store"
    )
    part, permits = session.library.object_store, Permits(pickle=allow_pickle)
    with session.downloading() as on_event:
        if lock:
            moved = list(part.pull_locked(Path.cwd(), url=url, permits=permits, on_event=on_event))
        else:
            offers = part.offers(refs, url=url, file=file)
            moved = list(part.pull(offers, url=url, permits=permits, on_event=on_event))
    return _result("pull", moved, "downloaded and verified", "was already in the library")


def verify_store(session: Session, url: str, refs: list[str]) -> Result:
    """Verify the SHA-256 of files in an object store, for `civman verify` with a URL such as s3://bucket/models."""
    with session.downloading() as on_event:
        found = list(session.library.object_store.verify(refs, url=url, on_event=on_event))
    return _result("verify-store", found, "verified", "")


def _split(words: list[str] | None) -> tuple[str | None, list[str]]:
    """Split the arguments into the store's URL, if they begin with one, and the rest."""
    words = words or []
    return (words[0], words[1:]) if words and words[0].startswith("s3://") else (None, words)


def _require_one_choice(verb: str, given: list[bool], choices: str) -> None:
    from civman.errors import UsageError

    if given.count(True) != 1:
        raise UsageError(
            f"`civman {verb}` needs exactly one of: {choices}", hint=f"`civman {verb} --help` explains the choices"
        )


def _result(kind: str, moved: "Sequence[Moved]", done: str, present: str) -> Result:
    return Result(
        kind,
        [
            {
                "sha256": each.sha256, "name": each.name, "size_bytes": each.size_bytes,
                "was_present": each.was_present,
                "error": error_value(each.error) if each.error is not None else None,
            }
            for each in moved
        ],
        human=lambda console: _print(console, moved, done, present),
        ids=(each.sha256 for each in moved if each.error is None),
        error=first_error([(each.name, each.error) for each in moved]),
    )  # fmt: skip


def _print(console: "Console", moved: "Sequence[Moved]", done: str, present: str) -> None:
    for each in moved:
        if each.error is None:
            how = present if each.was_present else done
            console.print(
                f"{clean(each.name)}: {how}, {size(each.size_bytes)}, sha256 {each.sha256[:12]}…", soft_wrap=True
            )
    good = [each for each in moved if each.error is None]
    console.print(f"{counted(len(good), 'file')}, {size(sum(each.size_bytes for each in good))}", soft_wrap=True)


def _listed(offers: "Sequence[Offer]") -> Result:
    return Result(
        "offers",
        [{"sha256": each.sha256, "name": each.name, "size_bytes": each.size_bytes} for each in offers],
        human=lambda console: _print_offers(console, offers),
        ids=(each.sha256 for each in offers),
    )


def _print_offers(console: "Console", offers: "Sequence[Offer]") -> None:
    for each in offers:
        console.print(f"{each.sha256[:12]}  {size(each.size_bytes)}  {clean(each.name)}", soft_wrap=True)
    if not offers:
        console.print("the store has no models yet; `civman push` uploads some", soft_wrap=True)
