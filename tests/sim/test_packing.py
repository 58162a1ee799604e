"""Codecs in the simulator: sizes on links, answers behind them, and the choice on `auto` links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sim.worlds import bundle
from zpipe.codecs import make_codecs
from zpipe.sim import SimOptions, run_sim
from zpipe.topology import Topology, from_dict


def two_boards(codec: str, *, bandwidth: str = "100 Mbit/s", **node: Any) -> Topology:
    return from_dict(
        {
            "name": "two",
            "bundle": "digits-mobilenetv2",
            "nodes": [{"rank": 0, "stages": [0], **node}, {"rank": 1, "stages": [1, 2, 3, 4], **node}],
            "links": [{"between": [0, 1], "bandwidth": bandwidth, "latency": "1 ms", "codec": codec}],
        }
    )


def answers(topology: Topology, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    report, log = run_sim(SimOptions(topology, count=500, warm_up=0, rate_hz=60.0, check=True))
    log.samples_jsonl(folder / "samples.jsonl")
    return report, [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("codec", ["none", "fp16", "int8", "int8+zstd", "bottleneck"])
def test_rows_behind_a_link_have_its_codecs_answers_and_size(codec: str, tmp_path: Path) -> None:
    report, lines = answers(two_boards(codec), tmp_path)
    here, there = bundle().replay(), bundle().replay(codec)
    for line in lines:
        table = here if line["exit_stage"] == 0 else there
        assert line["label"] == table.labels[line["index"], line["exit_stage"]]
        assert np.float32(line["confidence"]) == table.confidences[line["index"], line["exit_stage"]]
    (link,) = report["links"]
    row_bytes = make_codecs(bundle(), (codec,))[codec, 1].typical_row_bytes
    assert row_bytes * link["tasks"] < link["bytes"] < (row_bytes + 150) * link["tasks"]


def test_emulated_boards_have_the_links_table_everywhere(tmp_path: Path) -> None:
    _, lines = answers(two_boards("int8", executor="emulated", device="raspberry-pi-4/2"), tmp_path)
    table = bundle().replay("int8")
    assert all(line["label"] == table.labels[line["index"], line["exit_stage"]] for line in lines)


def test_an_auto_link_packs_as_little_as_its_bandwidth_allows(tmp_path: Path) -> None:
    fast, _ = answers(two_boards("auto", bandwidth="1 Gbit/s"), tmp_path)
    slow, _ = answers(two_boards("auto", bandwidth="5 Mbit/s"), tmp_path)
    per_task = [report["links"][0]["bytes"] / report["links"][0]["tasks"] for report in (fast, slow)]
    assert per_task[0] > 98_304
    assert per_task[1] < 98_304 / 3
    assert slow["counts"]["result"] == slow["counts"]["submitted"]
