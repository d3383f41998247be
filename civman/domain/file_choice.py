"""Choose one file of a version, given a file id, a file name, or words such as "fp16 pruned"."""

from collections.abc import Sequence

from civman.domain.catalog import FileId, ModelFile, ModelVersion
from civman.domain.file_suffixes import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES
from civman.domain.printed_refs import bare_version_ref, file_ref
from civman.errors import AmbiguousRef, Cause, NotFound

WEIGHT_TYPES = ("Model", "Pruned Model", "Diffusion Model", "UNet", "Negative")
"""Types of files that contain a version's own weights, as in CivitAI's choice of the primary file."""


def is_pickle(file: ModelFile) -> bool:
    """Whether loading the file could run code, judged by its extension or, if inconclusive, by CivitAI's format."""
    return file.suffix in PICKLE_SUFFIXES or (file.format == "PickleTensor" and file.suffix not in SAFETENSORS_SUFFIXES)


def choose_file(version: ModelVersion, words: str | None = None, file_id: FileId | None = None) -> ModelFile:
    """Return the file of `version` that `words` or `file_id` selects, or else its default file.

    `words`: a file id, a file name, or words that only one file matches ("fp16 pruned", "vae"). The default file is the
    primary file if that is safetensors, else the safetensors file that CivitAI would rank first (pruned before full,
    fp16 before others), else the primary file.

    Raises: NotFound: there is no such file, or the version has no files. AmbiguousRef: several files match `words`.
    """
    if not version.files:
        raise NotFound(
            f"version {version.id} of `{version.model.name}` lists no files",
            code=Cause.NO_FILES,
            hint="the creator may have archived the version; check with `civman show`",
            version_id=version.id,
        )
    if file_id is not None:
        words = str(file_id)
    if words:
        return _selected(version, words)
    primary = next((file for file in version.files if file.is_primary), None)
    if primary is not None and primary.suffix in SAFETENSORS_SUFFIXES:
        return primary
    safe = [file for file in version.files if file.suffix in SAFETENSORS_SUFFIXES and file.type in WEIGHT_TYPES]
    if safe:
        return max(safe, key=_rank)
    if primary is not None:
        return primary
    return max(version.files, key=_rank)


def matching_files(files: Sequence[ModelFile], words: str) -> list[ModelFile]:
    """Select files by `words`: a file id, else a name, else words of their type, format and precision."""
    by_id = [file for file in files if words.isdecimal() and file.id == int(words)]
    by_name = [file for file in files if file.name.casefold() == words.casefold()]
    parts = words.casefold().split()
    by_words = [file for file in files if parts and all(_answers(file, part) for part in parts)]
    return by_id or by_name or by_words


def version_ref(version: ModelVersion) -> str:
    """Return the ref to print for a version, which is the ref of its default file."""
    if not version.files:
        return bare_version_ref(version.id, version.model.id)
    return file_ref(version, choose_file(version))


def describe(file: ModelFile) -> str:
    """Describe a file by its name and what distinguishes it: "model.safetensors (Model, pruned, fp16)"."""
    words = [word for word in (file.type, file.size_class, file.precision, file.quant_type) if word]
    return f"{file.name} ({', '.join(words)})"


def _selected(version: ModelVersion, words: str) -> ModelFile:
    found = matching_files(version.files, words)
    if not found:
        raise NotFound(
            f"no file `{words}` in version {version.id} of `{version.model.name}`",
            code=Cause.NO_SUCH_FILE,
            hint=f"the version has these files: {_listed(version, version.files)}",
            version_id=version.id,
        )
    if len(found) > 1:
        raise AmbiguousRef(
            f"`{words}` matches {len(found)} files of version {version.id}",
            hint=f"choose one of these files: {_listed(version, found)}",
            candidates=[file_ref(version, file) for file in found],
        )
    return found[0]


def _listed(version: ModelVersion, files: Sequence[ModelFile]) -> str:
    return "; ".join(f"{file_ref(version, file)} {describe(file)}" for file in files)


def _answers(file: ModelFile, word: str) -> bool:
    facts = (file.type, file.format, file.precision, file.size_class, file.quant_type, file.suffix.lstrip("."))
    return any(fact is not None and word in fact.casefold().split() for fact in facts) or word in (
        "primary" if file.is_primary else "",
        file.type.casefold(),
    )


def _rank(file: ModelFile) -> float:
    """Compute the score by which CivitAI ranks the files of a version.

    A file of weights gets 1000. The preferred format adds 100, the preferred size class 10 and the preferred precision
    1; any other value subtracts the same number, and a missing value changes nothing.
    """
    rank = 1000.0 if file.type in WEIGHT_TYPES else 0.0
    for value, wanted, worth in (
        (file.format, "SafeTensor", 100.0),
        (file.size_class, "pruned", 10.0),
        (file.precision, "fp16", 1.0),
    ):
        if value is not None:
            rank += worth if value == wanted else -worth
    return rank
