"""(d) dora-rs: a dataflow of four nodes, payloads as Arrow arrays in shared memory; the daemon is `dora run`'s.

The source is a dynamic node, since it is the process that is measured. dora's queues drop the oldest message when they are full;
`backpressure` makes them ten times longer instead. The window keeps them far below either, so nothing is dropped.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import yaml
from dora import Node

from bench.peers.contender import Unavailable
from bench.peers.load import Answers, Load, pump
from bench.peers.work import RANKS, Job, Stages, read_job, unpack_answers

START_SECONDS = 60.0
STOP_SECONDS = 5.0


def dataflow(job: Job) -> dict[str, Any]:
    """What `dora run` is given."""
    path = str(job.write())

    def node(rank: int) -> dict[str, Any]:
        source = f"rank{(rank - 1) % RANKS}/out"
        links = {
            "id": f"rank{rank}",
            "inputs": {"in": {"source": source, "queue_size": job.messages, "queue_policy": "backpressure"}},
            "outputs": ["out"],
        }
        if not rank:
            return {**links, "path": "dynamic"}
        return {**links, "path": sys.executable, "args": f"-m bench.peers.dora_flow {path} {rank}"}

    return {"nodes": [node(rank) for rank in range(RANKS)]}


def send(node: Any, batch: npt.NDArray[Any]) -> None:
    node.send_output("out", pyarrow.array(batch.reshape(-1).view(np.uint8)))


def receive(node: Any, *, wait: bool) -> npt.NDArray[np.uint8] | None:
    """The bytes of the next message, None where none came; they stay where dora has put them as long as the array lives."""
    while (event := node.next() if wait else node.try_recv()) is not None:
        if event["type"] == "INPUT":
            payload: npt.NDArray[np.uint8] = event["value"].to_numpy()
            return payload
    return None


def serve(job: Job, rank: int) -> None:
    """One node, until the dataflow ends."""
    stages, node = Stages(job, rank), Node()
    while (payload := receive(node, wait=True)) is not None:
        send(node, stages.run(stages.unpack(payload)))


def start(flow: Path) -> subprocess.Popen[bytes]:
    """The daemon, which starts ranks 1 to 3."""
    dora = Path(sys.executable).parent / "dora"
    if not dora.exists():
        raise Unavailable(f"found dora-rs but no command {dora.name} beside {Path(sys.executable).name}, expected dora-rs-cli, too")
    return subprocess.Popen([str(dora), "run", "--log-level", "error", flow.name], cwd=flow.parent, stdin=subprocess.DEVNULL)


class Line:
    """The source: rank 0 of the dataflow."""

    batches = True

    async def open(self, job: Job) -> None:
        self._stages = Stages(job, 0)
        flow = Path(job.folder) / "flow.yaml"
        flow.write_text(yaml.safe_dump(dataflow(job)), encoding="utf-8")
        self._daemon = start(flow)
        self._node = self._joined()
        self._numbers: deque[int] = deque()

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        del self._node  # it tells the daemon
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def _joined(self) -> Any:
        """Tries until the daemon knows the dataflow, since it does not say when it does."""
        until = time.monotonic() + START_SECONDS
        while (node := _node_of(self._daemon, last=time.monotonic() > until)) is None:
            time.sleep(0.2)
        return node

    def _send(self, number: int, activation: Any) -> None:
        self._numbers.append(number)
        send(self._node, activation)

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        payload = receive(self._node, wait=wait)
        return None if payload is None else (self._numbers.popleft(), unpack_answers(payload.tobytes()))


def _node_of(daemon: subprocess.Popen[bytes], *, last: bool) -> Any:
    """The source's node, None if it cannot be had yet."""
    try:
        return Node("rank0")
    except RuntimeError:
        if last or daemon.poll() is not None:
            raise
        return None


if __name__ == "__main__":
    serve(read_job(sys.argv[1]), int(sys.argv[2]))
