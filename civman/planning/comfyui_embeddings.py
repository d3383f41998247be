"""Finds the embeddings that prompts use in ComfyUI's syntax, `embedding:NAME`."""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from civman.domain.recipes.recipe import EmbeddingUse
from civman.errors import AmbiguousRef, Cause, UsageError
from civman.planning.find_files import Finder, Found
from civman.prompts import comfyui_syntax


def embeddings(
    finder: Finder, named: Sequence[str], prompts: Sequence[str], *, called: Sequence[tuple[str, str]] = (),
    fits: Callable[[Found], bool],
) -> tuple[list[Found], list[EmbeddingUse], tuple[str, ...]]:  # fmt: skip
    """Find the embeddings that the prompts name, by file name or alias, among the requested and the stored ones.

    `named`: the refs of the requested embeddings. `called`: pairs of a name in the prompts and the ref of the embedding
    to use for that name, even if the embedding's own name differs. Like ComfyUI, civman ignores the name of an
    embedding that it does not find, and adds a notice. Returns the files, their uses in the recipe, and the notices.

    Raises: UsageError (`embedding-unused`): neither prompt names a requested embedding. AmbiguousRef: two stored
        embeddings have the same name.
    """
    asked = [finder.find("embedding", ref) for ref in named]
    bound = {_plain(word): ref for word, ref in called}
    uses: dict[str, Found] = {}
    notices = []
    for name in dict.fromkeys(name for prompt in prompts for name in comfyui_syntax.embeddings_in(prompt)):
        wanted = _plain(name)
        if wanted in bound:
            uses[name] = finder.find("embedding", bound[wanted])
            continue
        stored = [
            finder.of_asset("embedding", asset)
            for asset in finder.embeddings()
            if wanted in (_plain(asset.name), _plain(asset.alias or ""))
        ]
        found = {each.sha256: each for each in (*asked, *stored) if wanted in map(_plain, each.names) and fits(each)}
        if len(found) > 1:
            raise AmbiguousRef(
                f"`embedding:{name}` in the prompt could be one of {len(found)} stored embeddings",
                hint="give one of these embeddings an alias (`civman edit REF --alias NAME`) and use that "
                "in the prompt",
                candidates=[f"sha256:{digest}" for digest in found],
            )
        if found:
            uses[name] = next(iter(found.values()))
        else:
            notices.append(f"the embedding `{name}` is not in the library, so it is left out, as ComfyUI does")
    for each in asked:
        if each.sha256 not in {found.sha256 for found in uses.values()}:
            raise UsageError(
                f"neither prompt uses the embedding `{each.inspected.name}`",
                hint=f"to use it, write `embedding:{each.names[0]}` in a prompt", code=Cause.EMBEDDING_UNUSED,
            )  # fmt: skip
    files = {found.sha256: found for found in uses.values()}
    return list(files.values()), [EmbeddingUse(uses[name].sha256, name) for name in sorted(uses)], tuple(notices)


def _plain(name: str) -> str:
    """Return a file name in lower case, without its folder and suffix."""
    file = PurePosixPath(name.replace("\\", "/")).name
    stem, dot, suffix = file.rpartition(".")
    return (stem if dot and suffix in ("safetensors", "pt", "bin") else file).casefold()
