"""The commands `civman gc` and `civman du`."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import YesOpt
from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.disk_usage import Usage
    from civman.manage.remove import Collection


@command(needs_library=True, network="option")
def gc(
    session: Session,
    yes: YesOpt = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be freed.")] = False,
    partials: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="DAYS",
            help="Delete partial downloads and images from CivitAI older than this many days.",
        ),
    ] = 14,
    trash: Annotated[
        int, typer.Option(min=0, metavar="DAYS", help="Permanently delete files removed more than this many days ago.")
    ] = 30,
    safe_copies: Annotated[
        bool,
        typer.Option(
            "--safe-copies",
            help="Delete the safetensors copies of pickles; they are created again when they are needed.",
        ),
    ] = False,
    trust_store: Annotated[
        bool,
        typer.Option(
            "--trust-store",
            help="Also delete pinned files in old trash if the object store has a copy, which is verified first.",
        ),
    ] = False,
    store_leftovers: Annotated[
        bool,
        typer.Option(
            "--store-leftovers", help="Delete sidecars and previews that interrupted uploads left in the object store."
        ),
    ] = False,
) -> Result | None:
    """Free disk space: delete old trash and partial downloads, and move files missing from the index to the trash."""
    maintenance = session.library.maintenance
    plan = maintenance.plan_gc(
        partials_after=timedelta(days=partials), trash_after=timedelta(days=trash), all_copies=safe_copies,
        trusts_store=trust_store, drops_leftovers=store_leftovers,
    )  # fmt: skip
    is_carried_out = not plan.is_empty and not dry_run
    if is_carried_out and not yes:
        question = f"Free {size(plan.freed_bytes)}?"
        if not session.confirm(question, lambda console: _print(console, plan), otherwise="nothing was freed"):
            return None
    freed = maintenance.gc(plan) if is_carried_out else 0
    value = {
        "orphans": plan.orphans,
        "partials": plan.partials,
        "trash": [
            {"id": gone.id, "removed_at": gone.removed_at, "size_bytes": gone.size_bytes} for gone in plan.removals
        ],
        "copies": plan.copies,
        "served": plan.served,
        "originals": plan.originals,
        "kept_pinned": plan.kept,
        "in_object_store": plan.elsewhere,
        "store_leftovers": plan.leftovers,
        "freed_bytes": freed,
    }
    return Result(
        "gc",
        value,
        human=lambda console: (
            _print(console, plan) if dry_run or plan.is_empty else console.print(f"freed {size(freed)}")
        ),
        ids=(blob.sha256 for blob in plan.orphans),
    )


@command(needs_library=True)
def du(
    session: Session,
    by: Annotated[
        str, typer.Option("--by", help="Group by type, base-model, architecture or used (time of last use).")
    ] = "type",
) -> Result:
    """Show how much disk space the library uses, by type, base model, architecture or last use."""
    usage = session.library.maintenance.disk_usage(by)
    return Result(
        "du",
        usage,
        human=lambda console: _print_usage(console, usage),
        ids=(f"{share.size_bytes} {share.label}" for share in usage.shares),
    )


def _print(console: "Console", plan: "Collection") -> None:
    for blob in plan.orphans:
        console.print(
            f"  move to the trash: {blob.sha256[:10]}  {size(blob.size_bytes)}  it is not in the index", soft_wrap=True
        )
    for partial in plan.partials:
        console.print(
            f"  delete permanently: {clean(partial.path.stem[:20])}  {size(partial.size_bytes)}  "
            f"partial download, last used {partial.touched_at:%Y-%m-%d}",
            soft_wrap=True,
        )
    for removal in plan.removals:
        names = ", ".join(str(entry.get("name") or entry["sha256"]) for entry in removal.entries[:3])
        when = f"removed {removal.removed_at:%Y-%m-%d}" if names else "left in the trash by an interrupted `gc`"
        console.print(f"  delete permanently: {clean(names)}  {size(removal.size_bytes)}  {when}", soft_wrap=True)
    for copy in plan.copies:
        console.print(
            f"  delete permanently: {copy.name[:10]}  {size(copy.stat().st_size)}  safetensors copy of a pickle"
        )
    if plan.served:
        console.print(
            f"  delete permanently: {counted(len(plan.served), 'file')} of `civman serve` (thumbnails and input images)"
        )
    if plan.originals:
        console.print(f"  delete permanently: {counted(len(plan.originals), 'original')} of images on CivitAI")
    _print_store(console, plan)
    if plan.is_empty:
        console.print("there is nothing to free")


def _print_store(console: "Console", plan: "Collection") -> None:
    elsewhere = {copy.sha256: copy.is_verified for copy in plan.elsewhere}
    for sha256 in plan.kept:
        reason = (
            "pinned, and its only other copy is in the object store; --trust-store deletes it"
            if sha256 in elsewhere
            else "pinned, and this is its last copy"
        )
        console.print(f"  keep in the trash: {sha256[:10]}  {reason}", soft_wrap=True)
    doomed = {sha256 for removal in plan.removals for sha256 in removal.digests}
    for sha256, is_verified in elsewhere.items():
        if sha256 in doomed:
            how = "SHA-256 verified there" if is_verified else "not verified"
            console.print(f"  {sha256[:10]} will remain only in the object store ({how})", soft_wrap=True)
    for left in plan.leftovers:
        what = "delete from the object store" if plan.drops_leftovers else "keep in the object store"
        console.print(
            f"  {what}: {left.key.rpartition('/')[2][:10]}  {size(left.size_bytes)}  "
            f"{'preview' if '.preview.' in left.key else 'sidecar'} without its file, {left.written_at:%Y-%m-%d}",
            soft_wrap=True,
        )


def _print_usage(console: "Console", usage: "Usage") -> None:
    columns = (
        Column(usage.group.replace("_", " ")), Column("files", is_whole=True, is_right=True),
        Column("size", is_whole=True, is_right=True),
    )  # fmt: skip
    rows = [[share.label or "not known", f"{share.count:,}", size(share.size_bytes)] for share in usage.shares]
    print_table(console, columns, rows)
    parts = {
        "in the store": usage.store_bytes,
        "safetensors copies of pickles": usage.safe_copy_bytes,
        "outside the store": usage.outside_bytes,
        "partial downloads": usage.partial_bytes,
        "originals of images on CivitAI": usage.originals_bytes,
        "trash": usage.trash_bytes,
        "index": usage.index_bytes,
    }
    console.print(" · ".join(f"{name} {size(count)}" for name, count in parts.items() if count))
