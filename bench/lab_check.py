"""Whether the edge lab keeps its word: what was asked for beside what was measured. Linux, root, iproute2.

    sudo python -m bench.lab_check                    all of it, about a minute
    sudo python -m bench.lab_check bandwidth latency  some of it

`bandwidth` of long transfers and of single frames, `latency` of one byte with stall and reset, `cpu` shares, `line`: line4 in the
lab, `killed`: what kill -9 leaves and the next run removes. On a busy machine single frames and round trips come later.
"""

from __future__ import annotations

import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

from zpipe.bench.lab.edge import EdgeLab
from zpipe.bench.lab.host import call, cpu_groups, namespaces
from zpipe.bench.lab.names import PREFIX
from zpipe.errors import ConfigError
from zpipe.topology import Topology, from_dict

MBIT = 1e6
RATES_MBIT = (5, 20, 100)
FRAMES_BYTES = (4096, 16384, 65536)
#: A long transfer takes about so long.
TRANSFER_SECONDS = 3.0
ROUNDS = 15

BURN = """
import time
started = time.perf_counter(), time.process_time()
for _ in range(20_000_000): pass
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def two_boards(**link: object) -> Topology:
    nodes = [{"rank": 0, "stages": [0]}, {"rank": 1, "stages": [1]}]
    return from_dict({"name": "two", "bundle": "none", "nodes": nodes, "links": [{"between": [0, 1], **link}]})


def connected(lab: EdgeLab, here: int, there: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection between two boards."""
    host, _, port = lab.sites[there].address.rpartition(":")
    with lab.entered(there):
        listener = socket.create_server((host, int(port)))
    with listener:
        with lab.entered(here):
            a = socket.create_connection((host, int(port)), timeout=30)
        b, _ = listener.accept()
    b.settimeout(30)
    for end in (a, b):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


def carry(a: socket.socket, b: socket.socket, size: int) -> float:
    """Seconds until that many bytes have gone from one to the other."""
    sender = threading.Thread(target=a.sendall, args=(bytes(size),))
    started = time.perf_counter()
    sender.start()
    take(b, size)
    seconds = time.perf_counter() - started
    sender.join()
    return seconds


def take(end: socket.socket, size: int) -> None:
    while size:
        size -= len(end.recv(min(size, 1 << 20)))


def bandwidth() -> None:
    print("\nbandwidth: asked; payload of a long transfer; single frames after a pause, median: measured / asked")
    for asked in RATES_MBIT:
        with EdgeLab(two_boards(bandwidth=f"{asked} Mbit/s")) as lab:
            a, b = connected(lab, 0, 1)
            with a, b:
                size = int(asked * MBIT * TRANSFER_SECONDS / 8)
                ratio = 8e-6 * size / carry(a, b, size) / asked
                print(f"{asked:>5} Mbit/s   {asked * ratio:6.2f} Mbit/s ({ratio:.3f})", end="")
                for size in FRAMES_BYTES:
                    expected = 8 * size / (asked * MBIT)
                    print(f"   {size // 1024} KiB {1e3 * single(a, b, size):.2f} / {1e3 * expected:.2f} ms", end="")
                print(flush=True)


def single(a: socket.socket, b: socket.socket, size: int) -> float:
    seconds = []
    for _ in range(ROUNDS):
        time.sleep(0.02)  # the bucket fills up
        started = time.perf_counter()
        a.sendall(bytes(size))  # fits into the buffers
        take(b, size)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def round_trip(a: socket.socket, b: socket.socket) -> float:
    started = time.perf_counter()
    a.sendall(b"?")
    b.recv(1)
    b.sendall(b"!")
    a.recv(1)
    return time.perf_counter() - started


def latency() -> None:
    print("\nround trip of one byte, median and range:")
    with EdgeLab(two_boards(), faults=True) as lab:
        a, b = connected(lab, 0, 1)
        with a, b:
            for asked, jitter in ((0.0, 0.0), (0.001, 0.0), (0.010, 0.0), (0.010, 0.002)):
                lab.set_latency((0, 1), asked, jitter_seconds=jitter)
                trips = [1e3 * round_trip(a, b) for _ in range(50)]
                title = f"latency {1e3 * asked:.0f} ms, jitter {1e3 * jitter:.0f} ms"
                print(f"   {title}: {statistics.median(trips):.2f} ms [{min(trips):.2f}, {max(trips):.2f}]")
            started = time.perf_counter()
            lab.stall((0, 1), 0.5)
            round_trip(a, b)
            print(f"   stalled for 0.5 s: {time.perf_counter() - started:.3f} s")
            lab.reset((0, 1))
            print(f"   reset: {ending(a)}, {ending(b)}")
    with EdgeLab(two_boards()) as lab:
        a, b = connected(lab, 0, 1)
        with a, b:
            print(f"   plain veth, no relay: {1e3 * statistics.median(round_trip(a, b) for _ in range(50)):.3f} ms")


def ending(end: socket.socket) -> str:
    try:
        return repr(end.recv(1))
    except ConnectionResetError:
        return "connection reset"


def cpu() -> None:
    print("\na loop that computes, on boards with a share of one core:")
    shares = (1.0, 0.5, 0.25, 0.1)
    nodes = [{"rank": rank, "stages": [rank]} for rank in range(len(shares))]
    topology = from_dict({"name": "slow", "bundle": "none", "nodes": nodes, "links": "line"})
    try:
        with EdgeLab(topology, cpu_shares=dict(enumerate(shares))) as lab:
            said = [call((*lab.command_prefix(rank), sys.executable, "-c", BURN)) for rank in range(len(shares))]
    except ConfigError as exc:
        print(f"   not here: {exc}")
        return
    for share, line in zip(shares, said, strict=True):
        wall, computing = map(float, line.split())
        print(
            f"   share {share}: {computing:.2f} s of computing took {wall:.2f} s: {wall / computing:.2f} times, asked {1 / share:g}"
        )


def line() -> None:
    print("\nline4 in the lab, 20 Mbit/s and 5 ms on each link:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = line4(Path(folder))
        done = subprocess.run([*bench(file), "--count", "1000"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"the run fell short: {done.stderr}")


def line4(folder: Path) -> Path:
    stages = ([0], [1], [2], [3, 4])
    topology = {
        "name": "line4-lab",
        "bundle": "digits-mobilenetv2",
        "nodes": [{"rank": rank, "stages": held} for rank, held in enumerate(stages)],
        "links": {"shape": "line", "bandwidth": "20 Mbit/s", "latency": "5 ms"},
    }
    file = folder / "line4-lab.yaml"
    file.write_text(yaml.safe_dump(topology), encoding="utf-8")
    return file


def bench(file: Path) -> list[str]:
    return [sys.executable, "-m", "zpipe", "bench", "--lab", "--cpu-share", "3=0.5", "--topology", str(file)]


def made() -> list[str]:
    groups = cpu_groups()
    names = {*namespaces(), *(groups.names() if groups is not None else ())}
    return sorted(name for name in names if name.startswith(PREFIX))


def killed() -> None:
    print("\nkill -9 in the middle:")
    with tempfile.TemporaryDirectory() as folder:
        file = line4(Path(folder))
        with subprocess.Popen(
            [*bench(file), "--duration", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            assert run.stderr is not None
            while "classifying" not in (said := run.stderr.readline()):
                if not said:
                    sys.exit("the run ended before it was killed")
            run.send_signal(signal.SIGKILL)
        print(f"   left over: {len(made())} names, such as {', '.join(made()[:2])}")
        again = subprocess.run([*bench(file), "--count", "20"], capture_output=True, text=True)
        removed = next((told for told in again.stderr.splitlines() if told.startswith("removed")), "nothing was removed")
        print(f"   second run, exit code {again.returncode}: {removed[:120]} ...")
        print(f"   left over after it: {made() or 'nothing'}")


SECTIONS = {"bandwidth": bandwidth, "latency": latency, "cpu": cpu, "line": line, "killed": killed}


def main() -> None:
    try:
        with EdgeLab(two_boards()):
            pass
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        sys.exit(2)
    for section in sys.argv[1:] or SECTIONS:
        if section not in SECTIONS:
            sys.exit(f"found {section!r}, expected some of {', '.join(SECTIONS)}")
        SECTIONS[section]()


if __name__ == "__main__":
    main()
