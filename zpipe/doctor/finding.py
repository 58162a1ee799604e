"""What a check answers, and the words that several of them need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        status: `ok`; `warning`: works, but not as well as it could; `missing`: is not there or does not work.
        found: what is there, with its version or figure.
        remedy: one line with the command that mends it, "" where there is nothing to mend.
        required: zpipe does not run without it.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    required: bool = False


def reason(exc: BaseException) -> str:
    """What was raised, in one line."""
    return " ".join(str(exc).split()) or type(exc).__name__
