"""What a live node takes beside computing and sending, measured elsewhere: the simulator's overhead per hop.

Nothing here is fitted to a run that the simulator is compared with: a benchmark measures the profile, this reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zpipe.errors import ConfigError
from zpipe.service import Spread, amount, spread

SCHEMA = "zpipe.hop/1"
_NO_TIME = Spread()


@dataclass(frozen=True, slots=True)
class HopProfile:
    """Seconds a live node takes beside the stage itself and the link's own model; all 0 unless measured.

    Attributes:
        forward: from Forward to the receiver's TaskReceived, beyond what the link model says (encode, socket, wake-up, decode).
        forward_seconds_per_byte: the same, for each byte of payload.
        start: from RunStage to the executor's start.
        finish: from the executor's end to StageCompleted.
        control: from a command to the receiver's event, for a message of the control plane.
        grace_seconds: above 0 for emulated devices (`zpipe.executors.emulated`), whose schedule does not run late, whatever `start`
            and `finish` are: a batch begun as the end of the one before it is told, or so soon after it, starts at that end.
    """

    forward: Spread = _NO_TIME
    forward_seconds_per_byte: float = 0.0
    start: Spread = _NO_TIME
    finish: Spread = _NO_TIME
    control: Spread = _NO_TIME
    grace_seconds: float = 0.0


def load_hop_profile(path: Path) -> HopProfile:
    """Reads a profile as a benchmark wrote it: `{"schema": "zpipe.hop/1", "forward": [quantiles, in seconds], ...}`.

    What is absent is 0; further keys (machine, commit) are passed over.

    Raises:
        ConfigError: it cannot be read, or a value is no list of rising seconds.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: found no readable JSON ({exc}), expected a hop profile ({SCHEMA})") from exc
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else document
        raise ConfigError(f"{path}: schema: found {found!r}, expected {SCHEMA!r}")
    values: dict[str, Any] = {}
    for field in fields(HopProfile):
        if field.name in document:
            value = document[field.name]
            where = f"{path}: {field.name}"
            values[field.name] = amount(value, where) if field.type == "float" else spread(value, where)
    return HopProfile(**values)
