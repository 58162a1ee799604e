"""Devices files: what is right is read, what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zpipe.boards import Boards, load_boards
from zpipe.bundle import load_bundle
from zpipe.devices import load_device
from zpipe.errors import ConfigError

TWO = "devices:\n  - {name: a, device: raspberry-pi-3}\n  - {name: b, device: raspberry-pi-4}\n"


def read(tmp_path: Path, text: str) -> Boards:
    file = tmp_path / "boards.yaml"
    file.write_text(text)
    return load_boards(file)


@pytest.mark.parametrize(("name", "count"), [("robot", 4), ("mixed", 4), ("star", 7)])
def test_those_that_come_with_zpipe_load_and_say_what_they_show(name: str, count: int) -> None:
    boards = load_boards(name)
    assert len(boards.boards) == count
    assert boards.path is not None
    assert boards.path.read_text().startswith("# ")


def test_counts_links_and_exceptions_are_read(tmp_path: Path) -> None:
    links = "links: {shape: mesh, bandwidth: 10 Mbit/s, except: [{between: [b-2, a], latency: 5 ms, codec: int8}]}\n"
    text = "devices:\n  - {name: a, device: raspberry-pi-3/2, memory: 512 MiB}\n  - {name: b, device: jetson-nano, count: 2}\n"
    boards = read(tmp_path, text + links + "source: b-1\n")
    assert [board.name for board in boards.boards] == ["a", "b-1", "b-2"]
    assert boards.source == 1
    assert boards.boards[0].memory_bytes == 512 * 2**20
    link = boards.link(2, 0)
    assert link is not None
    assert (link.bandwidth_bps, link.latency_seconds, link.codec) == (float("inf"), 0.005, "int8")
    assert (other := boards.link(0, 1)) is not None
    assert (other.bandwidth_bps, other.codec) == (1e7, "auto")


def test_a_measured_board_is_read_beside_the_file_and_must_be_of_this_bundle(tmp_path: Path) -> None:
    bundle = load_bundle("digits-mobilenetv2", verify=False)
    stages = {str(stage): {"1": [0.001, 0.003]} for stage in range(5)}
    macs = {str(spec.index): spec.macs for spec in bundle.stages}
    profile = {"schema": "zpipe.service/1", "stages": stages, "macs": macs, "bundle": "digits", "digest": bundle.digest}
    (tmp_path / "hall.json").write_text(json.dumps(profile))
    (tmp_path / "boards.yaml").write_text("devices:\n  - {name: a, device: hall.json}\n")
    board = load_boards(tmp_path / "boards.yaml", bundle).boards[0]
    assert board.batch_seconds(bundle.stages[2], 4) == pytest.approx(0.008)
    assert board.piece_seconds(1e6) == pytest.approx(1e6 / (bundle.full_macs / 0.01))
    with pytest.raises(ConfigError, match=r"devices\[0\].device: .*hall.json: found a profile of bundle 'digits'"):
        load_boards(tmp_path / "boards.yaml", load_bundle("digits96-mobilenetv2", verify=False))


def test_a_batch_on_a_gpu_pays_its_fixed_part_once() -> None:
    stage = load_bundle("digits-mobilenetv2", verify=False).stages[0]
    board, device = load_boards("robot").boards[3], load_device("jetson-nano")
    assert board.batch_seconds(stage, 8) == pytest.approx(device.fixed_seconds + 8 * stage.macs / device.macs_per_second)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "found an empty file, expected devices, a list"),
        ("devices:\n  - {name: a, device: reference, memory: 512}\n", r"memory: found 512 without a unit, expected .*'512 MB'"),
        (TWO + "links: {shape: line, bandwidth: 20}\n", "links.bandwidth: found 20 without a unit, expected .*'20 Mbit/s'"),
        (TWO + "links: [{between: [a, b], bandwidth: 20}]\n", r"links\[0\].bandwidth: found 20 without a unit"),
        ("devices:\n  - {name: a, device: reference, executor: bogus}\n", r"devices\[0\].executor: found 'bogus', expected one of"),
        ("links: mesh\n", "devices: found nothing, expected a list"),
        ("devices: []\n", "devices: found no devices, expected at least one"),
        ("devices:\n  - {device: raspberry-pi-3}\n", r"devices\[0\].name: found nothing"),
        ("devices:\n  - {name: a}\n", r"devices\[0\].device: found nothing"),
        ("devices:\n  - {name: a, device: abacus}\n", r"devices\[0\].device: found 'abacus', expected one of reference"),
        ("devices:\n  - {name: a, device: none.json}\n", r"devices\[0\].device: .*none.json: found no readable JSON"),
        (TWO.replace("name: b", "name: a"), r"devices\[1\].name: found 'a' a second time"),
        (
            "devices:\n  - {name: a, device: reference, memory: lots}\n",
            r"memory: found 'lots', expected a number above 0",
        ),
        ("devices:\n  - {name: a, device: reference, memory: -5 MB}\n", r"devices\[0\].memory: found '-5 MB'"),
        ("devices:\n  - {name: a, device: reference, speed: 2}\n", r"devices\[0\].speed: found an unknown key"),
        ("devices:\n  - {name: a, device: reference, count: 2, address: 'x:1'}\n", r"address: found one address of 2 devices"),
        (TWO + "links: {shape: line, bandwidth: -1 Mbit/s}\n", "links.bandwidth: found '-1 Mbit/s', expected a number above 0"),
        (TWO + "links: tree\n", "links.shape: found 'tree', expected one of line, ring, mesh"),
        (TWO + "links: [{between: [a, c]}]\n", r"links\[0\].between\[1\]: found 'c', expected the name of a device: one of a, b"),
        (TWO + "links: [{between: [a, a]}]\n", r"links\[0\].between: found 'a' twice, expected two different"),
        (TWO + "links: {shape: mesh, codec: gzip}\n", "links.codec: found 'gzip'"),
        (TWO + "links: []\n", r"links: found no way from the source \(a\) to b, expected links by which every device"),
        (TWO + "source: c\n", "source: found 'c', expected the name of a device"),
        ("devices:\n  - {name: a, device: reference, count: 200}\n", r"count: found 200, expected a whole number up to 100"),
    ],
)
def test_a_mistake_is_told_with_file_key_found_and_expected(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as told:
        read(tmp_path, text)
    assert "boards.yaml: " in str(told.value)


def test_a_link_that_is_no_link_cannot_be_an_exception(tmp_path: Path) -> None:
    three = TWO + "  - {name: c, device: reference}\n"
    with pytest.raises(ConfigError, match=r"links.except\[0\]: found a and c, which are not linked"):
        read(tmp_path, three + "links: {shape: line, except: [{between: [a, c]}]}\n")


def test_a_file_that_is_not_there_is_looked_for_in_its_places() -> None:
    with pytest.raises(ConfigError, match=r"devices 'nowhere': found no such file, expected it .*topologies"):
        load_boards("nowhere")


def test_measured_links_take_the_place_of_stated_ones(tmp_path: Path) -> None:
    ends = ["10.0.0.1:5800", "10.0.0.2:5800"]
    rows = [{"addresses": ends, "latency": 0.004, "bandwidth": 3e6}]
    (tmp_path / "links.json").write_text(json.dumps({"schema": "zpipe.service/1", "links": rows}))
    devices = [f"  - {{name: {name}, device: reference, address: '{at}'}}" for name, at in zip("ab", ends, strict=True)]
    text = "\n".join(["devices:", *devices, "links: {shape: mesh, bandwidth: 1 Gbit/s}", "measured: links.json", ""])
    link = read(tmp_path, text).links[0]
    assert (link.bandwidth_bps, link.latency_seconds) == (3e6, 0.004)
    with pytest.raises(ConfigError, match=r"measured: found no link between devices of this file \(it knows 10.0.0.1:5800"):
        read(tmp_path, text.replace("10.0.0.", "10.0.9."))


def test_measured_links_of_nodes_without_addresses_are_told_apart_by_rank(tmp_path: Path) -> None:
    nowhere = ["127.0.0.1:0", "127.0.0.1:0"]
    pairs = {(0, 1): 3e6, (1, 0): 4e6, (1, 2): 9e6}
    rows = [{"between": list(pair), "addresses": nowhere, "latency": 0.004, "bandwidth": bps} for pair, bps in pairs.items()]
    (tmp_path / "links.json").write_text(json.dumps({"schema": "zpipe.service/1", "links": rows}))
    devices = [f"  - {{name: {name}, device: reference}}" for name in "abc"]
    text = "\n".join(["devices:", *devices, "links: {shape: mesh, bandwidth: 1 Gbit/s}", "measured: links.json", ""])
    found = {link.between: link.bandwidth_bps for link in read(tmp_path, text).links}
    assert found == {(0, 1): 3e6, (0, 2): 1e9, (1, 2): 9e6}
    for row in rows:
        del row["between"]
    (tmp_path / "links.json").write_text(json.dumps({"schema": "zpipe.service/1", "links": rows}))
    with pytest.raises(ConfigError, match=r"links\[0\].between: found None, expected the ranks of both ends"):
        read(tmp_path, text)
