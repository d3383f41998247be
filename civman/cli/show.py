"""`civman show`."""

from typing import TYPE_CHECKING

from civman.cli.options import JsonOpt, LibraryOpt, OfflineOpt, QuietOpt, RefArg, open_library
from civman.cli.output import Output, clean, size

if TYPE_CHECKING:
    from rich.console import Console

    from civman.domain.catalog import Asset, Licence, ModelFile, ModelVersion
    from civman.domain.digests import Sha256
    from civman.library import Shown


def show(
    ref: RefArg,
    library: LibraryOpt = None,
    offline: OfflineOpt = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Tell all about a model: versions, files, hashes, trigger words, licence, and what of it is here."""
    output = Output(as_json=as_json, quiet=quiet)
    with open_library(library, offline, output) as opened:
        shown = opened.show(ref)
    meant = shown.meant
    value = {
        "model": meant.page.model,
        "version": meant.version,
        "versions": meant.page.versions,
        "held": shown.assets,
        "is_saved_copy": meant.is_saved_copy,
        "saved_at": meant.saved_at,
    }
    output.result(
        "show",
        value,
        human=lambda console: _print(console, shown),
        ids=(version.id for version in meant.page.versions),
    )


def _print(console: "Console", shown: "Shown") -> None:
    from rich.table import Table
    from rich.text import Text

    model, chosen = shown.meant.page.model, shown.meant.version
    console.print(Text(clean(model.name), style="bold"), f"({model.type_raw}, model {model.id})")
    about = [f"by {clean(model.creator)}"] if model.creator else []
    about += [f"{model.download_count:,} downloads"] if model.download_count is not None else []
    about += [model.mode.lower()] if model.mode else []
    about += [f"tags: {clean(', '.join(model.tags))}"] if model.tags else []
    console.print(" · ".join(about))
    console.print(f"licence: {licence_words(model.licence)}")
    held = {asset.blob.sha256: asset for asset in shown.assets}
    for version in shown.meant.page.versions:
        console.print()
        mark = "→ " if version.id == chosen.id else "  "
        console.print(Text(f"{mark}{clean(version.name)}", style="bold"), f"@{version.id}", _about(version))
        if version.trained_words:
            console.print(f"  trigger words: {clean(', '.join(version.trained_words))}")
        table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
        for file in version.files:
            table.add_row("", *_file_row(file, held))
        console.print(table)
        for asset in shown.assets:
            if asset.version_id == version.id:
                for conflict in asset.facts.conflicts:
                    console.print(f"  contradiction in {clean(asset.name)}: {clean(conflict)}", style="red")


def facts_words(asset: "Asset") -> str:
    """What the file shows of itself, in a few words: "checkpoint sd1 fp16"."""
    facts = asset.facts
    words = (facts.adapter or facts.kind, facts.architecture, facts.precision, *facts.flags)
    return " ".join(word for word in words if word) or asset.blob.suffix.lstrip(".")


def _about(version: "ModelVersion") -> str:
    words = [version.base_model or "base model not said"]
    words += [f"published {version.published_at:%Y-%m-%d}"] if version.published_at else []
    if version.gate is not None:
        end = version.gate.ends_at
        words.append(
            "paid access" if version.gate.permanent else f"early access{f' until {end:%Y-%m-%d}' if end else ''}"
        )
    words += ["cannot be downloaded"] if version.usage_control not in (None, "Download") else []
    return " · ".join(clean(word) for word in words)


def _file_row(file: "ModelFile", held: "dict[Sha256, Asset]") -> list[str]:
    facts = [file.type, file.precision, file.size_class, "primary" if file.is_primary else None]
    sha256 = file.hashes.sha256
    asset = held.get(sha256) if sha256 is not None else None
    scans = {scan.value for scan in (file.pickle_scan, file.virus_scan)} & {"Danger", "Error", "Pending"}
    return [
        str(file.id or "?"),
        clean(file.name),
        size(file.size_bytes),
        " ".join(fact for fact in facts if fact),
        f"sha256 {sha256[:12]}…" if sha256 else "no hash",
        f"here: {facts_words(asset)}" if asset is not None else "",
        f"scan: {', '.join(sorted(scans))}" if scans else "",
    ]


def licence_words(licence: "Licence") -> str:
    """What the creator allows, in words."""
    if licence.commercial_use is None:
        return "not said"
    uses = {
        "Image": "sell pictures",
        "RentCivit": "run on CivitAI for pay",
        "Rent": "run for pay",
        "Sell": "sell the model",
    }
    allowed = [uses.get(use, use) for use in licence.commercial_use]
    words = ["may " + ", ".join(allowed) if allowed else "no commercial use"]
    if licence.credit_required is not None:
        words.append("credit required" if licence.credit_required else "no credit required")
    if licence.derivatives_allowed is not None:
        words.append("merges allowed" if licence.derivatives_allowed else "no merges")
    return "; ".join(words)
