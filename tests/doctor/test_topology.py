"""What the doctor says of a topology: its file and bundle, ports and keys of this machine, and its nodes wherever they are."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any

import pytest
from click.testing import CliRunner

from tests.runtime.mesh import HALF, live, run
from tests.runtime.mesh import topology as mesh_topology
from zpipe.cli import cli
from zpipe.doctor import keys, network, ports
from zpipe.doctor import topology as doctor
from zpipe.doctor.finding import Finding
from zpipe.doctor.network import Look
from zpipe.errors import ConfigError
from zpipe.security import make_keys, secret_file
from zpipe.topology import NodeSpec, Topology, from_dict, load_topology

#: Nobody has it: TEST-NET-1 (RFC 5737).
ELSEWHERE = "192.0.2.7"
BOARDS = """
name: boards
bundle: {bundle}
nodes:
  - {{rank: 0, stages: [0, 1], address: "127.0.0.1:{port}"}}
  - {{rank: 1, stages: [2, 3, 4], address: "192.0.2.7:5800"}}
links: {{shape: line, bandwidth: 20 Mbit/s}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A topology of one node here and one elsewhere."""
    path = tmp_path / "boards.yaml"
    path.write_text(BOARDS.format(bundle=HALF, port=5800))
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are looked at where a test says how they are."""

    async def nobody(topology: Topology) -> dict[int, Look]:
        return {node.rank: Look(node.rank, control="refused", data="refused") for node in topology.nodes}

    monkeypatch.setattr("zpipe.doctor.topology.network.look", nobody)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# ---- file and bundle ---------------------------------------------------------------------------


def test_file_bundle_ports_keys_and_nodes_are_looked_at(file: Path) -> None:
    found = by_name(doctor.findings(str(file), None))
    assert list(found)[:2] == ["topology", f"bundle {HALF}"]
    assert found["topology"].status == found[f"bundle {HALF}"].status == "ok"
    assert {"ports of rank 0", "keys"} <= set(found)
    assert "ports of rank 1" not in found
    assert found[f"rank 1 at {ELSEWHERE}:5800"].stands_in_the_way


@pytest.mark.parametrize(("text", "status"), [(None, "missing"), ("name: [", "broken"), ("nodes: 3", "broken")])
def test_file_that_is_not_there_or_wrong_is_all_there_is_to_say(tmp_path: Path, text: str | None, status: str) -> None:
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_text(text)
    (finding,) = doctor.findings(str(file), None)
    assert (finding.name, finding.status, finding.stands_in_the_way) == ("topology", status, True)
    assert finding.found
    assert finding.remedy


def test_changed_file_of_the_bundle_is_broken(tmp_path: Path, file: Path) -> None:
    shutil.copytree(HALF, tmp_path / "mine", ignore=shutil.ignore_patterns("trt"))
    with (tmp_path / "mine" / "stage1.onnx").open("ab") as stage:
        stage.write(b"x")
    file.write_text(BOARDS.format(bundle="mine", port=5800))
    finding = by_name(doctor.findings(str(file), None))["bundle mine"]
    assert (finding.status, finding.required) == ("broken", True)
    assert "stage1.onnx" in finding.found


def test_rank_that_the_topology_has_not_is_a_mistake_of_the_command(file: Path) -> None:
    with pytest.raises(ConfigError, match="--rank: found 2, expected one of 0 to 1"):
        doctor.findings(str(file), 2)


def test_executor_that_the_topology_names_is_tried(file: Path) -> None:
    file.write_text(file.read_text().replace('"}', '", executor: "no_such:Engine"}', 1))
    finding = by_name(doctor.findings(str(file), 0))["executor of rank 0"]
    assert (finding.status, finding.required) == ("broken", True)
    assert finding.found.startswith("no_such:Engine: ")
    assert "--executor onnx" in finding.remedy


# ---- ports -------------------------------------------------------------------------------------


def node(address: str, **options: Any) -> NodeSpec:
    return NodeSpec(rank=3, stages=(0,), address=address, **options)


def test_ports_of_this_machine_can_be_bound_or_are_the_nodes_own() -> None:
    with closing(socket(AF_INET, SOCK_STREAM)) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = ports.port(node(f"127.0.0.1:{port}"), running=False)
        assert (finding.status, finding.required) == ("broken", True)
        assert f"port {port} of 127.0.0.1 is in use by" in finding.found
        assert f"sport = :{port}" in finding.remedy
        assert ports.port(node(f"127.0.0.1:{port}"), running=True).status == "ok"
        control = ports.port(node(f"127.0.0.1:{port - 1}"), running=False)
        assert f"port {port}" in control.found or f"port {port - 1}" in control.found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*", "lo"])
def test_whatever_zeromq_binds_is_tried(host: str) -> None:
    ports._bind(host, 0)  # whichever port is free


def test_both_ports_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(ports, "_bind", lambda host, number: tried.append((host, number)))
    assert ports.port(node(f"{ELSEWHERE}:5800", bind="*:6000"), running=False).found == "6000 and 6001 of * can be bound"
    assert tried == [("*", 6000), ("*", 6001)]


def test_address_of_another_machine_cannot_be_bound() -> None:
    finding = ports.port(node(f"{ELSEWHERE}:5800"), running=False)
    assert finding.status == "broken"
    assert finding.found.startswith(f"{ELSEWHERE} is none of this machine's addresses (")
    assert "bind: 0.0.0.0" in finding.remedy


def test_name_that_does_not_resolve_is_said_so() -> None:
    finding = ports.port(node("no-such-host.invalid:5800"), running=False)
    assert finding.status == "broken"
    assert "does not resolve here" in finding.found


def test_nodes_at_addresses_of_this_machine_are_here(file: Path) -> None:
    assert ports.ranks_here(load_topology(str(file))) == (0,)
    assert ports.ranks_here(load_topology("line4")) == (0, 1, 2, 3)


# ---- keys --------------------------------------------------------------------------------------


@pytest.fixture
def locked(file: Path) -> Path:
    """The same with keys of both ranks."""
    file.write_text(file.read_text() + "security: {keys: keys}\n")
    make_keys(file.parent / "keys", (0, 1))
    return file


def key_findings(file: Path, *here: int) -> dict[str, Finding]:
    try:
        loaded = load_topology(file)
    except ConfigError:
        loaded = load_topology(file, read_keys=False)
    found, usable = keys.findings(loaded, here)
    assert usable == all(finding.status in ("ok", "warning") for finding in found)
    return by_name(found)


def test_keys_that_fit_are_fine(locked: Path) -> None:
    found = key_findings(locked, 0, 1)
    assert [finding.status for finding in found.values()] == ["ok", "ok", "ok"]
    assert set(found) == {"public keys", "secret of rank 0", "secret of rank 1"}


def test_no_keys_are_fine_on_loopback_alone(file: Path) -> None:
    assert key_findings(file, 0)["keys"].status == "ok"
    (finding,), _ = keys.findings(load_topology(file), (1,))
    assert (finding.status, finding.required) == ("missing", True)
    assert "zpipe keygen --topology" in finding.remedy
    file.write_text(file.read_text() + "security: none\n")
    assert key_findings(file, 0)["keys"].status == "warning"


def test_missing_public_keys_are_made_by_keygen(locked: Path) -> None:
    public = locked.parent / "keys" / "public.keys"
    lines = public.read_text().splitlines(keepends=True)
    public.write_text("".join(lines[:-1]))
    finding = key_findings(locked, 0)["public keys"]
    assert (finding.status, finding.required) == ("broken", True)
    assert finding.found.endswith("has no key of rank 1")
    assert "--rank 1" in finding.remedy
    public.unlink()
    finding = key_findings(locked, 0)["public keys"]
    assert (finding.status, finding.remedy.split(",")[0]) == ("missing", f"zpipe keygen --topology {locked}")


def test_list_that_others_may_write_or_with_one_key_twice_is_broken(locked: Path) -> None:
    public = locked.parent / "keys" / "public.keys"
    public.chmod(0o666)
    finding = key_findings(locked, 0)["public keys"]
    assert (finding.status, finding.remedy) == ("broken", f"chmod go-w {public}")
    public.chmod(0o644)
    *_, first, _ = public.read_text().splitlines()
    public.write_text(f"{first}\n1 {first.split()[1]}\n")
    assert "one key for two ranks" in key_findings(locked, 0)["public keys"].found


def test_key_of_no_rank_is_worth_a_word(locked: Path) -> None:
    make_keys(locked.parent / "keys", (7,))
    finding = key_findings(locked, 0)["public keys"]
    assert (finding.status, finding.required) == ("warning", False)
    assert "rank 7" in finding.found


def test_secret_that_is_not_there_readable_by_others_or_of_another_pair(locked: Path) -> None:
    folder = locked.parent / "keys"
    mine, others = secret_file(folder, 0), secret_file(folder, 1)
    mine.chmod(0o640)
    finding = key_findings(locked, 0)["secret of rank 0"]
    assert (finding.status, finding.remedy) == ("broken", f"chmod 600 {mine}")
    mine.write_text(others.read_text())
    mine.chmod(0o600)
    assert "found the secret of public key" in secret(locked).found
    mine.unlink()
    assert secret(locked).status == "missing"


def secret(file: Path) -> Finding:
    """Of rank 0; another's may be here, so that nodes let us in all the same."""
    return by_name(keys.findings(load_topology(file), (0,))[0])["secret of rank 0"]


def test_machine_without_a_node_needs_some_secret_to_look_at_the_others(locked: Path) -> None:
    assert list(key_findings(locked)) == ["public keys"]
    for rank in (0, 1):
        secret_file(locked.parent / "keys", rank).unlink()
    finding = key_findings(locked)["secret keys"]
    assert (finding.status, finding.required) == ("missing", False)


# ---- the nodes ---------------------------------------------------------------------------------


def two(file: Path, **found: Any) -> Finding:
    """What is said of node 1, elsewhere, asked from node 0."""
    looks = {0: Look(0, up=True, topology_digest="t", bundle_digest="b"), 1: Look(1, **found)}
    return network.findings(load_topology(file), looks, digests=("t", "b"), here=(0,))[1]


SAME: dict[str, Any] = {
    "up": True,
    "topology_digest": "t",
    "bundle_digest": "b",
    "round_trip_seconds": 0.0004,
    "bits_per_second": 19e6,
}


def test_node_that_runs_the_same_is_fine(file: Path) -> None:
    finding = two(file, **SAME)
    assert finding.status == "ok"
    assert finding.found == "round trip 0.40 ms, 19 Mbit/s there from here, runs the same topology and bundle"


@pytest.mark.parametrize(
    ("found", "status", "said", "remedy"),
    [
        (
            {**SAME, "bits_per_second": 4e6},
            "warning",
            "4 Mbit/s there from here, where the topology says 20 Mbit/s",
            "bandwidth: 4 Mbit",
        ),
        ({**SAME, "topology_digest": "other"}, "broken", "another topology: digest other there, t here", "copy"),
        ({**SAME, "bundle_digest": "other"}, "broken", "another bundle: digest other there, b here", str(HALF)),
        (
            {**SAME, "data": "silent"},
            "broken",
            "control port 5801 answers, its data port 5800 is silent",
            "ufw allow 5800:5801/tcp",
        ),
        ({"control": "refused"}, "missing", "no node runs there: port 5801 is closed", "zpipe node --rank 1 --topology"),
        ({"control": "silent"}, "broken", "no answer from port 5801", "ufw allow 5800:5801/tcp"),
        ({"control": "unreachable"}, "broken", f"no way to {ELSEWHERE}", "ip route get"),
        ({"control": "unknown host"}, "broken", "does not resolve", "/etc/hosts"),
        ({"trouble": "handshake failed"}, "broken", "does not let us in: handshake failed", "zpipe node --rank 1"),
    ],
)
def test_node_that_does_not_answer_says_why(file: Path, found: Any, status: str, said: str, remedy: str) -> None:
    finding = two(file, **found)
    assert (finding.name, finding.status) == (f"rank 1 at {ELSEWHERE}:5800", status)
    assert said in finding.found
    assert remedy in finding.remedy
    assert finding.stands_in_the_way == (status != "warning")


def test_source_that_nobody_runs_now_stands_in_nobodys_way(file: Path) -> None:
    looks = {0: Look(0, control="refused"), 1: Look(1, **SAME)}
    finding = network.findings(load_topology(file), looks, digests=("t", "b"), here=(0,))[0]
    assert (finding.status, finding.stands_in_the_way) == ("missing", False)
    assert finding.remedy == f"zpipe bench --attach --topology {file}, or Pipeline.connect"


def test_of_several_sources_the_missing_one_is_named() -> None:
    boards = from_dict(
        {
            "bundle": str(HALF),
            "nodes": [{"rank": rank, "stages": [0, 1, 2, 3, 4], "address": f"192.0.2.{rank}:5800"} for rank in range(2)],
            "links": "line",
            "sources": [{"rank": 0, "name": "camera"}, {"rank": 1, "name": "mapping"}],
        }
    )
    looks = {0: Look(0, **SAME), 1: Look(1, control="refused")}
    finding = network.findings(boards, looks, digests=("t", "b"), here=())[1]
    assert finding.remedy.startswith("zpipe bench --attach --source mapping --topology ")
    assert finding.remedy.endswith('or Pipeline.connect with source="mapping"')


def test_own_node_that_is_not_started_yet_stands_in_nobodys_way(file: Path) -> None:
    looks = {0: Look(0, **SAME), 1: Look(1, control="refused")}
    finding = network.findings(load_topology(file), looks, digests=("t", "b"), here=(1,), own=1)[1]
    assert (finding.status, finding.stands_in_the_way) == ("missing", False)
    assert finding.remedy == f"zpipe node --rank 1 --topology {file}"


def test_topology_of_one_machine_that_runs_nowhere_is_fine() -> None:
    topology = load_topology("line4")
    looks = {node.rank: Look(node.rank, control="refused") for node in topology.nodes}
    (finding,) = network.findings(topology, looks, digests=("t", "b"), here=(0, 1, 2, 3))
    assert finding.status == "ok"
    assert "zpipe bench" in finding.found


def test_rates_are_told_in_the_unit_they_are_said_in() -> None:
    assert [network._rate(value) for value in (1.25e9, 94.1e6, 250e3)] == ["1.25 Gbit/s", "94.1 Mbit/s", "250 kbit/s"]


def test_running_nodes_are_found_with_round_trip_rate_and_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real look

    async def main() -> None:
        async with live(mesh_topology([[0], [1, 2], [3, 4]]), kind="zeromq") as mesh:
            await mesh.drivers[2].aclose(None)
            with closing(socket()) as stranger:
                stranger.bind(("127.0.0.1", 0))
                stranger.listen()
                number = stranger.getsockname()[1]
                place = mesh.topology.with_addresses({1: f"127.0.0.1:{number - 1}"})
                looks = await network.look(place)
            assert (looks[0].up, looks[0].data, looks[0].topology_digest) == (True, "open", mesh.topology.digest())
            assert looks[0].bundle_digest == mesh.bundle.digest
            assert 0.0 < (looks[0].round_trip_seconds or 0.0) < math.inf
            assert (looks[0].bits_per_second or 0.0) > 0.0
            assert (looks[1].up, looks[1].control) == (False, "open")
            assert (looks[2].up, looks[2].control) == (False, "refused")

    run(main)


def test_unknown_host_and_silence_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(network._tcp("no-such-host.invalid", 5800)) == "unknown host"

    async def never(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", never)
    monkeypatch.setattr(network, "TCP_SECONDS", 0.0)
    assert asyncio.run(network._tcp("127.0.0.1", 5800)) == "silent"


# ---- the command -------------------------------------------------------------------------------


def test_command_ends_with_1_where_the_topology_lacks_something(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_bind", lambda host, number: None)  # others take ports here, too
    done = CliRunner().invoke(cli, ["doctor", "--topology", str(file), "--json"])
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert (said["schema"], said["topology"]) == ("zpipe.doctor/1", str(file))
    broken = [each for each in said["findings"] if each["required"] and each["status"] != "ok"]
    assert [(each["name"], each["status"]) for each in broken] == [(f"rank 1 at {ELSEWHERE}:5800", "missing")]
    assert all(each["remedy"] for each in broken)


def test_command_ends_with_0_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_bind", lambda host, number: None)
    done = CliRunner().invoke(cli, ["doctor", "--topology", "local"])
    assert done.exit_code == 0
    assert "zpipe runs here: zpipe bench --topology local" in done.stdout


def test_rank_without_a_topology_is_refused() -> None:
    done = CliRunner().invoke(cli, ["doctor", "--rank", "0"])
    assert isinstance(done.exception, ConfigError)
