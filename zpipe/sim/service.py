"""How long a batch takes and what it answers, in place of an executor."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from zpipe.bundle import Bundle
from zpipe.devices import Device, load_device, service_seconds
from zpipe.errors import ConfigError
from zpipe.model import NEVER_EXIT, GateSpec
from zpipe.sim.hop import Spread, spread
from zpipe.topology import NodeSpec, Topology

SERVICE_SCHEMA = "zpipe.service/1"

#: (rank, stage, rows) -> seconds: how long a batch keeps a node's executor busy.
Service: TypeAlias = Callable[[int, int, int], float]
#: (stage, indices into the evaluation set, gate) -> per row: whether it exits, its label, its confidence.
Answers: TypeAlias = Callable[[int, Sequence[int], GateSpec], tuple[list[bool], list[int], list[float]]]


def device_service(topology: Topology, bundle: Bundle, *, device: str) -> Service:
    """Constant times from device profiles; nodes that name no device are a `device`.

    Raises:
        ConfigError: there is no such profile.
    """
    devices = [_device(topology, node, device) for node in topology.nodes]
    known: dict[tuple[str, int, int], float] = {}

    def seconds(rank: int, stage: int, rows: int) -> float:
        key = (devices[rank].name, stage, rows)
        found = known.get(key)
        if found is None:
            found = known[key] = service_seconds(devices[rank], bundle.stages[stage], rows)
        return found

    return seconds


def _device(topology: Topology, node: NodeSpec, otherwise: str) -> Device:
    try:
        return load_device(node.device or otherwise)
    except ConfigError as exc:
        where = f"{topology.path or topology.name}: nodes[{node.rank}]." if node.device else "--"
        raise ConfigError(f"{where}{exc}") from exc


def measured_service(times: Mapping[int, Mapping[int, Spread]], *, rng: random.Random) -> Service:
    """Times drawn from measured distributions, the same at every node.

    Args:
        times: {stage: {rows: distribution of a batch's seconds}}; between two measured batch sizes both are weighed, beyond the
            largest the last one grows in proportion.
        rng: of the draws.
    """
    tables = {stage: sorted(by_rows.items()) for stage, by_rows in times.items()}

    def seconds(rank: int, stage: int, rows: int) -> float:
        table = tables[stage]
        below = [entry for entry in table if entry[0] <= rows] or table[:1]
        above = [entry for entry in table if entry[0] >= rows]
        low, low_spread = below[-1]
        if not above or low >= rows:
            return low_spread.draw(rng) * (rows / low if not above else 1.0)
        high, high_spread = above[0]
        share = (rows - low) / (high - low)
        return (1.0 - share) * low_spread.draw(rng) + share * high_spread.draw(rng)

    return seconds


def load_service(path: Path, bundle: Bundle) -> dict[int, dict[int, Spread]]:
    """Reads measured service times: `{"schema": "zpipe.service/1", "stages": {"0": {"1": [quantiles, in seconds], "8": [...]}}}`.

    Raises:
        ConfigError: it cannot be read, a stage is missing, or a value is no list of rising seconds.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: found no readable JSON ({exc}), expected service times ({SERVICE_SCHEMA})") from exc
    if not isinstance(document, dict) or document.get("schema") != SERVICE_SCHEMA or not isinstance(document.get("stages"), dict):
        raise ConfigError(f"{path}: found another document, expected schema {SERVICE_SCHEMA!r} and an object `stages`")
    found: dict[int, dict[int, Spread]] = {}
    for spec in bundle.stages:
        by_rows = document["stages"].get(str(spec.index))
        where = f"{path}: stages.{spec.index}"
        if not isinstance(by_rows, dict) or not by_rows:
            raise ConfigError(f"{where}: found {by_rows!r}, expected an object of rows and their seconds, one for each stage")
        found[spec.index] = {_rows(rows, where): spread(values, f"{where}.{rows}") for rows, values in by_rows.items()}
    return found


def _rows(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{where}: found {text!r} rows, expected a whole number from 1 on")
    return int(text)


def replayed(bundle: Bundle, codec: str) -> Answers:
    """What every exit says about every evaluation sample, as the bundle recorded it (`replay.npz`) under a codec.

    The gate's decision is the executors' own: `confidence >= threshold` in float32 below NEVER_EXIT, and every row at the last
    stage (`zpipe.executors.gate`, rule 3); a test compares the two.

    Raises:
        BundleError: it has no replay, or none under this codec.
    """
    replay = bundle.replay(codec)
    # Plain lists by stage: one element of an array costs ten times as much as one of a list.
    all_labels: list[list[int]] = replay.labels.T.tolist()
    all_confidences: list[list[float]] = replay.confidences.T.tolist()
    rounded: dict[float, float] = {}  # {threshold: as float32, infinite where it means never}

    def least(threshold: float) -> float:
        value = rounded.get(threshold)
        if value is None:
            value = float(np.float32(threshold))
            value = rounded[threshold] = value if value < NEVER_EXIT else math.inf
        return value

    def answers(stage: int, rows: Sequence[int], gate: GateSpec) -> tuple[list[bool], list[int], list[float]]:
        labels, recorded = all_labels[stage], all_confidences[stage]
        confidences = [recorded[row] for row in rows]
        if gate.last:
            exited = [True] * len(rows)
        else:
            exited = [value >= least(bound) for value, bound in zip(confidences, gate.thresholds, strict=True)]
        return exited, [labels[row] for row in rows], confidences

    return answers
