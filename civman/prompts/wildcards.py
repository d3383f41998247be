"""Dynamic prompts: variants such as `{red|green}` and wildcards such as `__colour__`, expanded to plain prompts.

The syntax and the choice that a seed makes are those of A1111's extension sd-dynamic-prompts, because prompts are
expanded by that extension's own library, `dynamicprompts`. A wildcard such as `__colour__` is replaced with a line of
`colour.txt` in the folder of wildcards, or with an entry of a YAML or JSON file there. Anything that `dynamicprompts`
would silently leave in the prompt, such as the name of a missing wildcard, is an error here.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final

from civman.errors import CannotRender, Cause, UsageError

MOST: Final = 1000
"""The maximum number of combinations of one prompt."""
_LONGEST: Final = 64 * 1024
"""The maximum length of a prompt to expand, in characters."""
_WILDCARD = re.compile(r"__(.+?)__")


def is_dynamic(prompt: str) -> bool:
    """Whether the prompt contains a variant or a wildcard."""
    return "{" in prompt or _WILDCARD.search(prompt) is not None


def drawn(template: str, folder: Path | None, seed: int, count: int) -> list[str]:
    """Expand a prompt `count` times with random choices that depend on the seed.

    Raises: UsageError (`bad-wildcards`): the prompt cannot be expanded. CannotRender (`no-wildcards-extra`): the
        package `dynamicprompts` is not installed.
    """
    _require_package()
    from dynamicprompts.generators import RandomPromptGenerator

    generator = RandomPromptGenerator(_manager(template, folder), seed=seed)
    with _reported(template):
        found = [str(each) for each in generator.generate(template, count)]
    return _finished(template, found, folder)


def combinations(template: str, folder: Path | None, most: int = MOST) -> list[str]:
    """Expand a prompt to all its combinations, in the order of the library `dynamicprompts`.

    Raises: UsageError (`bad-wildcards`): the prompt cannot be expanded, or has more than `most` combinations.
        CannotRender (`no-wildcards-extra`): the package `dynamicprompts` is not installed.
    """
    _require_package()
    from dynamicprompts.generators import CombinatorialPromptGenerator

    generator = CombinatorialPromptGenerator(_manager(template, folder))
    with _reported(template):
        found = [str(each) for each in islice(generator.generate(template, max_prompts=most + 1), most + 1)]
    found = _finished(template, found, folder)
    if len(found) > most:
        raise _bad(
            template, f"there are more than {most:,} combinations", "use fewer alternatives, or --dynamic random"
        )
    return found


def _require_package() -> None:
    if find_spec("dynamicprompts") is None:
        raise CannotRender(
            "expanding {a|b} and __wildcards__ needs the package `dynamicprompts`, which is not installed",
            hint="pip install 'civman[wildcards]'", code=Cause.NO_WILDCARDS_EXTRA,
        )  # fmt: skip


def _manager(template: str, folder: Path | None) -> Any:
    from dynamicprompts.wildcards import WildcardManager

    if len(template) > _LONGEST:
        raise _bad(template, f"the prompt is longer than {_LONGEST:,} characters", "shorten the prompt")
    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"the wildcards folder `{folder}` does not exist",
            hint="--wildcards must be a folder with files such as colour.txt", code=Cause.BAD_WILDCARDS,
        )  # fmt: skip
    return WildcardManager(folder)


@contextmanager
def _reported(template: str) -> Iterator[None]:
    """Convert exceptions of `dynamicprompts` to errors about the prompt, and silence that library's log."""
    from pyparsing import ParseBaseException

    log = logging.getLogger("dynamicprompts")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except ParseBaseException as error:
        where = template[error.loc : error.loc + 20]
        raise _bad(
            template, f"the syntax is invalid at `{where}`",
            "close each { with }; names of wildcards have two underscores on both sides",
        ) from error  # fmt: skip
    except (ValueError, KeyError, IndexError, RecursionError, OSError) as error:
        raise _bad(
            template, str(error) or type(error).__name__, "check the variants and wildcards in the prompt"
        ) from error
    finally:
        log.setLevel(level)


def _finished(template: str, found: Sequence[str], folder: Path | None) -> list[str]:
    """Check that every wildcard was replaced, and return the prompts without surrounding spaces."""
    for prompt in found:
        if left := _WILDCARD.search(prompt):
            where = f"`{folder}` has no file `{left[1]}.txt` with entries" if folder else "--wildcards is not used"
            raise _bad(
                template,
                f"the wildcard `{left[0]}` has no values: {where}",
                "pass the folder of wildcard files with --wildcards FOLDER",
            )
    if not found:
        raise _bad(template, "the result contains no prompt", "check the variants and wildcards in the prompt")
    return [prompt.strip() for prompt in found]


def _bad(template: str, why: str, hint: str) -> UsageError:
    shown = template if len(template) <= 60 else f"{template[:59]}…"
    return UsageError(f"the prompt `{shown}` cannot be expanded: {why}", hint=hint, code=Cause.BAD_WILDCARDS)
