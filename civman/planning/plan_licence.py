"""Determines the licence of a plan: what is permitted for images made with all of its model files."""

from collections.abc import Iterable
from pathlib import Path

from civman.domain.catalog import Licence
from civman.domain.known_face_models import face_model_with, known_face_models
from civman.domain.known_upscalers import upscaler_with
from civman.domain.licence import Answer, Part, Terms, terms_of
from civman.errors import Cause, NotAllowed, UsageError
from civman.index import Index
from civman.planning.find_files import Found

USES = ("commercial",)
"""The values of `--require`: uses of the images that all licences must permit."""


def plan_terms(index: Index, found: Iterable[Found]) -> Terms:
    """Combine the licences of several model files into the terms for images made with all of them."""
    return terms_of([_part(index, each) for each in found])


def require_use(terms: Terms | None, use: str) -> None:
    """Check that the licences permit a use of the images: "commercial" means that they may be sold.

    Raises: NotAllowed (`licence`): a licence forbids it, or it is not known whether all licences permit it.
        UsageError: `use` is not in `USES`.
    """
    if use not in USES:
        raise UsageError(f"--require cannot check the use `{use}`", hint=f"choose one of: {', '.join(USES)}")
    if terms is not None and terms.sell_pictures is Answer.YES:
        return
    terms = terms or terms_of([])
    raise NotAllowed(
        f"{terms.words[0]}: {'; '.join(terms.reasons) or 'no licence is known'}",
        hint="use other files, or leave out --require; `civman show REF` shows a model's licence",
        code=Cause.LICENCE, reasons=list(terms.reasons), credit_to=list(terms.credit_to),
    )  # fmt: skip


def _part(index: Index, found: Found) -> Part:
    name = found.inspected.name
    if found.role == "upscaler" and (known := upscaler_with(found.sha256)) is not None:
        why = f"{Path(name).stem}: its licence ({known.licence}) excludes commercial use"
        return Part(name, stated=Answer.YES) if known.is_commercial else Part(name, stated=Answer.NO, reason=why)
    if found.role == "face-restorer" and found.identity.variant == "codeformer":
        licence = known_face_models("codeformer")[0].licence
        return Part(
            name, stated=Answer.NO, reason=f"{Path(name).stem}: its licence ({licence}) excludes commercial use"
        )
    if found.role.startswith("face-") and (face := face_model_with(found.sha256)) is not None:
        return Part(name, stated=Answer.YES if face.is_commercial else Answer.NO)
    asset = found.asset
    version = index.version(asset.version_id) if asset is not None and asset.version_id is not None else None
    model = version.model if version is not None else None
    return Part(
        model.name if model else name, model.licence if model else Licence(), found.inspected.label,
        model.creator if model else None,
    )  # fmt: skip
