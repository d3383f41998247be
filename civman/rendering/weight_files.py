"""Finds the files from which a plan's weights are loaded: for a pickle, its safetensors copy."""

from dataclasses import replace

from civman.planning.plan_types import Planned, PlannedFile
from civman.store.safe_copies import make_copy


def with_safe_copies(planned: Planned) -> Planned:
    """Replace the path of every pickle in a plan with that of its safetensors copy, which is created if missing.

    The recipe still names the pickles. Raises: the errors of `civman.store.safe_copies.make_copy`.
    """
    if all(file.copy is None for file in planned.files):
        return planned
    return replace(planned, files=tuple(map(_with_copy, planned.files)))


def _with_copy(file: PlannedFile) -> PlannedFile:
    if file.copy is None:
        return file
    return replace(file, path=make_copy(file.path, file.copy).path, copy=None)
