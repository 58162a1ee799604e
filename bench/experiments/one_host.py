"""Two processes of one host: what frames over ipc:// or through shared memory would save beside TCP loopback.

    python -m bench.experiments.one_host        about two minutes; writes bench/results/one-host.json

A sender gives frames of each size to a receiver, one after the other with at most WINDOW under way, as a link's credit allows; the
receiver answers each with a byte. Four ways to carry them, taking turns round by round:

- tcp, tcp-copy: as zpipe sends them, from where they lie; or copied into a message of ZeroMQ's
- ipc: the same over a Unix socket
- shm: the sender copies each frame into a slot of a shared segment and sends its number; the receiver computes on the slot

Each with zpipe's checksum (xxh3 over the frame, at both ends) and without. Figures are the best of the rounds, since the machine
is shared: bytes a second, and CPU microseconds a frame of both processes with all their threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from xxhash import xxh3_64_intdigest

from bench.made import commit
from zpipe.report.machine import machine

SIZES = (4096, 65536, 2**20)
WAYS = ("tcp", "tcp-copy", "ipc", "shm")
ROUNDS = 7
#: Frames under way: two batches of a link's window.
WINDOW = 8
#: Of one round of one way.
BYTES_A_ROUND, LEAST_FRAMES = 400 * 2**20, 400
RESULTS = Path(__file__).parents[1] / "results" / "one-host.json"


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def receive(way: str, size: int, frames: int, checked: bool, pipe: Connection, segment: str) -> None:
    """The receiving process: answers every frame, tells its CPU seconds."""
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    if way == "ipc":
        address = f"ipc://{segment}.socket"
        pull.bind(address)
    else:
        address = f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}"
    pipe.send(address)
    push.connect(pipe.recv())
    memory = SharedMemory(segment) if way == "shm" else None
    slots = None if memory is None else np.ndarray((WINDOW, size), np.uint8, memory.buf)
    seen = 0
    for index in range(frames + 1):
        if index == 1:
            began = cpu_seconds()  # the first frame opens connections and maps pages
        frame = pull.recv(copy=False)
        data: Any = frame.buffer if slots is None else slots[int.from_bytes(frame.bytes, "little")]
        if checked:
            seen ^= xxh3_64_intdigest(data)
        del data, frame
        push.send(b"\0")
    pipe.send(cpu_seconds() - began)
    del slots
    if memory is not None:
        memory.close()
    context.destroy(0)


def one_round(way: str, size: int, checked: bool) -> tuple[float, float]:
    """Bytes a second, and CPU seconds a frame at both ends."""
    frames = max(LEAST_FRAMES, min(4000, BYTES_A_ROUND // size))
    source = np.random.default_rng(0).integers(0, 255, (WINDOW, size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        segment = SharedMemory(create=True, size=WINDOW * size) if way == "shm" else None
        name = segment.name if segment is not None else os.path.join(folder, "line")
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=receive, args=(way, size, frames, checked, there, name))
        process.start()
        context = zmq.Context()
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        push.connect(here.recv())
        here.send(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        slots = None if segment is None else np.ndarray((WINDOW, size), np.uint8, segment.buf)

        def send(index: int) -> None:
            frame = source[index % WINDOW]
            if checked:
                xxh3_64_intdigest(frame)
            if slots is not None:
                slots[index % WINDOW] = frame
                push.send((index % WINDOW).to_bytes(4, "little"))
            else:
                push.send(frame.data, copy=way == "tcp-copy")

        send(0)
        pull.recv()
        began, cpu = time.perf_counter(), cpu_seconds()
        for index in range(1, frames + 1):
            if index > WINDOW:
                pull.recv()
            send(index)
        for _ in range(min(WINDOW, frames)):
            pull.recv()
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        cpu += here.recv()
        process.join()
        context.destroy(0)
        slots = None
        if segment is not None:
            segment.close()
            segment.unlink()
    return frames * size / seconds, cpu / frames


def main() -> None:
    found: dict[str, Any] = {"commit": commit(), "machine": machine(), "rounds": ROUNDS, "window": WINDOW, "rows": []}
    for size in SIZES:
        for checked in (True, False):
            runs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for turn in range(ROUNDS):
                for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                    runs[way].append(one_round(way, size, checked))
            for way in WAYS:
                rate, cpu = max(rate for rate, _ in runs[way]), min(cpu for _, cpu in runs[way])
                ratio = statistics.median(here[0] / there[0] for here, there in zip(runs[way], runs["tcp"], strict=True))
                found["rows"].append(
                    {"bytes": size, "checked": checked, "way": way, "bytes_per_s": rate, "cpu_us": cpu * 1e6, "ratio": ratio}
                )
                what = f"{size // 1024:>5} KiB  {'checksum' if checked else 'none    '}  {way:<9}"
                print(f"{what}{rate / 1e6:>8,.0f} MB/s  {ratio:>5.2f}x median  {cpu * 1e6:>7,.1f} us", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
