"""The command `civman doctor`."""

from typing import TYPE_CHECKING

from civman.cli.output import Result, clean, counted
from civman.cli.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from civman.manage.doctor import Finding


@command(network="option")
def doctor(
    session: Session,
) -> Result:
    """Check the installation, the library and the settings, and explain how to fix each problem."""
    from civman.errors import Cause, CivmanError

    findings = list(session.library.maintenance.doctor())
    bad = [finding for finding in findings if finding.state == "bad"]
    error = None
    if bad:
        names = ", ".join(finding.name for finding in bad)
        error = CivmanError(f"{counted(len(bad), 'problem')} found: {names}", code=Cause.UNHEALTHY, hint=bad[0].remedy)
    return Result(
        "doctor",
        findings,
        human=lambda console: _print(console, findings),
        ids=(finding.name for finding in bad),
        error=error,
    )


def _print(console: "Console", findings: "list[Finding]") -> None:
    for finding in findings:
        style = {"ok": "green", "note": "yellow", "bad": "red"}[finding.state]
        console.print(f"{finding.state:<5}", style=style, end="")
        console.print(f"{finding.name:<12} {clean(finding.value)}", soft_wrap=True)
        if finding.source:
            console.print(f"{'':17} from {clean(finding.source)}", style="dim", soft_wrap=True)
        if finding.remedy and finding.state != "ok":
            console.print(f"{'':17} → {clean(finding.remedy)}", soft_wrap=True)
