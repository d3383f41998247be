"""`civman download`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import RefsArg, given_refs
from civman.cli.output import Result, clean, error_value, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.download.job import Job, Outcome


@command(network="option")
def download(
    session: Session,
    refs: RefsArg = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help='Which file: its id, name, or words like "fp16 pruned".')
    ] = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="A file with refs, one a line.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name file, size, hash and place; fetch nothing.")] = False,
    connections: Annotated[
        int | None, typer.Option(min=1, max=32, help="Connections to one file.", show_default="as many as pay")
    ] = None,
    files_at_once: Annotated[int, typer.Option("--at-once", min=1, max=8, help="Files at a time.")] = 3,
    limit_rate: Annotated[str | None, typer.Option(help="Bytes per second over all: 500K, 20M.")] = None,
    preview: Annotated[str, typer.Option(help="Preview picture kept beside a file: safe, any or none.")] = "safe",
    for_: Annotated[
        str | None, typer.Option("--for", metavar="CHECKPOINT", help="Refuse what does not fit this checkpoint.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --for: warn instead of refusing.")] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Also files that could run code.")] = False,
    allow_unsafe: Annotated[bool, typer.Option("--allow-unsafe", help="Also files that fail CivitAI's scan.")] = False,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Also files for which CivitAI declares no hash.")
    ] = False,
) -> Result:
    """Fetch files, verify them, and put them into the library; go on where an earlier try stopped."""
    from civman.domain.access import Permits
    from civman.download.job import DownloadOptions, previews_named
    from civman.download.rate_limit import RateLimit, parse_rate

    wanted = given_refs(refs, from_file)
    permits = Permits(pickle=allow_pickle, unsafe=allow_unsafe, unverified=allow_unverified)
    options = DownloadOptions(
        connections=connections,
        files_at_once=files_at_once,
        limit=RateLimit(parse_rate(limit_rate)) if limit_rate else None,
        preview=previews_named(preview),
    )
    downloads = session.library.downloads
    examine = downloads.require_fit(for_, force=force) if for_ else None
    if dry_run:
        jobs = [downloads.plan(ref, file=file, permits=permits, examine=examine) for ref in wanted]
        return _planned([(job, downloads.place_of(job)) for job in jobs])
    options = replace(options, examine=examine)
    with session.downloading() as on_event:
        outcomes = downloads.fetch_all(wanted, file=file, permits=permits, options=options, on_event=on_event)
    return report(outcomes)


def _planned(jobs: "list[tuple[Job, Path | None]]") -> Result:
    """Jobs, each with the place where its file will be."""
    value = [
        {
            "ref": job.ref,
            "model_id": job.version.model.id,
            "version_id": job.version.id,
            "file": job.file,
            "name": job.name,
            "place": place,
            "is_here": job.is_stored,
            "notices": job.notices,
        }
        for job, place in jobs
    ]
    return Result(
        "plan",
        value,
        human=lambda console: _print_plan(console, jobs),
        ids=(job.file.hashes.sha256 or job.name for job, _ in jobs),
    )


def _print_plan(console: "Console", jobs: "list[tuple[Job, Path | None]]") -> None:
    for job, place in jobs:
        version = job.version
        console.print(f"{clean(version.model.name)} {clean(version.name)} ({version.base_model}), @{version.id}")
        console.print(f"  file    {job.file.id or '?'} {clean(job.name)}")
        console.print(f"  size    {size(job.file.size_bytes)}" + (" (here already)" if job.is_stored else ""))
        console.print(f"  sha256  {job.file.hashes.sha256 or 'not declared'}")
        console.print(f"  place   {place}", soft_wrap=True)
        for notice in job.notices:
            console.print(f"  note    {clean(notice)}")


def report(outcomes: "Sequence[Outcome]") -> Result:
    """The result of downloads. Raises: the error, where there was one download and it failed."""
    from civman.errors import PartlyFailedError

    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) == 1 and outcomes[0].error is not None:
        raise outcomes[0].error
    error = None
    if failed and failed[0].error is not None:
        error = PartlyFailedError(
            f"{len(failed)} of {len(outcomes)} failed: {', '.join(outcome.ref for outcome in failed)}",
            exit_code=failed[0].error.exit_code,
            refs=[outcome.ref for outcome in failed],
        )
    return Result(
        "download",
        [_value(outcome) for outcome in outcomes],
        human=lambda console: _print(console, outcomes),
        ids=(outcome.asset.blob.sha256 for outcome in outcomes if outcome.asset is not None),
        error=error,
    )


def _value(outcome: "Outcome") -> dict[str, object]:
    return {
        "ref": outcome.ref,
        "asset": outcome.asset,
        "was_present": outcome.was_present,
        "error": error_value(outcome.error) if outcome.error is not None else None,
    }


def _print(console: "Console", outcomes: "Sequence[Outcome]") -> None:
    for outcome in outcomes:
        asset = outcome.asset
        if asset is not None:
            how = "was here already" if outcome.was_present else "downloaded and verified"
            title = clean(f"{asset.model_name} {asset.version_name}".strip() or asset.name)
            console.print(f"{title}: {how}, {size(asset.blob.size_bytes)}, sha256 {asset.blob.sha256[:12]}…")
            if asset.trained_words:
                console.print(f"  trigger words: {clean(', '.join(asset.trained_words))}")
            for conflict in asset.facts.conflicts:
                console.print(f"  caution: {clean(conflict)}")
        elif outcome.error is not None:
            error = outcome.error
            console.print(f"{outcome.ref}: failed [{error.code}]: {clean(error.message)}", style="red")
            if error.hint:
                console.print(f"  {clean(error.hint)}")
