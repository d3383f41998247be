"""Expands a request's prompts before it is planned: styles first, then variants and wildcards."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from civman.domain.recipes.render_request import RenderRequest
from civman.errors import Cause, UsageError
from civman.prompts import styles, wildcards

MODES: Final = ("random", "all")
_SEEDS: Final = 2**32


@dataclass(frozen=True, slots=True)
class Expansion:
    """How to expand prompts.

    `styles`: names of styles in the file `styles_file`, in the order in which they are applied. `mode`: "random"
    chooses a random expansion for each image, "all" makes every combination, and None leaves variants and wildcards
    unexpanded. `folder`: the folder with the wildcard files.
    """

    styles: tuple[str, ...] = ()
    styles_file: Path | None = None
    mode: str | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise UsageError(
                f"`{self.mode}` is not a mode of prompt expansion", hint=f"choose one of: {', '.join(MODES)}",
                code=Cause.BAD_WILDCARDS,
            )  # fmt: skip
        if self.folder is not None and self.mode is None:
            raise UsageError(
                "a wildcard folder was given, but wildcards are only expanded with --dynamic",
                hint="add --dynamic random (one random expansion for each image) or --dynamic all (every "
                "combination)",
                code=Cause.BAD_WILDCARDS,
            )  # fmt: skip
        if self.styles and self.styles_file is None:
            raise UsageError(
                f"the style `{self.styles[0]}` was requested without a styles file",
                hint="pass the file with --styles FILE",
                code=Cause.NO_STYLE,
            )  # fmt: skip


def expanded(request: RenderRequest, expansion: Expansion) -> tuple[RenderRequest, ...]:
    """Expand both prompts of a request, and return one request for each expansion.

    The requests also contain the prompts as typed, which are recorded next to the expanded ones. With the mode
    "random", each image becomes a separate request, with the seed that it would have had in the original request. As in
    the extension sd-dynamic-prompts, the first seed also determines the random choices.

    Raises: UsageError (`bad-wildcards`, `no-style`, `unreadable-prompts`): a prompt cannot be expanded.
        CannotRender (`no-wildcards-extra`): a package is not installed.
    """
    styled = _with_styles(request, expansion)
    prompts = (styled.prompt, styled.negative_prompt)
    if expansion.mode is None or not any(map(wildcards.is_dynamic, prompts)):
        return (styled,)
    if expansion.mode == "all":
        pairs = _combined(prompts, expansion.folder)
        requests = [replace(styled, prompt=prompt, negative_prompt=negative) for prompt, negative in pairs]
    else:
        seed = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        texts = [_drawn(text, expansion.folder, seed, request.count) for text in prompts]
        requests = [
            replace(styled, prompt=prompt, negative_prompt=negative, seed=seed + n, count=1, batch_size=None)
            for n, (prompt, negative) in enumerate(zip(*texts, strict=True))
        ]
    typed, typed_negative = request.prompt, request.negative_prompt
    return tuple(replace(each, typed_prompt=typed, typed_negative=typed_negative) for each in requests)


def _with_styles(request: RenderRequest, expansion: Expansion) -> RenderRequest:
    if not expansion.styles or expansion.styles_file is None:
        return request
    chosen = styles.chosen_styles(
        styles.read_styles(expansion.styles_file), expansion.styles, expansion.styles_file
    )  # fmt: skip
    prompt, negative = styles.with_styles(request.prompt, request.negative_prompt, chosen)
    return replace(
        request, prompt=prompt, negative_prompt=negative,
        typed_prompt=request.prompt, typed_negative=request.negative_prompt,
    )  # fmt: skip


def _drawn(text: str, folder: Path | None, seed: int, count: int) -> list[str]:
    return wildcards.drawn(text, folder, seed, count) if wildcards.is_dynamic(text) else [text] * count


def _combined(prompts: tuple[str, str], folder: Path | None) -> Sequence[tuple[str, str]]:
    """Pair the expansions of both prompts; the shorter list is repeated, as in the extension sd-dynamic-prompts."""
    lists = [wildcards.combinations(text, folder) if wildcards.is_dynamic(text) else [text] for text in prompts]
    longest = max(map(len, lists))
    return [
        (prompt, negative) for prompt, negative in zip(*(islice(cycle(one), longest) for one in lists), strict=True)
    ]
