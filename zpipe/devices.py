"""Device profiles: how long a stage takes on a board we do not have. `devices.yaml` holds them, each with its source.

The model, on purpose no richer than its data: `seconds = fixed + rows * multiply-adds / rate`. A CPU has no fixed part, so batches
buy nothing on it; a GPU has one, which a batch pays once. The figures are assumptions (see the top of `devices.yaml`).
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from zpipe.errors import ConfigError
from zpipe.model import StageSpec

#: What may follow the slash: no board is further from another.
SLOWER = (0.001, 1000.0)

_FILE = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True, slots=True)
class Device:
    """How fast one board computes.

    Attributes:
        name: as a topology's `device:` says it.
        macs_per_second: multiply-adds per second, > 0.
        fixed_seconds: what a batch costs however few rows it has, >= 0.
        source: where the figures come from.
    """

    name: str
    macs_per_second: float
    fixed_seconds: float
    source: str


def load_device(name: str) -> Device:
    """The profile of that name; `NAME/4` is the same board four times slower, whatever it does.

    Raises:
        ConfigError: there is no such profile, or what follows the slash is no number above 0.
    """
    base, slash, divisor = name.partition("/")
    profiles = _profiles()
    if base not in profiles:
        near = difflib.get_close_matches(base, profiles, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join(profiles)
        raise ConfigError(f"device: found {name!r}, expected one of {known}{hint}, or one with /4 after it: four times slower")
    if not slash:
        return profiles[base]
    slower = _divisor(name, divisor)
    profile = profiles[base]
    return Device(name, profile.macs_per_second / slower, profile.fixed_seconds * slower, profile.source)


def service_seconds(device: Device, stage: StageSpec, batch: int) -> float:
    """How long a batch of so many rows keeps the device busy with a stage; rises with rows and multiply-adds."""
    return device.fixed_seconds + batch * stage.macs / device.macs_per_second


def device_names() -> tuple[str, ...]:
    """The profiles there are, without slower variants."""
    return tuple(_profiles())


def _divisor(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not SLOWER[0] <= value <= SLOWER[1]:
        base, expected = name.partition("/")[0], f"a number from {SLOWER[0]:g} to {SLOWER[1]:g} after the slash"
        raise ConfigError(f"device: found {name!r}, expected {expected}, such as {base}/4")
    return value


@cache
def _profiles() -> dict[str, Device]:
    entries = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: Device(name, **values) for name, values in entries.items()}
