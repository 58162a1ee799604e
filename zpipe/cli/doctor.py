"""`zpipe doctor`."""

from __future__ import annotations

from zpipe.cli.group import cli


@cli.command()
def doctor() -> None:
    """Say what works here, what is missing, and the command that mends it."""
    from rich.console import Console

    from zpipe.doctor import diagnose, render_findings

    def loopback_check() -> str:
        from zpipe.bench.loopback import loopback_check  # imports ZeroMQ, which may be what is missing

        return loopback_check()

    findings = diagnose(loopback=loopback_check)
    Console().print(render_findings(findings))
    if any(finding.status == "missing" and finding.required for finding in findings):
        raise SystemExit(1)
