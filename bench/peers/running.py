"""One contender at work, seen from the driver: its source's process, and what its whole process tree uses."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.peers.work import Job

#: Ray takes ten seconds on an idle machine.
START_SECONDS = 120.0
#: Beyond what a run is to take: what is under way at its end, on a busy machine.
GRACE_SECONDS = 30.0
STOP_SECONDS = 15.0
_ERROR = re.compile(r"[\w.]*(Error|Exception|Timeout)\b.*: ")
#: One thread each, as in zpipe's executors: these are what torch, Ray and NumPy would start more of.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # Ray's workers would give way to everybody: 15
}


class Fell(Exception):
    """A contender did not start, or ended, or hangs; says why in one line."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process tree.

    Attributes:
        cpu_seconds: user and system, of every process alive.
        peak_rss_bytes: the sum of each one's own peak; pages that they share count for each.
        processes: how many.
    """

    cpu_seconds: float
    peak_rss_bytes: int
    processes: int


class Running:
    """A contender's source, started.

    Raises:
        Fell: it cannot be had here.
    """

    def __init__(self, key: str, job: Job) -> None:
        self.key = key
        self._folder = Path(job.folder)
        self._errors = (self._folder / "errors").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.source", key, str(job.write())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ENVIRONMENT},
            bufsize=0,
            start_new_session=True,
        )
        try:
            said = self._hear(START_SECONDS)
        except Fell:
            self.close()
            raise
        if "unavailable" in said:
            self.close()
            raise Fell(said["unavailable"])

    def run(self, *, warm_seconds: float, seconds: float) -> dict[str, Any]:
        """One round; its result (`Load.result`) and what the process tree used.

        Raises:
            Fell: no answer.
        """
        before = self.usage()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"warm_seconds": warm_seconds, "seconds": seconds}).encode() + b"\n")
        except OSError as exc:
            raise Fell(self._last_words()) from exc
        result = self._hear(warm_seconds + seconds + GRACE_SECONDS)
        after = self.usage()
        return {
            **result,
            "cpu_seconds": after.cpu_seconds - before.cpu_seconds,
            "peak_rss_bytes": after.peak_rss_bytes,
            "processes": after.processes,
        }

    def usage(self) -> Usage:
        cpu, rss = 0.0, 0
        tree = self._tree()
        for process in tree:
            try:
                times = process.cpu_times()
                rss += _peak_rss(process.pid)
            except (psutil.Error, OSError):  # it ended a moment ago
                continue
            cpu += times.user + times.system
        return Usage(cpu, rss, len(tree))

    def pause(self) -> None:
        """Stops every process until `resume`: Ray's graph polls its channels, a quarter of a core with nothing to do."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on where `pause` stopped it; needless if it did not."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it and whatever it leaves behind."""
        self.resume()
        tree = self._tree()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        _, alive = psutil.wait_procs(tree, timeout=2.0)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _hear(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        line = b""
        assert self._process.stdout is not None
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise Fell(f"no answer within {seconds:.0f} s")
            piece = self._process.stdout.read(65536)
            if not piece:
                raise Fell(self._last_words())
            line += piece
        said: dict[str, Any] = json.loads(line)
        return said

    def _last_words(self) -> str:
        lines = (self._folder / "errors").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if _ERROR.match(line)]  # what comes after an exception may be a backtrace of Rust's
        return (errors or lines or ["ended without a word"])[-1]


def _peak_rss(pid: int) -> int:
    """Bytes; `VmHWM` of Linux."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0  # a zombie has none
