"""Finds the stored files that fit a checkpoint.

Each verdict is computed once, from the headers, and saved in the index.
"""

from collections.abc import Iterator

from civman.domain.catalog import Asset
from civman.domain.compatibility import RULES, Verdict, check
from civman.domain.events import OnEvent, Started, Verifying
from civman.domain.plurals import counted
from civman.errors import CivmanError
from civman.index import Fits, Index
from civman.manage.inspection import Inspected, inspect_asset

_SAVED_AT_ONCE = 200
"""The number of verdicts saved in one transaction; an interruption loses at most this many."""
ACCEPTED = (Verdict.FITS, Verdict.CAUTION)
"""The verdicts with which `civman check` accepts a file without further options."""


def find_fitting(index: Index, checkpoint: Inspected, on_event: OnEvent) -> Fits:
    """Return a filter for the stored files that fit a stored checkpoint, after computing all missing verdicts.

    A file that cannot be read at the moment gets no verdict, so the filter leaves it out.
    """
    if checkpoint.asset is None:
        raise AssertionError("verdicts are saved for stored checkpoints only")
    fits = Fits(
        checkpoint=checkpoint.asset.blob.sha256, label=checkpoint.label or "", rules=RULES,
        verdicts=tuple(verdict.value for verdict in ACCEPTED),
    )  # fmt: skip
    pending: list[tuple[Asset, str]] = []
    for judged in _judged(checkpoint, index.without_verdict(fits), on_event):
        pending.append(judged)
        if len(pending) >= _SAVED_AT_ONCE:
            index.save_verdicts(fits, pending)
            pending = []
    if pending:
        index.save_verdicts(fits, pending)
    return fits


def _judged(checkpoint: Inspected, assets: list[Asset], on_event: OnEvent) -> Iterator[tuple[Asset, str]]:
    if assets:
        on_event(Started("plan", f"reading the headers of {counted(len(assets), 'file')}", len(assets)))
    for number, asset in enumerate(assets, 1):
        try:
            part = inspect_asset(asset).part
        except CivmanError:
            continue
        yield asset, check(checkpoint.part, [part]).parts[0].verdict.value
        on_event(Verifying("plan", number, len(assets)))
