"""The commands `civman outdated` and `civman update`."""

from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.options import RefsArg, YesOpt
from civman.cli.output import Result, clean, counted, size
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.outdated import Offer, UpdateReport

AnyBaseOpt = Annotated[bool, typer.Option("--any-base", help="Include newer versions made for a different base model.")]


@command(network="option", needs_library=True)
def outdated(
    session: Session,
    refs: RefsArg = None,
    any_base: AnyBaseOpt = False,
) -> Result:
    """List newer versions on CivitAI, files that were replaced there, and models that were deleted."""
    found = session.library.updates.find(refs or (), any_base=any_base)
    return Result("outdated", _value(found), human=lambda console: _print(console, found), ids=found.refs)


@command(network="option", needs_library=True)
def update(
    session: Session,
    refs: RefsArg = None,
    any_base: AnyBaseOpt = False,
    early_access: Annotated[
        bool, typer.Option("--early-access", help="Include versions in early access that your account has bought.")
    ] = False,
    yes: YesOpt = False,
) -> Result | None:
    """Download the newer versions that `civman outdated` lists, after asking. Older files are kept."""
    from civman.cli.download_command import note_ambiguous, report

    found = session.library.updates.find(refs or (), any_base=any_base)
    wanted = [*found.refs, *(offer.ref for offer in found.early_access if early_access)]
    if not wanted:
        return Result("outdated", _value(found), human=lambda console: _print(console, found))
    if not yes:
        more = sum(offer.size_bytes or 0 for offer in found.early_access if early_access)
        question = f"Download {counted(len(wanted), 'file')}, {size(found.total_bytes + more)}?"
        if not session.confirm(question, lambda console: _print(console, found), otherwise="nothing was downloaded"):
            return None
    with session.downloading(len(wanted)) as on_event:
        outcomes = session.library.downloads.fetch_all(wanted, on_event=on_event)
    for each in found.replaced:
        session.output.notice(f"the old version of `{each.file_name}` stays in the library in addition to the new one")
    note_ambiguous(session, outcomes)
    return report(outcomes)


def _value(found: "UpdateReport") -> dict[str, object]:
    return {
        "offers": found.offers,
        "early_access": found.early_access,
        "replaced": found.replaced,
        "lost": found.lost,
        "models": found.models,
        "unknown": found.unknown,
        "same_bytes": found.same_bytes,
        "total_bytes": found.total_bytes,
    }


def _print(console: "Console", found: "UpdateReport") -> None:
    for offer in found.offers:
        _print_offer(console, offer)
    for each in found.replaced:
        console.print(
            f"WARNING  {clean(each.model_name)} {clean(each.version_name)}: CivitAI replaced the contents of"
            f" {clean(each.file_name)} under the same id ({each.held_sha256[:10]} is in the library,"
            f" {each.declared_sha256[:10]} is on CivitAI now)  {size(each.size_bytes)}  {each.ref}",
            style="red",
            soft_wrap=True,
        )
    for offer in found.early_access:
        _print_offer(console, offer)
    for lost in found.lost:
        what = {
            "model-deleted": "CivitAI deleted this model",
            "version-deleted": f"CivitAI deleted version {clean(lost.version_name)}",
            "archived": "archived: CivitAI no longer provides its files",
            "taken-down": "taken down by CivitAI",
            "unclear": "CivitAI lists no versions of this model at the moment; try again later",
        }[lost.loss]
        kept = "" if lost.loss == "unclear" else f"; the library keeps {counted(lost.assets, 'file')} of the model"
        console.print(f"{clean(lost.model_name)}: {what}{kept}", style="yellow", soft_wrap=True)
    unknown = f"; {counted(found.unknown, 'file')} not known to CivitAI" if found.unknown else ""
    if found.refs:
        console.print(f"{counted(len(found.refs), 'file')} to download, {size(found.total_bytes)} in all{unknown}")
    else:
        console.print(f"no newer versions of {counted(found.models, 'model')}{unknown}")
    if found.same_bytes:
        has = "has" if found.same_bytes == 1 else "have"
        console.print(
            f"{counted(found.same_bytes, 'newer version')} {has} the same contents as files in the library, "
            "so there is nothing to download"
        )


def _print_offer(console: "Console", offer: "Offer") -> None:
    words = [f"{clean(offer.held_version_name)} → {clean(offer.version_name)}"]
    if offer.base_model != offer.held_base_model:
        words.append(f"{clean(offer.held_base_model or '?')} → {clean(offer.base_model or '?')}")
    words += [f"{offer.published_at:%Y-%m-%d}"] if offer.published_at else []
    words.append(f"{size(offer.size_bytes)} (yours: {size(offer.held_size_bytes)})")
    words.append(offer.ref)
    if offer.is_gated:
        words.append(f"early access{f' until {offer.ends_at:%Y-%m-%d}' if offer.ends_at else ''}")
    console.print(f"{clean(offer.model_name)}: {'  '.join(words)}", soft_wrap=True)
    if offer.description:
        console.print(f"  {clean(offer.description)}", soft_wrap=True)
