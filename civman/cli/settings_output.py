"""Shows whether the images that a settings file describes can be rendered again."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from civman.cli.output import Result, clean, counted

if TYPE_CHECKING:
    from rich.console import Console

    from civman.planning.redraw import Redraw

_MOST_REASONS = 12


def settings_result(found: "Iterable[Redraw]") -> Result:
    """Build the result of checking image settings: with --json a line per image, else counts and frequent reasons."""

    def human(console: "Console") -> None:
        verdicts: Counter[str] = Counter()
        reasons: Counter[tuple[str, str]] = Counter()
        for each in found:
            verdicts[each.drawable.value] += 1
            reasons.update((each.drawable.value, reason) for reason in each.reasons[:1])
        console.print(f"{counted(verdicts.total(), 'image')} checked:")
        for verdict, count in verdicts.most_common():
            console.print(f"  {verdict}: {count}")
        console.print("the most frequent reasons (only the first reason of each image is counted):")
        for (verdict, reason), count in reasons.most_common(_MOST_REASONS):
            console.print(f"  {count} {verdict}: {clean(reason)}", soft_wrap=True)

    return Result(
        "settings", [], human=human, ids=(f"{each.id} {each.drawable.value}" for each in found),
        lines=(each.value() for each in found),
    )  # fmt: skip
