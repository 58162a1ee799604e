"""What a check answers, and the words that several of them need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        status: `ok`; `warning`: works, but not as well as it could; `missing`: is not there; `broken`: is there and does not work.
        found: what is there, with its version or figure.
        remedy: one line with the command that mends it, "" where there is nothing to mend.
        required: zpipe, or the topology that was asked about, does not run without it.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    required: bool = False

    @property
    def stands_in_the_way(self) -> bool:
        """Whether something has to be done before anything runs."""
        return self.required and self.status in ("missing", "broken")


def reason(exc: BaseException) -> str:
    """What was raised, in one line."""
    return " ".join(str(exc).split()) or type(exc).__name__


def from_error(name: str, status: Status, exc: BaseException, remedy: str = "", *, required: bool = True) -> Finding:
    """What an error says, in zpipe's own form: "found ..., expected ...; what to do". `remedy`: where it does not say."""
    said, _, mend = reason(exc).rpartition("; ")
    return Finding(name, status, said or mend, mend if said else remedy, required)
