"""A claim and the cases that it rests on, as values for page, terminal and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def case(topology: str, holds: bool, figures: str, *, bound: str, why: str = "") -> Row:
    """One line: where, whether the claim holds there, by which figures, the most there could be, and why it does not hold."""
    return {"topology": topology, "holds": holds, "figures": figures, "bound": bound, "why": why}


def judged(policy: str, text: str, found: Mapping[str, list[Row] | str], *, claimed: bool = True) -> Row:
    """A claim, which holds in a setting when it holds in every case there.

    Args:
        policy: whose claim it is.
        text: goes on after the policy's name.
        found: {setting: its cases, or why it is not asked there}.
        claimed: no: it is for the record.
    """
    verdicts, rows = [], []
    for setting, answer in found.items():
        why_not, cases = (answer, []) if isinstance(answer, str) else ("", answer)
        held = sum(each["holds"] for each in cases)
        verdicts.append(
            {
                "setting": setting,
                "holds": held == len(cases) if cases else None,
                "held": held,
                "cases": len(cases),
                "not_asked": why_not if cases or why_not else "no such case was run",
            }
        )
        rows += [{"setting": setting, **each} for each in cases]
    return {
        "policy": policy,
        "text": f"{policy} {text}",
        "claimed": claimed,
        "holds": all(each["holds"] for each in rows),
        "settings": verdicts,
        "cases": rows,
    }


def apart(more: Sequence[float], less: Sequence[float]) -> bool:
    """The first is more, and the 95 % intervals do not meet."""
    return more[0] - more[1] > less[0] + less[1]
