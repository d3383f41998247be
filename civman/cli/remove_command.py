"""The commands `civman remove` and `civman restore`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import FileOpt, RefsArg, YesOpt, given_refs
from civman.cli.output import Result, clean, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.manage.remove import RemovalPlan, Restored
    from civman.store.trash import Removal


@command(needs_library=True)
def remove(
    session: Session,
    refs: RefsArg = None,
    file: FileOpt = None,
    yes: YesOpt = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove files that are pinned or used by a recipe.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
) -> Result | None:
    """Move files to the library's trash, after asking. `civman restore` restores them."""
    plan = session.library.trash.plan_removal(given_refs(refs), file=file)
    question = f"Move {_files(len(plan.assets))}, {size(plan.freed_bytes)}, to the trash?"
    is_agreed = yes or dry_run
    if not is_agreed and not session.confirm(question, lambda out: _print(out, plan), otherwise="nothing was removed"):
        return None
    removal = None if dry_run else session.library.remove(plan, force=force)
    value = {
        "removal": removal.id if removal is not None else None,
        "removed": plan.assets,
        "kept_for": plan.kept,
        "outside": plan.outside,
        "pinned": plan.pinned,
        "pictures": plan.pictures,
        "freed_bytes": plan.freed_bytes,
    }
    return Result(
        "remove",
        value,
        human=lambda console: _print(console, plan) if removal is None else _print_removed(console, plan),
        ids=(asset.blob.sha256 for asset in plan.assets),
    )


@command(needs_library=True)
def restore(
    session: Session,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[REF]", help="The removal to undo; default: the most recent one."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the contents of the trash.")] = False,
) -> Result:
    """Restore removed files, with your notes and tags."""
    from civman.errors import IntegrityError

    if listed:
        removals = session.library.trash.list()
        return Result(
            "trash",
            [_removal_value(removal) for removal in removals],
            human=lambda console: _print_trash(console, removals),
            ids=(removal.id for removal in removals),
        )
    restored = session.library.trash.restore(name)
    error = None
    if restored.lost:
        error = IntegrityError(
            f"not restored, because the files are missing or have changed: {', '.join(restored.lost)}",
            hint="download the files again with `civman download`",
        )
    return Result(
        "restore",
        restored,
        human=lambda console: _print_restored(console, restored),
        ids=[restored.removal],
        error=error,
    )


def _print(console: "Console", plan: "RemovalPlan") -> None:
    gone = {blob.sha256 for blob in plan.blobs}
    for asset in plan.assets:
        title = f"{asset.model_name} {asset.version_name}".strip() or asset.name
        console.print(f"  {clean(title)}  {clean(asset.name)}  {size(asset.blob.size_bytes)}  {asset.blob.sha256[:10]}")
        if asset.alias:
            console.print(f"    the alias {clean(asset.alias)} is removed too")
        if asset.pins and asset.blob.sha256 in gone:
            console.print(f"    pinned: {clean(', '.join(asset.pins))}; only --force removes it")
    for asset in plan.outside:
        console.print(f"only removed from the index; the file stays where it is: {clean(asset.path)}")
    for asset in plan.kept:
        title = f"{asset.model_name} {asset.version_name}".strip() or asset.name
        console.print(f"  the file {asset.blob.sha256[:10]} is kept, because {clean(title)} needs it")
    for line in _pictures(plan):
        console.print(f"  {line}")


def _print_removed(console: "Console", plan: "RemovalPlan") -> None:
    console.print(
        f"moved {_files(len(plan.assets))}, {size(plan.freed_bytes)}, to the trash: "
        "`civman restore` undoes it, `civman gc` frees the space after 30 days",
        soft_wrap=True,
    )
    for line in _pictures(plan):
        console.print(line)


def _pictures(plan: "RemovalPlan") -> list[str]:
    if not plan.pictures:
        return []
    return [
        f"images in this library that were made with these files: {plan.pictures:,}; to replay them, "
        "`civman replay … --fetch` would have to download the files again"
    ]


def _removal_value(removal: "Removal") -> dict[str, object]:
    return {
        "id": removal.id,
        "removed_at": removal.removed_at,
        "reason": removal.reason,
        "size_bytes": removal.size_bytes,
        "files": [{"name": entry.get("name"), "sha256": entry["sha256"]} for entry in removal.entries],
    }


def _print_trash(console: "Console", removals: "Sequence[Removal]") -> None:
    for removal in removals:
        names = [str(entry.get("name") or entry["sha256"]) for entry in removal.entries]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        told = {
            "gc": "removed by `civman gc`: it was not in the index",
            "broken": "corrupt, replaced by `civman verify --repair`",
        }.get(removal.reason, "")
        console.print(
            f"{removal.id}  {removal.removed_at:%Y-%m-%d %H:%M}  {size(removal.size_bytes)}  "
            f"{clean(', '.join(names[:3]))}{more}{f'  ({told})' if told else ''}"
        )
    if not removals:
        console.print("the trash is empty; `civman remove REF` moves files there")


def _print_restored(console: "Console", restored: "Restored") -> None:
    console.print(f"restored to the library: {_files(restored.assets)}")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
