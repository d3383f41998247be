"""The command `civman link`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion
from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from civman.exchange.view_links import Linked, Step, ViewPlan


@command(needs_library=True)
def link(
    session: Session,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The folder in which the other program looks for models.", show_default=False
        ),
    ],
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF]...", help="The library's files to link; default: all.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            "-l",
            autocompletion=completion.layouts,
            help="The program that the folder belongs to: comfyui, a1111, forge, invokeai or swarmui.",
        ),
    ] = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            autocompletion=completion.model_types,
            help="Only models of this type, such as LORA (repeatable)",
        ),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model",
            "-b",
            autocompletion=completion.base_models,
            help='Only models with this CivitAI base model, such as "SDXL 1.0" (repeatable)',
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Link all files again, after an earlier run linked only some of them."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="How to create the files: reflink, hardlink, symlink or copy.",
            show_default="the first of them that works",
        ),
    ] = None,
    sidecars: Annotated[
        bool | None,
        typer.Option(
            "--sidecars/--no-sidecars",
            help="Write descriptions and preview images next to the models, or leave them out.",
        ),
    ] = None,
    safe: Annotated[
        bool | None,
        typer.Option("--safe/--no-safe", help="Link a safetensors copy of each pickle instead of the pickle."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be changed.")] = False,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Remove all files that civman created in the folder; the library is not changed."
        ),
    ] = False,
) -> Result:
    """Link the library's files into another program's folders under readable names, without copying them.

    Run the command again to refresh the links. It changes and removes only files that it created itself.
    """
    from civman.domain.search_query import model_type_named
    from civman.exchange.view_request import ViewRequest

    if remove:
        steps = session.library.views.remove(folder)
        return Result(
            "unlink", _rows(steps), human=lambda console: _print_removed(console, folder, steps), ids=_paths(steps)
        )
    request = ViewRequest(
        layout=layout,
        method=method,
        has_companions=sidecars,
        is_safe=safe,
        refs=tuple(refs or ()),
        types=tuple(model_type_named(name) for name in type_ or []),
        base_models=tuple(base_model or ()),
        everything=everything,
        is_dry_run=dry_run,
    )
    plan = session.library.views.plan(folder, request)
    linked = None if dry_run else session.library.views.link(plan)
    return Result(
        "link",
        _value(plan, linked),
        human=lambda console: _print(console, plan, linked),
        ids=_paths(plan.steps),
    )


def _value(plan: "ViewPlan", linked: "Linked | None") -> dict[str, object]:
    return {
        "folder": plan.folder,
        "layout": plan.layout.name,
        "is_done": linked is not None,
        "methods": _methods(linked) if linked is not None else {},
        "notices": linked.notices if linked is not None else [],
        "steps": _rows(plan.steps, linked),
        "skipped": [
            {"name": each.asset.name, "sha256": each.asset.blob.sha256, "reason": each.reason} for each in plan.skipped
        ],
    }


def _rows(steps: "Iterable[Step]", linked: "Linked | None" = None) -> list[dict[str, object]]:
    made = {entry.path: entry for entry in linked.entries} if linked is not None else {}
    return [
        {
            "act": step.act,
            "path": step.path,
            "old_path": step.old_path or None,
            "kind": step.entry.kind,
            "sha256": step.entry.of,
            "size_bytes": step.entry.size_bytes,
            "method": made[step.path].method if step.path in made else None,
            "reason": step.reason or None,
        }
        for step in steps
    ]


def _paths(steps: "Iterable[Step]") -> "list[str]":
    return [step.path for step in steps if step.act != "remove"]


def _methods(linked: "Linked") -> dict[str, int]:
    counts = Counter(entry.method.value for entry in linked.entries if entry.kind == "model")
    return dict(sorted(counts.items()))


def _print(console: "Console", plan: "ViewPlan", linked: "Linked | None") -> None:
    for step in plan.steps:
        if step.act != "keep" and (step.entry.kind == "model" or step.act == "leave"):
            old = f"{clean(step.old_path)} → " if step.old_path else ""
            console.print(
                f"  {step.act.value:<7}{old}{clean(step.path)}"
                + (f"  ({clean(step.reason)})" if step.reason else f"  {size(step.entry.size_bytes)}"),
                soft_wrap=True,
            )
    for skipped in plan.skipped:
        console.print(f"  skip   {clean(skipped.asset.name)}  ({clean(skipped.reason)})", soft_wrap=True)
    models = [step for step in plan.steps if step.entry.kind == "model" and step.act != "remove"]
    beside = [step for step in plan.steps if step.entry.kind != "model" and step.act != "remove"]
    if linked is None:
        console.print(
            f"{counted(len(models), 'model')} and {counted(len(beside), 'companion file')} to link; "
            "nothing was changed (--dry-run)"
        )
        return
    for notice in linked.notices:
        console.print(f"note: {clean(notice)}")
    how = ", ".join(f"{count} by {method}" for method, count in _methods(linked).items()) or "none"
    written = sum(entry.size_bytes for entry in linked.entries if entry.kind != "model" or entry.method == "copy")
    console.print(
        f"{clean(str(plan.folder))}: {counted(len(models), 'model')} for {plan.layout.name} ({how}),"
        f" {counted(len(beside), 'companion file')}; disk used: {size(written)}",
        soft_wrap=True,
    )


def _print_removed(console: "Console", folder: Path, steps: "Sequence[Step]") -> None:
    for step in steps:
        if step.act == "leave":
            console.print(f"  left    {clean(step.path)}  ({clean(step.reason)})", soft_wrap=True)
    gone = sum(step.act == "remove" for step in steps)
    console.print(
        f"removed {counted(gone, 'file')} of the view from {clean(str(folder))}; the library is unchanged",
        soft_wrap=True,
    )
