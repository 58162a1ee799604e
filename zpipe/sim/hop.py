"""What a live node takes beside computing and sending, measured elsewhere: the simulator's overhead per hop.

Nothing here is fitted to a run that the simulator is compared with: a benchmark measures the profile, this reads it.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zpipe.errors import ConfigError

SCHEMA = "zpipe.hop/1"


@dataclass(frozen=True, slots=True)
class Spread:
    """A measured distribution of seconds.

    Attributes:
        quantiles: evenly spaced from the least to the largest, rising, at least one; a single one is a constant.
    """

    quantiles: tuple[float, ...] = (0.0,)

    def draw(self, rng: random.Random) -> float:
        """One value: between two quantiles every value is as likely."""
        quantiles = self.quantiles
        if len(quantiles) == 1:
            return quantiles[0]
        place = rng.random() * (len(quantiles) - 1)
        low = int(place)
        return quantiles[low] + (place - low) * (quantiles[low + 1] - quantiles[low])

    @property
    def mean(self) -> float:
        """Of what `draw` gives."""
        if len(self.quantiles) == 1:
            return self.quantiles[0]
        return (sum(self.quantiles) - (self.quantiles[0] + self.quantiles[-1]) / 2.0) / (len(self.quantiles) - 1)


@dataclass(frozen=True, slots=True)
class HopProfile:
    """Seconds a live node takes beside the stage itself and the link's own model; all 0 unless measured.

    Attributes:
        forward: from Forward to the receiver's TaskReceived, beyond what the link model says (encode, socket, wake-up, decode).
        forward_seconds_per_byte: the same, for each byte of payload.
        start: from RunStage to the executor's start.
        finish: from the executor's end to StageCompleted.
        control: from a command to the receiver's event, for a message of the control plane.
        grace_seconds: a batch handed over within it after the one before ended starts at that end, as on an emulated device
            (`zpipe.executors.emulated`): a busy device's schedule does not run late, whatever `start` and `finish` are.
    """

    forward: Spread = Spread()
    forward_seconds_per_byte: float = 0.0
    start: Spread = Spread()
    finish: Spread = Spread()
    control: Spread = Spread()
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
            values[field.name] = _seconds(value, where) if field.type == "float" else spread(value, where)
    return HopProfile(**values)


def spread(value: object, where: str) -> Spread:
    """A list of rising seconds, or one number, as a Spread.

    Raises:
        ConfigError: it is neither; `where` begins the message.
    """
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ConfigError(f"{where}: found an empty list, expected seconds, rising")
    quantiles = tuple(_seconds(item, f"{where}[{index}]") for index, item in enumerate(items))
    if list(quantiles) != sorted(quantiles):
        raise ConfigError(f"{where}: found quantiles that fall, expected them rising")
    return Spread(quantiles)


def _seconds(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ConfigError(f"{where}: found {value!r}, expected a number of seconds >= 0")
    return float(value)
