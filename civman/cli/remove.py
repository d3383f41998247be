"""`civman remove`."""

from typing import TYPE_CHECKING

from civman.cli.options import JsonOpt, LibraryOpt, QuietOpt, RefsArg, YesOpt, given_refs, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from rich.console import Console

    from civman.upkeep import RemovalPlan


def remove(
    refs: RefsArg = None,
    yes: YesOpt = False,
    library: LibraryOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove files from the library; shows what goes, and asks."""
    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, True, output) as opened:
        plan = opened.plan_removal(given_refs(refs))
        if not yes:
            _print(output.console(to_stderr=True), plan)
            if not output.confirm(f"Remove {len(plan.assets)} files and free {size(plan.freed_bytes)}?"):
                output.notice("nothing was removed")
                return
        freed = opened.remove(plan)
    output.result(
        "remove",
        {"removed": plan.assets, "kept_for": plan.kept, "freed_bytes": freed},
        human=lambda console: console.print(f"removed {len(plan.assets)} files, {size(freed)} are free again"),
        ids=(asset.blob.sha256 for asset in plan.assets),
    )


def _print(console: "Console", plan: "RemovalPlan") -> None:
    for asset in plan.assets:
        title = f"{asset.model_name} {asset.version_name}".strip() or asset.name
        console.print(f"  {clean(title)}  {clean(asset.name)}  {size(asset.blob.size_bytes)}  {asset.blob.sha256[:10]}")
    for asset in plan.kept:
        console.print(
            f"  the bytes of {asset.blob.sha256[:10]} stay: {clean(asset.model_name or asset.name)} needs them"
        )
