"""The lab itself: what it refuses anywhere; and, as root with iproute2, boards and cables that are really there and really go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.lab.needs import needs_cpu_groups, needs_lab
from zpipe import cli
from zpipe.bench.lab import host
from zpipe.bench.lab.edge import EdgeLab, remove_left_over
from zpipe.bench.lab.names import PREFIX
from zpipe.errors import ConfigError, ZpipeError
from zpipe.topology import Topology, from_dict

ROOT = Path(__file__).parents[3]
HALF = ROOT / "engines" / "digits-mobilenetv2-half"
PATIENCE_SECONDS = 20.0


def topology(links: Any = "line", *, nodes: int = 2) -> Topology:
    return from_dict(
        {"name": "t", "bundle": "b", "nodes": [{"rank": rank, "stages": [rank]} for rank in range(nodes)], "links": links}
    )


def made_by(pid: int) -> list[str]:
    groups = host.cpu_groups()
    names = {*host.namespaces(), *(groups.names() if groups is not None else ())}
    return sorted(name for name in names if name.startswith(f"{PREFIX}.{pid}."))


def connected(lab: EdgeLab, here: int, there: int) -> tuple[socket.socket, socket.socket]:
    address, _, port = lab.sites[there].address.rpartition(":")
    with lab.entered(there):
        listener = socket.create_server((address, int(port)))
    with listener:
        listener.settimeout(PATIENCE_SECONDS)
        with lab.entered(here):
            a = socket.create_connection((address, int(port)), timeout=PATIENCE_SECONDS)
        b, _ = listener.accept()
    b.settimeout(PATIENCE_SECONDS)
    for end in (a, b):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


def round_trip_seconds(a: socket.socket, b: socket.socket) -> float:
    started = time.perf_counter()
    a.sendall(b"?")
    b.recv(1)
    b.sendall(b"!")
    a.recv(1)
    return time.perf_counter() - started


# ---- anywhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({2: 0.5}, r"^lab: CPU share: found rank 2, expected one of 0 to 1$"),
        ({0: 0.0}, r"^lab: CPU share of rank 0: found 0.0, expected 0.001 to "),
        ({1: float("nan")}, r"^lab: CPU share of rank 1: found nan, expected 0.001 to "),
    ],
)
def test_impossible_share_is_one_line(shares: dict[int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EdgeLab(topology(), cpu_shares=shares)


def test_shared_medium_is_refused() -> None:
    shared = [{"between": [0, 1], "medium": "wifi"}, {"between": [1, 2], "medium": "wifi"}]
    with pytest.raises(
        ConfigError, match=r"^t: links\[1\]\.medium: found 'wifi', as link 0-1 has, expected links that share nothing"
    ):
        EdgeLab(topology(shared, nodes=3))
    EdgeLab(topology([{"between": [0, 1], "medium": "wifi"}]))  # of its own: nothing is shared


def test_labs_of_one_process_have_names_of_their_own() -> None:
    assert EdgeLab(topology()).name != EdgeLab(topology()).name


def test_ranks_are_told_one_address_each_and_a_command_that_runs_there() -> None:
    lab = EdgeLab(topology())
    assert [site.address for site in lab.sites.values()] == ["10.77.0.1:5800", "10.77.0.2:5800"]
    assert lab.sites[1].command_prefix == ("ip", "netns", "exec", f"{lab.name}.node1")


def test_link_without_relay_or_unknown_is_one_line() -> None:
    lab = EdgeLab(topology())
    with pytest.raises(
        ConfigError, match=r"^lab: found link 0-1 without a relay, expected one with bandwidth or latency, or a lab made"
    ):
        lab.stall((1, 0), 1.0)
    with pytest.raises(ConfigError, match=r"^lab: found no link 0-2, expected one of 0-1$"):
        lab.reset((0, 2))


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["zpipe", "bench", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0), capsys.readouterr().err.strip().splitlines()[-1]


def test_bench_in_the_lab_without_root_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, line = told(capsys, monkeypatch, "--lab", "--bundle", str(HALF))
    assert code == 2
    assert line == "zpipe: lab: found user 1000, expected root: it makes network namespaces; run it with sudo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lab", "--attach"), "zpipe: --lab starts every rank itself: found --attach"),
        (("--cpu-share", "1=0.5"), "zpipe: --cpu-share concerns the boards of the edge lab: found no --lab"),
        (("--lab", "--cpu-share", "half"), "zpipe: --cpu-share: found 'half', expected a rank and its share of a core"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    code, line = told(capsys, monkeypatch, *arguments)
    assert code == 2
    assert line.startswith(message)


# ---- as root, with iproute2 --------------------------------------------------------------------


@needs_lab
def test_neighbours_relayed_ones_and_strangers_meet_under_their_own_addresses() -> None:
    with EdgeLab(topology([{"between": [0, 1], "latency": "1 ms"}, {"between": [1, 2]}], nodes=3)) as lab:
        for here, there in ((0, 1), (1, 0), (1, 2), (0, 2)):
            a, b = connected(lab, here, there)
            with a, b:
                assert b.getpeername()[0] == a.getsockname()[0] == f"10.77.0.{here + 1}"
                assert round_trip_seconds(a, b) >= (0.002 if 2 not in (here, there) else 0.0)


@needs_lab
def test_link_can_be_changed_stalled_and_reset_while_it_is_used() -> None:
    with EdgeLab(topology(), faults=True) as lab:
        a, b = connected(lab, 0, 1)
        with a, b:
            lab.set_latency((1, 0), 0.02, jitter_seconds=0.005)
            assert round_trip_seconds(a, b) >= 0.04
            lab.set_latency((0, 1), 0.0)
            lab.stall((0, 1), float("inf"))
            later = threading.Timer(0.1, lab.stall, ((0, 1), 0.0))
            later.start()
            assert round_trip_seconds(a, b) >= 0.1
            later.join()
            lab.reset((0, 1))
            with pytest.raises(ConnectionResetError):
                a.recv(1)
            for impossible in (-1.0, float("nan")):
                with pytest.raises(ConfigError, match=r"^lab: latency: found .*, expected a number of at least 0$"):
                    lab.set_latency((0, 1), impossible)


@needs_lab
@pytest.mark.strict
@pytest.mark.parametrize("asked", [5e6, 20e6, 100e6])
def test_long_transfer_gets_the_bandwidth_asked_for(asked: float) -> None:
    size = int(asked / 8)
    with EdgeLab(topology(), faults=True) as lab:
        a, b = connected(lab, 0, 1)
        with a, b:
            lab.set_bandwidth((0, 1), asked)
            sender = threading.Thread(target=a.sendall, args=(bytes(size),))
            started = time.perf_counter()
            sender.start()
            left = size
            while left:
                left -= len(b.recv(left))
            assert 8 * size / (time.perf_counter() - started) == pytest.approx(asked, rel=0.05)
            sender.join()


@needs_lab
@needs_cpu_groups
@pytest.mark.strict
def test_share_of_a_quarter_computes_four_times_as_long() -> None:  # or longer, where others compute
    code = (
        "import time\nw, c = time.perf_counter(), time.process_time()\nfor _ in range(10_000_000): pass\n"
        "print((time.perf_counter() - w) / (time.process_time() - c))"
    )
    with EdgeLab(topology(), cpu_shares={1: 0.25}) as lab:
        assert float(host.call((*lab.command_prefix(1), sys.executable, "-c", code))) >= 3.7


@needs_lab
def test_everything_goes_with_the_lab_also_after_an_error() -> None:
    home = os.readlink("/proc/thread-self/ns/net")

    def run_into_a_mistake() -> None:
        with EdgeLab(topology(), faults=True) as lab, lab.entered(0):
            assert len(made_by(os.getpid())) == 4
            assert os.readlink("/proc/thread-self/ns/net") != home
            raise RuntimeError("mistake")

    with pytest.raises(RuntimeError, match="mistake"):
        run_into_a_mistake()
    assert made_by(os.getpid()) == []
    assert os.readlink("/proc/thread-self/ns/net") == home


@needs_lab
def test_nothing_is_left_of_a_lab_that_could_not_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fails(command: tuple[str, ...]) -> str:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise ConfigError("lab: no more")
        return real(command)

    real = host.call
    monkeypatch.setattr(host, "call", fails)
    with pytest.raises(ConfigError, match="no more"):
        EdgeLab(topology()).__enter__()
    assert made_by(os.getpid()) == []


@needs_lab
def test_relay_that_was_killed_is_told_in_one_line() -> None:
    with EdgeLab(topology(), faults=True) as lab:
        (pid,) = host.call(("ip", "netns", "pids", f"{lab.name}.relay0-1")).split()
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(ZpipeError, match=r"^lab: the relay of link 0-1 failed: it ended without a word$"):
            lab.stall((0, 1), 1.0)


@needs_lab
def test_left_over_of_a_killed_process_goes_and_a_living_ones_stays() -> None:
    code = (
        "from tests.bench.lab.test_edge import EdgeLab, topology\n"
        "with EdgeLab(topology(), faults=True):\n"
        "    print('made', flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        names = made_by(other.pid)
        assert len(names) == 4
        remove_left_over()
        assert made_by(other.pid) == names
        other.kill()
    assert set(names) <= set(remove_left_over())
    assert made_by(other.pid) == []


@needs_lab
@pytest.mark.slow
def test_bench_in_the_lab_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "line.yaml"
    line = {
        "name": "line",
        "bundle": str(HALF),
        "nodes": [{"rank": rank, "stages": stages} for rank, stages in enumerate(([0, 1], [2], [3, 4]))],
        "links": {"shape": "line", "bandwidth": "20 Mbit/s", "latency": "5 ms"},
    }
    file.write_text(yaml.safe_dump(line), encoding="utf-8")
    command = [sys.executable, "-m", "zpipe", "bench", "--lab", "--topology", str(file), "--count", "200", "--warm-up", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert "lost 0  duplicate 0  hung 0" in out
    assert "Traceback" not in err
    assert made_by(run.pid) == []
