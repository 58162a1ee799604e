"""Measured service times and memory of a board, as `zpipe profile` writes them and planner and simulator read them.

One JSON document, `"schema": "zpipe.service/1"`:

    stages       {"0": {"1": [quantiles of a batch's seconds, rising], "8": [...]}, ...}: what plans and simulations use
    tight        the same in a loop without pauses, for people: caches are warm there as they never are in a node
    memory       {"process": bytes of a node without stages, "stages": {"0": bytes that this stage adds}}
    macs         {"0": multiply-adds of one row}: lets the times speak about another network's pieces, roughly
    links        [{"between": [0, 1], "addresses": [...], "latency": seconds, "bandwidth": bits per second or null}], as nodes
                 estimate them
    bundle, digest, executor, machine, pace   where it comes from

Only `schema` must be there, and `stages` or `links`, whichever is asked for.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpipe.bundle import Bundle
from zpipe.errors import ConfigError

SERVICE_SCHEMA = "zpipe.service/1"


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
    def constant(self) -> float | None:
        """What `draw` gives each time without asking `rng`; None where it varies."""
        return self.quantiles[0] if len(self.quantiles) == 1 else None

    @property
    def mean(self) -> float:
        """Of what `draw` gives."""
        if len(self.quantiles) == 1:
            return self.quantiles[0]
        return (sum(self.quantiles) - (self.quantiles[0] + self.quantiles[-1]) / 2.0) / (len(self.quantiles) - 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one board.

    Attributes:
        file: where it was read.
        times: {stage: {rows: distribution of a batch's seconds}}.
        process_bytes: of a node without stages; None where that was not measured.
        stage_bytes: {stage: bytes it adds}; empty where that was not measured.
        macs: {stage: multiply-adds of a row}; empty where that is not said.
    """

    file: Path
    times: Mapping[int, Mapping[int, Spread]]
    process_bytes: float | None = None
    stage_bytes: Mapping[int, float] = field(default_factory=dict)
    macs: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, stage: int, rows: float) -> float:
        """Mean seconds of a batch, between measured sizes as `blended` says."""
        return blended(self.times[stage], rows, lambda spread: spread.mean)

    @property
    def macs_per_second(self) -> float:
        """Of all stages together at one row: what is left of the measurement for a network that was not measured.

        Raises:
            ConfigError: the file does not say how many multiply-adds its stages have.
        """
        missing = sorted(set(self.times) - set(self.macs))
        if missing:
            raise ConfigError(
                f"{self.file}: macs: found none for stages {missing}, expected multiply-adds of each, to speak about another "
                "network; measure again with `zpipe profile`"
            )
        return sum(self.macs[stage] for stage in self.times) / sum(self.seconds(stage, 1) for stage in self.times)


def blended(table: Mapping[int, Spread], rows: float, value: Callable[[Spread], float]) -> float:
    """A batch's value: between two measured batch sizes both are weighed, beyond the largest it grows in proportion."""
    low = max((size for size in table if size <= rows), default=min(table))
    high = min((size for size in table if size >= rows), default=None)
    if high is None or low >= rows:
        return value(table[low]) * (rows / low if high is None else 1.0)
    share = (rows - low) / (high - low)
    return (1.0 - share) * value(table[low]) + share * value(table[high])


# ---- reading -----------------------------------------------------------------------------------


def load_service(path: Path, bundle: Bundle | None) -> Measured:
    """Reads a profile.

    Args:
        path: what `zpipe profile --json` wrote.
        bundle: whose stages must all be there; None takes those that are.

    Raises:
        ConfigError: it cannot be read, a stage is missing, or a value is no list of rising seconds.
    """
    document = _document(path)
    if not isinstance(document.get("stages"), dict):
        raise ConfigError(
            f"{path}: stages: found {document.get('stages')!r}, expected an object; measure them with `zpipe profile`"
        )
    _check_bundle(path, document, bundle)
    stages = document["stages"]
    names = sorted(stages) if bundle is None else [str(spec.index) for spec in bundle.stages]
    times = {_number(name, f"{path}: stages", least=0): _times(stages.get(name), f"{path}: stages.{name}") for name in names}
    memory = document.get("memory") or {}
    if not isinstance(memory, dict):
        raise ConfigError(f"{path}: memory: found {memory!r}, expected an object")
    process = memory.get("process")
    return Measured(
        path,
        times,
        process_bytes=None if process is None else amount(process, f"{path}: memory.process"),
        stage_bytes=dict(_amounts(memory.get("stages"), f"{path}: memory.stages")),
        macs=dict(_amounts(document.get("macs"), f"{path}: macs")),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: found no readable JSON ({exc}), expected service times ({SERVICE_SCHEMA})") from exc
    if not isinstance(document, dict) or document.get("schema") != SERVICE_SCHEMA:
        raise ConfigError(f"{path}: found another document, expected schema {SERVICE_SCHEMA!r}")
    return document


def load_links(path: Path) -> dict[frozenset[str | int], tuple[float, float]]:
    """Measured links: {both ends: (bits per second, latency in seconds)}; of two directions the slower counts.

    An end is its address, or its rank where one of the two has none that tells it from others (port 0: any that was free).

    Raises:
        ConfigError: it cannot be read, or has no links that name both ends.
    """
    document = _document(path)
    rows = document.get("links")
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path}: links: found none, expected some; run `zpipe profile --topology FILE --json {path}`")
    found: dict[frozenset[str | int], tuple[float, float]] = {}
    for index, row in enumerate(rows):
        where = f"{path}: links[{index}]"
        ends = row.get("addresses") if isinstance(row, dict) else None
        if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, str) for end in ends):
            raise ConfigError(f"{where}.addresses: found {ends!r}, expected the addresses of both ends")
        if not all(has_port(end) for end in ends) or len(set(ends)) < 2:
            ends = row.get("between")
            if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is int for end in ends):
                raise ConfigError(
                    f"{where}.between: found {ends!r}, expected the ranks of both ends, as their addresses do not tell"
                )
        bandwidth, latency = row.get("bandwidth"), row.get("latency")
        there = math.inf if bandwidth is None else amount(bandwidth, f"{where}.bandwidth")
        late = 0.0 if latency is None else amount(latency, f"{where}.latency")
        other = found.get(frozenset(ends), (math.inf, 0.0))
        found[frozenset(ends)] = (min(there, other[0]), max(late, other[1]))
    return found


def has_port(address: str) -> bool:
    """Whether an address tells a node from others; port 0 is whichever is free."""
    return not address.endswith(":0")


def _check_bundle(path: Path, document: dict[str, Any], bundle: Bundle | None) -> None:
    """The network of a file that names one must be this one: another's stages take other times."""
    digest = document.get("digest")
    if bundle is not None and digest is not None and digest != (bundle.emulates or bundle).digest:
        raise ConfigError(
            f"{path}: found a profile of bundle {document.get('bundle')!r} ({str(digest)[:12]}), expected one of {bundle.name} "
            f"({(bundle.emulates or bundle).digest[:12]}); measure it with `zpipe profile --bundle {bundle.path}`"
        )


def _times(by_rows: object, where: str) -> dict[int, Spread]:
    if not isinstance(by_rows, dict) or not by_rows:
        raise ConfigError(f"{where}: found {by_rows!r}, expected an object of rows and their seconds, one for each stage")
    return {_number(rows, where, least=1, of="rows"): spread(values, f"{where}.{rows}") for rows, values in by_rows.items()}


def _number(text: str, where: str, *, least: int, of: str = "stage") -> int:
    if not text.isdecimal() or int(text) < least:
        found = f"{text!r} {of}" if of == "rows" else f"{of} {text!r}"
        raise ConfigError(f"{where}: found {found}, expected a whole number from {least} on")
    return int(text)


def _amounts(values: object, where: str) -> Iterator[tuple[int, float]]:
    if values is None:
        return
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: found {values!r}, expected an object, a number for each stage")
    for name, value in values.items():
        yield _number(name, where, least=0), amount(value, f"{where}.{name}")


def spread(value: object, where: str) -> Spread:
    """A list of rising seconds, or one number, as a Spread.

    Raises:
        ConfigError: it is neither; `where` begins the message.
    """
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ConfigError(f"{where}: found an empty list, expected seconds, rising")
    quantiles = tuple(amount(item, f"{where}[{index}]") for index, item in enumerate(items))
    if list(quantiles) != sorted(quantiles):
        raise ConfigError(f"{where}: found quantiles that fall, expected them rising")
    return Spread(quantiles)


def amount(value: object, where: str) -> float:
    """A finite number >= 0.

    Raises:
        ConfigError: it is none; `where` begins the message.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ConfigError(f"{where}: found {value!r}, expected a number >= 0")
    return float(value)
