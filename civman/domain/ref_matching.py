"""Compare a ref with the ids of one known file, without an index: for the trash and for a project's lock file."""

from dataclasses import dataclass

from civman.domain.catalog import FileId, ModelId, VersionId
from civman.domain.digests import Sha256
from civman.domain.refs import Air, HashKind, HashRef, ModelRef, NameRef, NumberRef, PathRef, VersionRef, parse_ref
from civman.errors import InvalidRef


@dataclass(frozen=True, slots=True)
class KnownIds:
    """What identifies one file. `names` are its aliases, file names and titles."""

    sha256: Sha256
    model_id: ModelId | None = None
    version_id: VersionId | None = None
    file_id: FileId | None = None
    names: tuple[str, ...] = ()


def means(text: str, known: KnownIds) -> bool:
    """Whether `text`, as typed, refers to this file, to its version or to its model. Names ignore case.

    A ref with a file id means only that file; words that select a file by its type or format are not compared.
    """
    names = {name.casefold() for name in known.names if name}
    if text.casefold() in names:
        return True
    try:
        ref = parse_ref(text)
    except InvalidRef:
        return False
    target = ref.target if isinstance(ref, Air) else ref
    match target:
        case NumberRef():
            return target.number in (known.model_id, known.version_id)
        case ModelRef():
            return target.model_id == known.model_id and target.file.file_id in (None, known.file_id)
        case VersionRef():
            is_same_model = target.model_id in (None, known.model_id)
            is_same_file = target.file.file_id in (None, known.file_id)
            return target.version_id == known.version_id and is_same_model and is_same_file
        case HashRef():
            kinds = {HashKind.SHA256, HashKind.AUTOV2}
            return bool(kinds.intersection(target.kinds)) and known.sha256.startswith(target.digest)
        case NameRef():
            return target.name.casefold() in names
        case PathRef():
            return target.path.casefold() in names
        case _:
            return False
