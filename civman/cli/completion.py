"""Shell completion of values: refs, samplers, schedules, model types, base models, layouts.

typer calls each function with the text typed so far; the function returns the values that start with it. No function
uses the network or changes anything. After an error, a function returns nothing, because a shell cannot show errors
there.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Final

import typer

_REQUEST: Final = "_CIVMAN_COMPLETE"
"""The environment variable with which a shell requests completions; its value is "complete_bash", "complete_zsh" …"""
_MOST: Final = 300
"""The maximum number of files offered as completions, newest first; more would only fill the screen."""
_BREAKS: Final = ("@", ":", "=")
"""Characters at which bash splits words before it requests completions."""
_PREFIXES: Final = ("sha256", "picture", "civitai")
"""Prefixes of refs that are followed by a colon."""


@contextmanager
def answering() -> Iterator[None]:
    """Make completions fast if a shell requests them; otherwise do nothing.

    typer would validate the words before the cursor with pydantic, whose import doubles the time. Completions need
    these words only as they were typed, so validation is skipped.
    """
    if _REQUEST not in os.environ:
        yield
        return
    from typer.core import TyperArgument, TyperOption

    kept = [(kind, kind.process_value) for kind in (TyperArgument, TyperOption)]
    for kind, _ in kept:
        kind.process_value = _as_typed  # type: ignore[method-assign, assignment]  # restored below
    try:
        with bash_words():
            yield
    finally:
        for kind, process_value in kept:
            kind.process_value = process_value  # type: ignore[method-assign]


def _as_typed(_parameter: object, _context: object, value: object) -> object:
    return value


def words_before_cursor() -> list[str] | None:
    """Return the words of the command line before the one to be completed, without `civman`.

    Returns None if no shell requests completions. Words that bash has split, such as refs, are not rejoined.
    """
    request = os.environ.get(_REQUEST)
    if request is None:
        return None
    if request == "complete_bash":
        words, cursor = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
        return words[1 : int(cursor) if cursor.isdecimal() else 1]
    return os.environ.get("_TYPER_COMPLETE_ARGS", "").split(" ")[1:-1]


@contextmanager
def bash_words() -> Iterator[None]:
    """Complete refs such as `51207@114620` and `sha256:ac83` in bash, which splits them into several words.

    bash passes `civman show 51207@1146` as the words `civman show 51207 @ 1146`. They are rejoined in the environment
    variables that typer reads, and the part before the last split is removed from the completions, because bash
    replaces only the part after it. Does nothing unless bash requests completions.
    """
    if os.environ.get(_REQUEST) != "complete_bash":
        yield
        return
    words, place = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD") or 0)
    joined, cursor = _joined(words, place)
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(joined), str(cursor)
    incomplete = joined[cursor] if cursor < len(joined) else ""
    # remove the part that bash keeps: all before `@`, or all up to and including `:` or `=`
    skip = max(0, incomplete.rfind("@"), incomplete.rfind(":") + 1, incomplete.rfind("=") + 1)
    offered = io.StringIO()
    try:
        with redirect_stdout(offered):
            yield
    finally:
        sys.stdout.write("".join(f"{line[skip:]}\n" for line in offered.getvalue().splitlines()))


def _joined(words: Sequence[str], place: int) -> tuple[list[str], int]:
    """Rejoin words that bash split at `@`, `:` and `=`.

    Also returns the index, after rejoining, of the word that had the index `place`.
    """
    joined: list[str] = []
    cursor = len(words)
    for number, word in enumerate(words):
        last = joined[-1] if joined else ""
        is_split = (word == ":" and last in _PREFIXES) or (word == "=" and last.startswith("--"))
        if last.endswith(_BREAKS) or is_split or (word == "@" and last.isdecimal()):
            joined[-1] += word
        else:
            joined.append(word)
        if number == place:
            cursor = len(joined) - 1
    return joined, cursor


def _starting(values: Iterable[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    """Select the pairs of value and description whose value starts with the typed text."""
    return [(value, text) for value, text in dict(values).items() if value.startswith(incomplete)]


def refs(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a ref with the aliases of the files in the library, and with their refs as civman prints them."""
    from civman.errors import CivmanError

    try:
        stored = _stored(context)
        if incomplete.startswith("@"):  # also complete version refs without a model's id, such as `@114620`
            stored = [(ref[ref.index("@") :], text) for ref, text in stored if "@" in ref]
        return _starting(stored, incomplete)
    except (CivmanError, OSError):
        return []


def upscalers(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete an upscaler: a built-in one, or the alias or ref of an upscaler model in the library."""
    from civman.domain.architecture import Kind
    from civman.domain.recipes.enlargement import METHODS
    from civman.errors import CivmanError

    own = [(name, "") for name in METHODS if name != "model"]
    try:
        return _starting([*own, *_stored(context, Kind.UPSCALER.value)], incomplete)
    except (CivmanError, OSError):
        return _starting(own, incomplete)


def _stored(context: typer.Context, kind: str | None = None) -> list[tuple[str, str]]:
    from civman.index import AssetFilter, Index  # the import takes 0.05 s, and most completions do not need it
    from civman.settings import load_settings

    path = load_settings(library=context.params.get("library")).library / "library.db"
    if not path.is_file():
        return []
    with Index.open(path) as index:
        assets = index.assets(AssetFilter(kinds=(kind,) if kind else ()), limit=_MOST)
    named = [(asset.alias, asset.name) for asset in assets if asset.alias and not any(map(str.isspace, asset.alias))]
    return [
        *named,
        *((asset.ref, f"{asset.model_name} {asset.version_name}".strip() or asset.name) for asset in assets),
    ]


def samplers(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a sampler."""
    from civman.diffusion.samplers import SAMPLERS

    return _starting([(sampler.name, "") for sampler in SAMPLERS], incomplete)


def schedules(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a noise schedule."""
    from civman.diffusion.noise_levels import Schedule

    return _starting([(schedule.value, "") for schedule in Schedule], incomplete)


def model_types(incomplete: str) -> list[tuple[str, str]]:
    """Complete one of CivitAI's model types."""
    from civman.domain.catalog import ModelType

    return _starting([(kind.value, "") for kind in ModelType], incomplete)


def base_models(incomplete: str) -> list[tuple[str, str]]:
    """Complete one of CivitAI's base models."""
    from civman.domain.search_query import known_base_models

    return _starting([(name, "") for name in known_base_models()], incomplete)


def sort_orders(incomplete: str) -> list[tuple[str, str]]:
    """Complete a sort order of CivitAI's search."""
    from civman.domain.search_query import Sort

    return _starting([(order.value, "") for order in Sort], incomplete)


def layouts(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a program whose folder layout a view can have."""
    from civman.exchange.view_folders import layouts as all_layouts

    return _starting([(name, layout.place) for name, layout in all_layouts().items()], incomplete)


def presets(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a preset in the settings."""
    from civman.errors import CivmanError
    from civman.settings import load_settings

    try:
        found = load_settings().render.presets
    except CivmanError:
        return []
    return _starting([(name, ", ".join(found[name].values)) for name in found], incomplete)


def setting_names(incomplete: str) -> list[tuple[str, str]]:
    """Complete the name of a setting for `civman config`."""
    from civman.manage.edit_settings import PLAIN_KEYS

    return _starting([*((key, "") for key in PLAIN_KEYS), ("render.presets.", "NAME.OPTION")], incomplete)
