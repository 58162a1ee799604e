"""What a link's codec needs of its bundle is checked when a topology is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.mesh import HALF
from zpipe.bundle import load_bundle, manifest_digest
from zpipe.codecs import load_bottleneck
from zpipe.configure import lane_bytes, load_checked, prepare
from zpipe.errors import BundleError, TopologyError
from zpipe.topology import from_dict


def without_codecs(folder: Path) -> Path:
    """The half-width digits with neither autoencoder nor measured codecs."""
    shutil.copytree(HALF, folder, ignore=shutil.ignore_patterns("trt"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest = {key: value for key, value in manifest.items() if key not in ("bottleneck", "codecs")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(folder).digest == manifest_digest(manifest)
    return folder


def write(folder: Path, arrays: Mapping[str, Any]) -> None:
    kept: dict[str, Any] = dict(arrays)  # NumPy's stub takes its flags for keys of another type
    np.savez(folder / "bottleneck.npz", **kept)


def refusal(bundle: Path, codec: str) -> str:
    nodes = [{"rank": 0, "stages": [0]}, {"rank": 1, "stages": [1, 2, 3, 4]}]
    plain = {"name": "two", "bundle": str(bundle), "nodes": nodes, "links": {"shape": "line", "codec": codec}}
    with pytest.raises(TopologyError) as caught:
        load_checked(from_dict(plain))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_learned_codec_of_a_bundle_without_one_is_refused(tmp_path: Path) -> None:
    message = refusal(without_codecs(tmp_path / "plain"), "bottleneck")
    assert message.startswith("two: links[0].codec: found bottleneck, which bundle digits-mobilenetv2-half cannot do: ")
    assert "expected a file for the codec bottleneck; take another codec" in message


def test_auto_with_a_bundle_that_does_not_tell_what_codecs_cost_is_refused(tmp_path: Path) -> None:
    message = refusal(without_codecs(tmp_path / "plain"), "auto")
    assert "found auto, expected a bundle whose manifest says what codecs cost" in message


def test_links_know_the_bytes_of_a_task_under_their_codec() -> None:
    bundle = load_bundle(HALF)
    assert lane_bytes(bundle) == lane_bytes(bundle, "auto") == {0: 3072, 1: 16384, 2: 4096, 3: 2048, 4: 3072}
    assert lane_bytes(bundle, "int8") == {0: 3072, 1: 4128, 2: 1056, 3: 576, 4: 864}
    measured = lane_bytes(bundle, "int8+zstd")
    assert [round(measured[cut + 1]) for cut in range(4)] == [round(size) for size in bundle.codecs["int8+zstd"].cut_bytes]
    assert lane_bytes(bundle.emulated(), "int8+zstd")[1] == measured[1] + 4
    assert lane_bytes(bundle.emulated(), "fp16") == {0: 3076, 1: 8196, 2: 2052, 3: 1028, 4: 1540}


def test_auto_inputs_are_decided_for_each_source_and_nobody_runs_another_topology() -> None:
    """Raw inputs are fewer bytes than what is left after stage 0 where links carry that as it is, and more where they pack it."""
    nodes = [{"rank": rank, "stages": [0, 1, 2, 3, 4]} for rank in range(3)]
    links = [{"between": [0, 1], "codec": "none"}, {"between": [1, 2], "codec": "int8"}]
    plain = {"name": "three", "bundle": str(HALF), "nodes": nodes, "links": links, "sources": [0, 2]}
    as_written = from_dict({**plain, "policy": {"offload": "pa-mdi", "offload_input": "auto"}})
    prepared, _ = prepare(as_written)
    assert (prepared.may_send_input(0), prepared.may_send_input(2)) == (True, False)
    assert (prepared.farther(0, 1), prepared.farther(2, 1), prepared.farther(1, 0)) == ((0,), (), ())
    assert (as_written.farther(0, 1), as_written.farther(2, 1)) == ((0,), (2,)), "open: every lane there may be"
    assert prepared.digest() == as_written.digest(), "who looks at the nodes compares with the file"
    assert prepare(from_dict(prepared.to_dict()))[0] == prepared, "as does a child process, which decides anew"
    never = replace(prepared, policy=replace(prepared.policy, offload_input="no"))
    assert never.digest() != prepared.digest()
    assert never.farther(0, 1) == ()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"cut1.decode": None}, "bottleneck cut1.decode: found no array"),
        ({"cut1.encode": np.zeros((4, 3), np.float32)}, r"bottleneck cut1.encode: found [4, 3]"),
        ({"cut1.encode_bias": np.zeros(5, np.float32)}, "bottleneck cut1.encode_bias: found [5]"),
        ({"cut0.encode": np.zeros((4, 16), np.float64)}, "cut0.encode: found float64, expected float32"),
    ],
)
def test_weights_that_do_not_fit_their_cut_are_refused(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(HALF, folder)
    arrays = load_bundle(HALF).bottleneck() | change
    write(folder, {key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(BundleError) as caught:
        load_bottleneck(load_bundle(folder, verify=False))
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_may_do_without_an_autoencoder(tmp_path: Path) -> None:
    folder = tmp_path / "fewer"
    shutil.copytree(HALF, folder)
    arrays = {key: array for key, array in load_bundle(HALF).bottleneck().items() if not key.startswith("cut2.")}
    write(folder, arrays)
    assert sorted(load_bottleneck(load_bundle(folder, verify=False))) == [0, 1, 3]
