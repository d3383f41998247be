"""The command `civman download`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.options import FileOpt, RefsArg, given_refs
from civman.cli.output import Result, clean, error_value, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.digests import Sha256
    from civman.download.job import Job, Outcome
    from civman.planning.needed_parts import NeededPart

    Needs = dict[Sha256, tuple[NeededPart, ...]]


_AT_ONCE = 3


@command(network="option")
def download(
    session: Session,
    refs: RefsArg = None,
    file: FileOpt = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="Read refs from a file, one per line.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show file, size, hash and destination, but download nothing.")
    ] = False,
    connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=32,
            help="Maximum number of connections per file.",
            show_default="as many as make the download faster",
        ),
    ] = None,
    files_at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=8, help="Number of files to download at the same time.")
    ] = _AT_ONCE,
    limit_rate: Annotated[
        str | None, typer.Option(help="Maximum speed of all downloads together, in bytes per second: 500K, 20M.")
    ] = None,
    preview: Annotated[
        str, typer.Option(help="Which preview image to store with a file: safe (rated PG), any or none.")
    ] = "safe",
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CHECKPOINT",
            autocompletion=completion.refs,
            help="Refuse files that do not fit this checkpoint.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --for: only warn about files that do not fit.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Store pickles that could run code when loaded.")
    ] = False,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Allow files that failed CivitAI's virus or pickle scan.")
    ] = False,
    allow_unverified: Annotated[
        bool,
        typer.Option("--allow-unverified", help="Allow files for which CivitAI has no hash; they cannot be verified."),
    ] = False,
    queue: Annotated[
        bool,
        typer.Option(
            "--queue", help="Queue the download in the running `civman serve` and return at once; see `civman jobs`."
        ),
    ] = False,
) -> Result:
    """Download files, verify them and add them to the library. An interrupted download is resumed."""
    from civman.domain.access import Permits
    from civman.download.job import DownloadOptions, previews_named
    from civman.download.rate_limit import RateLimit, parse_rate

    wanted = given_refs(refs, from_file)
    if queue:
        _require_queueable(session, dry_run=dry_run, files_at_once=files_at_once)
        body: dict[str, object] = {
            "file": file, "for": for_, "force": force, "preview": preview, "connections": connections,
            "limit_rate": limit_rate, "allow_pickle": allow_pickle, "allow_unsafe": allow_unsafe,
            "allow_unverified": allow_unverified,
        }  # fmt: skip
        return _queued(session, wanted, body)
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
        plans: list[Job | Outcome] = [
            downloads.plan_or_find(ref, file=file, permits=permits, examine=examine) for ref in wanted
        ]
        return _planned([(plan, downloads.place_of(plan)) for plan in plans])
    options = replace(options, examine=examine)
    with session.downloading(len(wanted)) as on_event:
        outcomes = downloads.fetch_all(wanted, file=file, permits=permits, options=options, on_event=on_event)
    note_ambiguous(session, outcomes)
    return report(outcomes, _needs(session, outcomes))


def _needs(session: Session, outcomes: "Sequence[Outcome]") -> "Needs":
    """Find out which separate parts, such as text encoders, the downloaded checkpoints need for rendering."""
    from civman.errors import CannotRender, InvalidModelFile

    found: Needs = {}
    for asset in (outcome.asset for outcome in outcomes):
        if asset is not None:
            try:
                found[asset.blob.sha256] = session.library.downloads.needed_parts(asset)
            # the checkpoint was stored, but civman cannot render with it
            except (CannotRender, InvalidModelFile) as error:
                session.output.notice(f"{clean(asset.name)}: {clean(error.message)}")
    return found


def _require_queueable(session: Session, *, dry_run: bool, files_at_once: int) -> None:
    """Refuse options that have no effect on the server's queue. Raises: UsageError."""
    from civman.errors import UsageError

    refused = {"--dry-run": dry_run, "--at-once": files_at_once != _AT_ONCE, "--offline": bool(session.offline)}
    for option, is_set in refused.items():
        if is_set:
            raise UsageError(f"{option} has no effect on the server's queue", hint=f"leave out {option} or --queue")


def _queued(session: Session, refs: Sequence[str], body: dict[str, object]) -> Result:
    """Queue a download of each ref in the running server. Raises: NotFound: none is running."""
    from civman.cli.jobs_command import asked, jobs_result
    from civman.cli.running_server import running_server
    from civman.errors import CivmanError

    server = running_server(session.library.context.settings.library)
    jobs: list[dict[str, object]] = []
    failure = None
    for ref in refs:
        try:
            jobs.append(asked(server, "POST", "/api/v1/jobs", {"kind": "download", "ref": ref, **body}))
        except CivmanError as error:
            if not jobs:
                raise
            failure = error
            failure.message = f"{ref}: {error.message}; this ref and those after it were not queued"
            break
    return replace(jobs_result(jobs), error=failure)


def _planned(plans: "list[tuple[Job | Outcome, Path | None]]") -> Result:
    """Build the result of a dry run: the planned downloads, each with the path where the file would be stored."""
    return Result(
        "plan",
        [_plan_value(plan, place) for plan, place in plans],
        human=lambda console: _print_plans(console, plans),
        ids=(str(_plan_value(plan, place)["sha256"]) for plan, place in plans),
    )


def _plan_value(plan: "Job | Outcome", place: "Path | None") -> dict[str, object]:
    from civman.domain.printed_refs import file_ref
    from civman.download.job import Job

    if isinstance(plan, Job):
        version, sha256 = plan.version, plan.file.hashes.sha256
        return {
            "asked": plan.ref, "ref": file_ref(version, plan.file), "model_id": version.model.id,
            "version_id": version.id, "file": plan.file, "name": plan.name, "sha256": sha256 or plan.name,
            "place": place, "is_here": plan.is_stored, "notices": plan.notices,
        }  # fmt: skip
    asset = plan.asset
    assert asset is not None
    return {
        "asked": plan.ref, "ref": asset.ref, "model_id": asset.model_id, "version_id": asset.version_id, "file": None,
        "name": asset.name, "sha256": asset.blob.sha256, "place": place, "is_here": True, "notices": (),
    }  # fmt: skip


def _print_plans(console: "Console", plans: "list[tuple[Job | Outcome, Path | None]]") -> None:
    from civman.domain.printed_refs import file_ref
    from civman.download.job import Job

    for job, place in plans:
        if not isinstance(job, Job):
            assert job.asset is not None
            console.print(f"{clean(job.asset.name)}: already in the library, and not on CivitAI")
            console.print(f"  place   {place}", soft_wrap=True)
            continue
        version = job.version
        console.print(f"{clean(version.model.name)} {clean(version.name)} ({version.base_model})")
        console.print(f"  file    {file_ref(version, job.file)} {clean(job.name)}")
        console.print(f"  size    {size(job.file.size_bytes)}" + (" (already in the library)" if job.is_stored else ""))
        console.print(f"  sha256  {job.file.hashes.sha256 or 'not declared'}")
        console.print(f"  place   {place}", soft_wrap=True)
        for notice in job.notices:
            console.print(f"  note    {clean(notice)}")


def note_ambiguous(session: Session, outcomes: "Sequence[Outcome]") -> None:
    """Print a notice for each model that now has several stored files, because its name and id are now ambiguous."""
    fresh = [outcome.asset for outcome in outcomes if outcome.asset is not None and not outcome.was_present]
    for model_id, name in {asset.model_id: asset.model_name for asset in fresh if asset.model_id is not None}.items():
        files = session.library.files.of_model(model_id)
        if len({file.blob.sha256 for file in files}) > 1:
            refs = "; ".join(f"{file.ref} ({file.version_name}, {file.name})" for file in files)
            default = session.library.files.default_of(model_id)
            meaning = (
                f"`{name}` and {model_id} no longer identify one file"
                if default is None
                else f"a command that needs one file uses {default.ref} for `{name}` or {model_id}"
            )
            session.output.notice(
                f"the library now has {len(files)} files of `{name}`; {meaning}. The refs of the files are: {refs}"
            )


def report(outcomes: "Sequence[Outcome]", needs: "Needs | None" = None) -> Result:
    """Build the result of downloads. Raises: the download's error, if there was only one download and it failed.

    `needs`: the separate parts that each stored checkpoint needs for rendering, by the checkpoint's digest.
    """
    from civman.errors import PartlyFailedError

    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) == 1 and outcomes[0].error is not None:
        raise outcomes[0].error
    error = None
    if failed and failed[0].error is not None:
        error = PartlyFailedError(
            f"{len(failed)} of {len(outcomes)} downloads failed: {', '.join(outcome.ref for outcome in failed)}",
            exit_code=failed[0].error.exit_code,
            refs=[outcome.ref for outcome in failed],
        )
    return Result(
        "download",
        [_value(outcome, needs or {}) for outcome in outcomes],
        human=lambda console: _print(console, outcomes, needs or {}),
        ids=(outcome.asset.blob.sha256 for outcome in outcomes if outcome.asset is not None),
        error=error,
    )


def _value(outcome: "Outcome", needs: "Needs") -> dict[str, object]:
    return {
        "asked": outcome.ref,
        "ref": outcome.asset.ref if outcome.asset is not None else outcome.ref,
        "asset": outcome.asset,
        "was_present": outcome.was_present,
        "needs": needs.get(outcome.asset.blob.sha256, ()) if outcome.asset is not None else (),
        "error": error_value(outcome.error) if outcome.error is not None else None,
    }


def _print(console: "Console", outcomes: "Sequence[Outcome]", needs: "Needs") -> None:
    from civman.domain.catalog import OTHER_CONTENTS
    from civman.domain.file_suffixes import MODEL_SUFFIXES

    for outcome in outcomes:
        asset = outcome.asset
        if asset is not None:
            how = "was already in the library" if outcome.was_present else "downloaded and verified"
            title = clean(f"{asset.model_name} {asset.version_name}".strip() or asset.name)
            console.print(f"{title}: {how}, {size(asset.blob.size_bytes)}, sha256 {asset.blob.sha256[:12]}…")
            if asset.blob.suffix not in MODEL_SUFFIXES or asset.type in OTHER_CONTENTS:
                kind = asset.blob.suffix or "a file without an extension"
                listed = clean(asset.type_raw or asset.type)
                console.print(f"  not a model: {clean(kind)}, listed on CivitAI as {listed}")
            if asset.trained_words:
                console.print(f"  trigger words: {clean(', '.join(asset.trained_words))}")
            for conflict in asset.facts.conflicts:
                console.print(f"  caution: {clean(conflict)}")
            for part in needs.get(asset.blob.sha256, ()):
                from civman.planning.needed_parts import said

                console.print(f"  {clean(said(part))}")
        elif outcome.error is not None:
            error = outcome.error
            console.print(f"{outcome.ref}: failed [{error.code}]: {clean(error.message)}", style="red")
            if error.hint:
                console.print(f"  {clean(error.hint)}")
