"""The command `civman show`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli.edit_command import own_lines
from civman.cli.options import RefArg
from civman.cli.output import Result, clean, size
from civman.cli.picture_output import is_site_image, picture_path, show_picture
from civman.cli.picture_preview import Viewing, viewed
from civman.cli.session import Session, command
from civman.cli.table_layout import Column, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from civman.domain.catalog import Asset, Model, ModelFile, ModelVersion
    from civman.domain.digests import Sha256
    from civman.domain.licence import Terms
    from civman.manage.places import Presence
    from civman.manage.resolve import ResolvedVersion

    Absences = Mapping[Sha256, Presence]

_FILE_COLUMNS = (
    Column("indent", is_whole=True), Column("ref", "cyan", is_whole=True), Column("name"),
    Column("size", is_whole=True), Column("facts", drop=1), Column("sha256", "dim", is_whole=True, drop=3),
    Column("here", drop=2), Column("scan", "red"),
)  # fmt: skip
"""The columns of the table of files: an empty one as indentation, then those that `_file_row` fills."""


@command(network="option")
def show(
    session: Session,
    ref: RefArg,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="For an image: print only its recipe as JSON, for `civman replay`.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Show the example images of the version in the terminal.")
    ] = False,
    unblurred: Annotated[
        bool, typer.Option("--unblurred", help="With --pictures: do not blur images rated above PG-13.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --pictures: save the contact sheet as this PNG file instead."),
    ] = None,
) -> Result | None:
    """Show all information about a model or an image.

    For a model: versions, files, hashes, trigger words, licence, and which files are in the library. For a PNG, JPEG or
    WebP made by any program: prompts, settings, models, which of these are in the library, and civman's recipe. For the
    URL of an image on CivitAI: prompts, settings, models, which of these are in the library, and whether `civman
    replay` can render it again.
    """
    from civman.domain.refs import ModelRef
    from civman.domain.replaced_upstream import replaced  # the import takes 0.02 s, which --help can skip
    from civman.errors import UsageError

    if (output is not None or unblurred) and not pictures:
        raise UsageError("--output and --unblurred require --pictures", hint="add --pictures")
    if is_site_image(ref):
        from civman.cli.site_image_output import show_site_image

        return show_site_image(session, ref, recipe=recipe)
    if (path := picture_path(session.library, ref)) is not None:
        shown_picture = show_picture(session.library, path, recipe=recipe)
        return viewed(session, shown_picture, [path], Viewing(opens=False)) if shown_picture is not None else None
    if recipe:
        raise UsageError(f"`{ref}` is not an image", hint="--recipe prints the recipe of a PNG, JPEG or WebP image")
    shown = session.library.show(ref)
    from civman.manage.listed_values import asset_values

    absent = session.library.files.absences(shown.assets)
    resolved, model, held = shown.resolved, shown.model, asset_values(shown.assets, absent)
    if model is not None:
        ref = str(ModelRef(model.id))
        return Result(
            "show",
            {"ref": ref, "model": model, "version": None, "versions": [], "held": held},
            human=lambda console: _print_without_versions(console, model, shown.assets, absent),
            ids=[asset.ref for asset in shown.assets] or [ref],
        )
    if resolved is None:
        asset = shown.assets[0]
        return Result(
            "show",
            {"ref": asset.ref, "model": None, "version": None, "versions": [], "held": held},
            human=lambda console: _print_unlisted(console, asset, absent),
            ids=[asset.ref],
        )
    versions = resolved.page.versions
    value = {
        "ref": _version_ref(resolved.version, shown.assets),
        "model": resolved.page.model,
        "version": resolved.version,
        "versions": versions,
        "licence": licence_terms(resolved.version),
        "held": held,
        "replaced": [each for version in versions for each in replaced(version, shown.assets)],
        "is_saved_copy": resolved.is_saved_copy,
        "saved_at": resolved.saved_at,
    }
    result = Result(
        "show",
        value,
        human=lambda console: _print(console, resolved, shown.assets, absent),
        ids=(_version_ref(version, shown.assets) for version in versions),
    )
    if not pictures:
        return result
    from civman.cli.example_pictures import with_examples  # imported here, because only --pictures needs it

    return with_examples(session, result, resolved.version, shows_all=unblurred, output=output)


def _print_unlisted(console: "Console", asset: "Asset", absent: "Absences") -> None:
    """Print a stored file that is not on CivitAI."""
    from rich.text import Text

    console.print(Text(clean(asset.name), style="bold"), f"{asset.ref}  {size(asset.blob.size_bytes)}")
    from civman.domain.file_suffixes import PICKLE_SUFFIXES

    about = f" ({pickle_words(asset)})" if asset.blob.suffix in PICKLE_SUFFIXES else ""
    console.print(f"  kind    {clean(facts_words(asset))}{about}")
    console.print(f"  sha256  {asset.blob.sha256}")
    state = absent.get(asset.blob.sha256)
    console.print(f"  place   {clean(asset.path)}{f' ({state})' if state else ''}", soft_wrap=True)
    console.print(f"  added   {asset.added_at:%Y-%m-%d}; CivitAI did not know the file at that time")
    if asset.facts.trigger_words:
        console.print(f"  trigger words in the file's metadata: {clean(', '.join(asset.facts.trigger_words))}")
    for conflict in asset.facts.conflicts:
        console.print(f"  contradiction: {clean(conflict)}", style="red")
    for line in own_lines(asset):
        console.print(f"  {line}")


def _print_model(console: "Console", model: "Model") -> None:
    from rich.text import Text

    from civman.domain.licence import licence_words

    console.print(Text(clean(model.name), style="bold"), f"({model.type_raw}, model {model.id})")
    about = [f"by {clean(model.creator)}"] if model.creator else []
    about += [f"{model.download_count:,} downloads"] if model.download_count is not None else []
    about += [model.mode.lower()] if model.mode else []
    about += [f"tags: {clean(', '.join(model.tags))}"] if model.tags else []
    console.print(" · ".join(about))
    console.print(f"licence: {licence_words(model.licence)}")


def _print_without_versions(console: "Console", model: "Model", assets: "Sequence[Asset]", absent: "Absences") -> None:
    _print_model(console, model)
    console.print("\nCivitAI lists no version of this model at the moment", soft_wrap=True)
    _print_others(console, assets, absent)


def _print_others(console: "Console", assets: "Sequence[Asset]", absent: "Absences") -> None:
    """Print the stored files that CivitAI no longer lists: their version was deleted, or their contents replaced."""
    if not assets:
        return
    console.print("\nfiles in the library that CivitAI no longer lists")
    rows = [
        [
            " ", asset.ref, clean(asset.name), size(asset.blob.size_bytes), clean(asset.version_name),
            asset.blob.sha256[:12], _stored_words(asset, absent), "",
        ]
        for asset in assets
    ]  # fmt: skip
    print_table(console, _FILE_COLUMNS, rows, has_header=False)


def _print(console: "Console", resolved: "ResolvedVersion", assets: "Sequence[Asset]", absent: "Absences") -> None:
    from rich.text import Text

    from civman.domain.replaced_upstream import replaced  # the import takes 0.02 s, which --help can skip

    chosen = resolved.version
    _print_model(console, resolved.page.model)
    terms = licence_terms(chosen)
    for line in (*terms.words, *terms.reasons):
        console.print(f"  {clean(line)}", soft_wrap=True)
    held = {asset.blob.sha256: asset for asset in assets}
    for version in resolved.page.versions:
        console.print()
        mark = "→ " if version.id == chosen.id else "  "
        console.print(Text(f"{mark}{clean(version.name)}", style="bold"), f"version {version.id}", _about(version))
        held_here = [asset for asset in assets if asset.version_id == version.id]
        for line in _trigger_lines(version, held_here):
            console.print(f"  {line}")
        rows = [[" ", *_file_row(version, file, held, absent)] for file in version.files]
        print_table(console, _FILE_COLUMNS, rows, has_header=False)
        for each in replaced(version, held_here):
            console.print(
                f"  CivitAI replaced the contents of {clean(each.file_name)}: {each.held_sha256[:12]} is in the "
                "library,"
                f" {each.declared_sha256[:12]} is on CivitAI now",
                style="red",
                soft_wrap=True,
            )
        for asset in held_here:
            for conflict in asset.facts.conflicts:
                console.print(f"  contradiction in {clean(asset.name)}: {clean(conflict)}", style="red")
            for line in own_lines(asset):
                console.print(f"  {line}")
    listed = {file.hashes.sha256 for version in resolved.page.versions for file in version.files}
    _print_others(console, [asset for asset in assets if asset.blob.sha256 not in listed], absent)


def _stored_words(asset: "Asset", absent: "Absences") -> str:
    return f"{absent.get(asset.blob.sha256, 'stored')}: {facts_words(asset)}"


def facts_words(asset: "Asset") -> str:
    """Describe in a few words what was read from a file's header, such as "checkpoint sd1 fp16"."""
    facts = asset.facts
    words = (facts.adapter or facts.kind, facts.architecture, facts.precision, *facts.flags)
    return " ".join(word for word in words if word) or asset.blob.suffix.lstrip(".")


def pickle_words(asset: "Asset | None") -> str:
    """Describe in words whether civman has read a pickle. `asset` is None if the file is not in the library."""
    if asset is None:
        return "pickle"
    return "pickle, read without running its code" if asset.facts.kind else "pickle that civman has not read"


def _trigger_lines(version: "ModelVersion", held: "Sequence[Asset]") -> list[str]:
    """Format the trigger words in one line per source: CivitAI, and the metadata of the stored files."""
    sources = {
        "trigger words": version.trained_words,
        "trigger words in the file's metadata": tuple(
            word for asset in held for word in asset.facts.trigger_words if word not in version.trained_words
        ),
    }
    return [f"{name}: {clean(', '.join(dict.fromkeys(words)))}" for name, words in sources.items() if words]


def _about(version: "ModelVersion") -> str:
    words = [version.base_model or "base model not specified"]
    words += [f"published {version.published_at:%Y-%m-%d}"] if version.published_at else []
    if version.gate is not None:
        end = version.gate.ends_at
        words.append(
            "paid access" if version.gate.permanent else f"early access{f' until {end:%Y-%m-%d}' if end else ''}"
        )
    words += ["cannot be downloaded"] if version.usage_control not in (None, "Download") else []
    return " · ".join(clean(word) for word in words)


def _file_row(version: "ModelVersion", file: "ModelFile", held: "dict[Sha256, Asset]", absent: "Absences") -> list[str]:
    from civman.domain.file_choice import is_pickle

    facts = [file.type, file.precision, file.size_class, "primary" if file.is_primary else None]
    sha256 = file.hashes.sha256
    asset = held.get(sha256) if sha256 is not None else None
    scans = {scan.value for scan in (file.pickle_scan, file.virus_scan)} & {"Danger", "Error", "Pending"}
    return [
        _ref(version, file, held.values()),
        clean(file.name),
        size(file.size_bytes),
        " ".join(fact for fact in facts if fact),
        sha256[:12] if sha256 else "no hash",
        _stored_words(asset, absent) if asset is not None else "",
        "; ".join([f"scan: {', '.join(sorted(scans))}"] * bool(scans) + [pickle_words(asset)] * is_pickle(file)),
    ]


def _ref(version: "ModelVersion", file: "ModelFile", assets: "Iterable[Asset]") -> str:
    """Return the ref to print for a file. A stored file has the library's ref, which identifies the file's contents."""
    from civman.domain.printed_refs import file_ref

    stored = (asset for asset in assets if asset.version_id == version.id and asset.blob.sha256 == file.hashes.sha256)
    return next((asset.ref for asset in stored), None) or file_ref(version, file)


def _version_ref(version: "ModelVersion", assets: "Iterable[Asset]") -> str:
    from civman.domain.file_choice import choose_file, version_ref

    return _ref(version, choose_file(version), assets) if version.files else version_ref(version)


def licence_terms(version: "ModelVersion") -> "Terms":
    """Combine the licence terms of this version's creator with those of its base model, for images made with it."""
    from civman.domain.licence import Part, terms_of

    model = version.model
    return terms_of([Part(model.name, model.licence, version.base_model, model.creator)])
