"""What a contender is, and the processes of one that has to start its nodes itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from bench.peers.load import Load
from bench.peers.work import RANKS, Job, Stages, read_job

#: Key -> (module with a class `Line`, name for people).
CONTENDERS = {
    "z": ("zpipe_line", "zpipe"),
    "z'": ("zpipe_tcp", "zpipe, TCP alone"),
    "a": ("zmq_blocking", "pyzmq, blocking"),
    "a'": ("zmq_asyncio", "pyzmq, asyncio + thread"),
    "b": ("ray_actors", "Ray actors"),
    "b'": ("ray_graph", "Ray compiled graph"),
    "c": ("torch_gloo", "torch.distributed, gloo"),
    "d": ("dora_flow", "dora-rs"),
    "e": ("grpc_stream", "gRPC streams"),
    "e'": ("grpc_aio", "gRPC streams, asyncio"),
    "f": ("whole", "un-split, one process"),
}

#: Stopped while others have their turn: these are busy with nothing to do.
RESTLESS = ("b", "b'")

STOP_SECONDS = 5.0
#: Told its address, a node hears {rank: address} of all.
Meet: TypeAlias = "Callable[[str], dict[int, str]]"


class Contender(Protocol):
    """One way to carry samples down the line; it lives in the source's process and starts the others.

    Attributes:
        batches: whether its messages are whole batches; else it gets single samples.
    """

    batches: bool

    async def open(self, job: Job) -> None:
        """Starts everything; returns once samples can flow."""

    async def drive(self, load: Load) -> None:
        """Keeps the load's window full until it is finished. May block: nothing else runs on this loop."""

    async def close(self) -> None:
        """Ends everything it has started."""


class Unavailable(Exception):
    """A contender cannot run here; says why."""


def make(key: str) -> Contender:
    """Raises ImportError where its library is not installed."""
    line: Contender = importlib.import_module(f"bench.peers.{CONTENDERS[key][0]}").Line()
    return line


class Nodes:
    """Ranks 1 to 3 as processes of one module, each of which calls `serve_node`; they end with this one.

    Args:
        module: `__name__` of the module; run with `-m`.
        job: what they do.
    """

    def __init__(self, module: str, job: Job) -> None:
        path = str(job.write())
        self._processes = {
            rank: subprocess.Popen(
                [sys.executable, "-m", module, path, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for rank in range(1, RANKS)
        }

    def addresses(self) -> dict[int, str]:
        """Waits until each is there."""
        return {rank: self._line(rank, process) for rank, process in self._processes.items()}

    def introduce(self, addresses: Mapping[int, str]) -> None:
        """Tells each where all are, and waits until it has connected."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.write(json.dumps({str(rank): address for rank, address in addresses.items()}) + "\n")
            process.stdin.flush()

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _line(self, rank: int, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"node {rank} ended at start")
        return str(json.loads(line))


def serve_node(serve: Callable[[Job, int, Stages, Meet], Any]) -> None:
    """What the module of a contender with `Nodes` does when it is run: `serve(job, rank, stages, meet)`, until it is ended."""
    job, rank = read_job(sys.argv[1]), int(sys.argv[2])

    def meet(address: str) -> dict[int, str]:
        print(json.dumps(address), flush=True)
        return {int(other): where for other, where in json.loads(sys.stdin.readline()).items()}

    serve(job, rank, Stages(job, rank), meet)
