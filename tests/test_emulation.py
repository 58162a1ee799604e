"""Emulated topologies: which bundle their nodes run, and each way one is refused in one line when it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.bundle import file_digest, load_bundle
from zpipe.configure import load_checked
from zpipe.emulation import bundle_to_run, replay_codec
from zpipe.errors import ConfigError
from zpipe.runtime.node import executor_for
from zpipe.topology import Topology, from_dict, override

HALF = Path(__file__).parents[1] / "engines" / "digits-mobilenetv2-half"
DEVICE = "raspberry-pi-3/12"


def line(*codecs: str, bundle: Path = HALF, node: Callable[[int], Mapping[str, Any]] = lambda rank: {}) -> Topology:
    """A line of one more emulated node than there are codecs; `node(rank)` adds or changes keys."""
    count = len(codecs) + 1
    hosted = [[rank] for rank in range(count - 1)] + [list(range(count - 1, 5))]
    nodes = [
        {"rank": rank, "stages": stages, "executor": "emulated", "device": DEVICE, **node(rank)}
        for rank, stages in enumerate(hosted)
    ]
    links = [{"between": [rank, rank + 1], "codec": codec} for rank, codec in enumerate(codecs)]
    return from_dict({"name": "boards", "bundle": str(bundle), "nodes": nodes, "links": links})


def refusal(topology: Topology) -> str:
    with pytest.raises(ConfigError) as info:
        load_checked(topology)
    message = str(info.value)
    assert "\n" not in message
    assert message.startswith("boards: ")
    return message.removeprefix("boards: ")


@pytest.fixture
def with_tables(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the half-width bundle whose replay has just these tables."""

    def make(*codecs: str) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(HALF, folder)
        replay = load_bundle(HALF).replay()
        tables: dict[str, Any] = {}
        for codec in codecs:
            tables |= {f"label.{codec}": replay.labels, f"confidence.{codec}": replay.confidences}
        np.savez_compressed(folder / "replay.npz", **tables)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["digests"]["replay.npz"] = file_digest(folder / "replay.npz")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


def test_emulated_nodes_run_the_emulation_and_others_the_bundle_itself() -> None:
    real = load_bundle(HALF)
    assert load_checked(line("none", "none")) == real.emulated()
    assert load_checked(override(line("none", "none"), executor="onnx")) == real
    assert bundle_to_run(line("none"), real) == real.emulated()


def test_a_source_without_stages_may_name_any_executor() -> None:
    nodes = [{"rank": 0, "stages": []}, {"rank": 1, "stages": [0, 1, 2, 3, 4], "executor": "emulated", "device": DEVICE}]
    topology = from_dict({"name": "boards", "bundle": str(HALF), "nodes": nodes, "links": "line"})
    assert load_checked(topology).emulates is not None


def test_a_device_is_looked_at_only_where_it_is_used() -> None:
    topology = line("none", node=lambda rank: {"executor": "onnx", "device": "my-own-board"})
    assert load_checked(topology).emulates is None


def test_each_node_gets_its_own_device_and_the_codec_of_the_links(with_tables: Callable[..., Path]) -> None:
    bundle = with_tables("none", "int8")
    topology = line("int8", "int8+zstd", bundle=bundle, node=lambda rank: {"device": f"raspberry-pi-3/{12 + rank}"})
    for rank in range(3):
        executor = executor_for(topology, load_checked(topology), rank)
        assert f"on raspberry-pi-3/{12 + rank} | stages {topology.node(rank).stages} | codec int8>" in repr(executor)


@pytest.mark.parametrize(
    ("codecs", "table"),
    [(("none", "none"), "none"), (("none", "int8"), "int8"), (("int8+zstd", "none"), "int8"), (("fp16", "fp16"), "fp16")],
)
def test_the_replay_is_the_one_of_the_lossy_codec_on_the_links(codecs: tuple[str, ...], table: str) -> None:
    assert replay_codec(line(*codecs)) == table


# ---- refusals ----------------------------------------------------------------------------------


def test_emulated_nodes_beside_others_are_refused() -> None:
    message = refusal(line("none", "none", node=lambda rank: {"executor": "onnx"} if rank == 1 else {}))
    assert message.startswith("nodes[1].executor: found 'onnx' beside emulated nodes, expected 'emulated'")


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("", "nodes[1].device: found '', expected one of reference, "),
        ("raspberry-pie-4", "(did you mean raspberry-pi-4?)"),
        ("raspberry-pi-3/0", "nodes[1].device: found 'raspberry-pi-3/0', expected a number from 0.001 to 1000 after the slash"),
        (
            "raspberry-pi-3",
            "nodes[1].device: found 'raspberry-pi-3', which does stage 1 in 0.56 ms, expected at least 5 ms a stage",
        ),
        ("raspberry-pi-3", "name 'raspberry-pi-3/12'"),
    ],
)
def test_a_device_that_is_unknown_or_too_fast_is_refused(device: str, complaint: str) -> None:
    assert complaint in refusal(line("none", "none", node=lambda rank: {"device": device} if rank == 1 else {}))


def test_a_codec_without_a_table_is_refused(with_tables: Callable[..., Path]) -> None:
    message = refusal(line("none", "fp16", bundle=with_tables("none", "int8")))
    assert message.startswith("links[1].codec: found 'fp16', expected one of none, int8, int8+zstd, for which bundle")


def test_two_lossy_codecs_are_refused(with_tables: Callable[..., Path]) -> None:
    message = refusal(line("none", "int8", "fp16", bundle=with_tables("none", "int8", "fp16")))
    assert message.startswith("links[2].codec: found 'fp16' beside 'int8', expected one lossy codec")


def test_a_codec_chosen_while_it_runs_is_refused() -> None:
    assert refusal(line("auto")).startswith("links[0].codec: found 'auto', expected one of none")


def test_a_bundle_without_a_replay_is_refused(with_tables: Callable[..., Path]) -> None:
    message = refusal(line("none", bundle=with_tables("int8")))
    assert message.startswith("bundle: found no replay in digits-mobilenetv2-half, expected one to emulate")
