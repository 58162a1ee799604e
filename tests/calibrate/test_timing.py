"""Seconds to an exit in an empty network, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.mesh import HALF
from zpipe.bundle import load_bundle
from zpipe.calibrate.timing import exit_seconds
from zpipe.devices import load_device, service_seconds
from zpipe.errors import ConfigError
from zpipe.topology import Topology, from_dict

BUNDLE = load_bundle(HALF)
PI = load_device("raspberry-pi-4")
RUN = [service_seconds(PI, stage, 1) for stage in BUNDLE.stages]
CUT = [stage.output.bytes for stage in BUNDLE.stages if stage.output is not None]


def topology(nodes: list[list[int]], links: Any, **more: Any) -> Topology:
    plain = [{"rank": rank, "stages": stages} for rank, stages in enumerate(nodes)]
    return from_dict({"name": "t", "bundle": str(HALF), "nodes": plain, "links": links, **more})


def test_one_board_takes_the_sum_of_its_stages() -> None:
    found = exit_seconds(topology([[0, 1, 2, 3, 4]], []), BUNDLE, device="raspberry-pi-4")
    assert found == pytest.approx([sum(RUN[: stage + 1]) for stage in range(5)])


def test_line_adds_bytes_over_bandwidth_and_latency_both_ways() -> None:
    links = [{"between": [0, 1], "bandwidth": "8 Mbit/s", "latency": "5 ms"}]
    found = exit_seconds(topology([[0, 1], [2, 3, 4]], links), BUNDLE, device="raspberry-pi-4")
    assert found[1] == pytest.approx(sum(RUN[:2]))
    assert found[2] == pytest.approx(sum(RUN[:3]) + CUT[1] / 1e6 + 2 * 0.005)


def test_codec_of_a_link_shrinks_what_crosses_it() -> None:
    links = [{"between": [0, 1], "bandwidth": "8 Mbit/s", "codec": "int8"}]
    plain = [{"between": [0, 1], "bandwidth": "8 Mbit/s"}]
    coded, raw = (exit_seconds(topology([[0], [1, 2, 3, 4]], each), BUNDLE, device="raspberry-pi-4") for each in (links, plain))
    assert raw[1] - coded[1] == pytest.approx(0.75 * CUT[0] / 1e6, rel=0.05)


def test_quickest_host_is_taken_and_inputs_stay_unless_they_may_go() -> None:
    fast: list[dict[str, Any]] = [
        {"rank": 0, "stages": [0, 1, 2, 3, 4], "device": "raspberry-pi-4"},
        {"rank": 1, "stages": [0, 1, 2, 3, 4], "device": "reference"},
    ]
    plain = {"name": "t", "bundle": str(HALF), "nodes": fast, "links": "line"}
    stay = exit_seconds(from_dict(plain), BUNDLE, device="raspberry-pi-4")
    leave = exit_seconds(from_dict({**plain, "policy": {"offload_input": True}}), BUNDLE, device="raspberry-pi-4")
    assert stay[0] == pytest.approx(RUN[0])
    assert leave[0] == pytest.approx(service_seconds(load_device("reference"), BUNDLE.stages[0], 1))
    assert stay[4] < sum(RUN)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: found 'toaster'"):
        exit_seconds(topology([[0, 1, 2, 3, 4]], []), BUNDLE, device="toaster")
