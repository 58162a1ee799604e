"""Which board is which."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zpipe.errors import ConfigError
from zpipe.fleet.hosts import Board, boards, hosts_file
from zpipe.topology import Topology, load_topology


def topology(folder: Path, *addresses: str, security: object = "none") -> Topology:
    """A line; rank 0 is the source."""
    nodes = [{"rank": rank, "stages": [rank], "address": address} for rank, address in enumerate(addresses)]
    file = folder / "hall.yaml"
    file.write_text(yaml.safe_dump({"bundle": "x", "nodes": nodes, "links": "line", "security": security}))
    return load_topology(file)


@pytest.fixture
def three(tmp_path: Path) -> Topology:
    return topology(tmp_path, "10.0.0.10:5800", "10.0.0.11:5800", "10.0.0.12:5800", "10.0.0.12:5900")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [Board("10.0.0.11", ranks=(1,)), Board("10.0.0.12", ranks=(2, 3))]),
        (["10.0.0.12"], [Board("10.0.0.12", ranks=(2, 3))]),
        (["nano@10.0.0.11:2222"], [Board("10.0.0.11", "nano", 2222, (1,))]),
        (["1=orin1", "2,3=nano@orin2"], [Board("orin1", ranks=(1,)), Board("orin2", "nano", ranks=(2, 3))]),
        (["2,1"], [Board("10.0.0.11", ranks=(1,)), Board("10.0.0.12", ranks=(2,))]),
        (["3=[fe80::1%eth0]:22"], [Board("fe80::1%eth0", port=22, ranks=(3,))]),
    ],
)
def test_words_say_which_boards_are_meant(three: Topology, words: list[str], expected: list[Board]) -> None:
    assert boards(three, words) == expected


def test_the_file_beside_the_topology_says_who_logs_in_where(three: Topology, tmp_path: Path) -> None:
    assert hosts_file(three, None) is None
    beside = tmp_path / "hall.hosts"
    beside.write_text("# ours\n0=me@robot\n\n1=nano@orin1:2222  # the left one\nroot@10.0.0.12\n")
    file = hosts_file(three, None)
    assert file == beside
    serving = [Board("orin1", "nano", 2222, (1,)), Board("10.0.0.12", "root", ranks=(2, 3))]
    assert boards(three, [], file) == serving
    assert boards(three, [], file, sources=True) == [Board("robot", "me", ranks=(0,)), *serving]
    assert boards(three, ["orin1"], file) == boards(three, ["1"], file) == boards(three, ["orin1:2222"], file) == serving[:1]
    with pytest.raises(ConfigError, match=r"found orin1:22, where the topology has no rank \(it has .* 1 at nano@orin1:2222"):
        boards(three, ["orin1:22"], file)
    assert hosts_file(three, tmp_path / "other") == tmp_path / "other"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-oProxyCommand=x"], "HOST: found '-oProxyCommand=x', expected [RANK=][USER@]HOST[:PORT]"),
        (["a b"], "HOST: found 'a b', expected"),
        (["1=orin:99999"], "HOST: found '1=orin:99999', expected"),
        (["7=orin"], "HOST: found rank 7, expected 0 to 3"),
        (["orin"], "HOST: found orin, where the topology has no rank (it has 0 at 10.0.0.10, 1 at 10.0.0.11"),
        (["1=a", "1=b"], "HOST: found rank 1 at a and at b"),
        (["0=robot"], "rank 0 at robot is a source, expected a rank that serves"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(three: Topology, words: list[str], found: str) -> None:
    with pytest.raises(ConfigError) as error:
        boards(three, words)
    assert found in str(error.value)


def test_an_address_that_is_any_machine_is_no_board(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 1: found address 127\.0\.0\.1, .* say 1=USER@HOST"):
        boards(topology(tmp_path, "127.0.0.1:0", "127.0.0.1:0"), [])


def test_a_board_is_shown_as_ssh_is_told(three: Topology) -> None:
    (board,) = boards(three, ["1=nano@[fe80::1]:2222"])
    assert (str(board), board.ssh) == ("nano@[fe80::1]:2222", "ssh -p 2222 nano@fe80::1")
