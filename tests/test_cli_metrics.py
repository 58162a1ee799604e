"""`zpipe node --metrics` as an operator sees it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

pytest.importorskip("prometheus_client")

from tests.test_cli import PATIENCE_SECONDS, ROOT, Refused, Running, free_ports, line2, refused

__all__ = ["refused"]  # a fixture


def test_a_node_tells_of_itself_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZPIPE_METRICS", "0")
    with Running("node", "--rank", "0", "--topology", line2(tmp_path / "boards.yaml", ports=free_ports(2), source=1)) as node:
        url = node.line("node 0 tells Prometheus at ").removeprefix("node 0 tells Prometheus at ")
        node.line("node 0 serves stage 0")
        with urlopen(url, timeout=PATIENCE_SECONDS) as page:
            assert b'\nzpipe_neighbour_up{peer="1",rank="0",topology="boards"} 0.0\n' in page.read()
        with pytest.raises(HTTPError) as not_ready:
            urlopen(url.replace("metrics", "readyz"), timeout=PATIENCE_SECONDS)
        with not_ready.value as answer:
            assert answer.code == 503
            assert json.load(answer)["why"][0].startswith("nobody takes samples to stage 1: it waits for rank 1 (127.0.0.1:")
        node.process.send_signal(signal.SIGTERM)
        assert node.ended() == 0
        assert node.err == []


def test_a_source_tells_of_itself_while_it_classifies() -> None:
    """Frames come through a pipe that stays open, so that the source is there while it is asked."""
    command = [sys.executable, "-m", "zpipe", "infer", "--topology", "local", "--size", "32x32", "--metrics", "0", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as source:
        assert source.stdin is not None
        assert source.stdout is not None
        assert source.stderr is not None
        url = source.stderr.readline().decode().removeprefix("tells Prometheus at ").strip()
        source.stdin.write(bytes(32 * 32 * 3))
        source.stdin.flush()
        assert json.loads(source.stdout.readline())["outcome"] == "result"
        with urlopen(url, timeout=PATIENCE_SECONDS) as page:
            assert b'zpipe_source_ended_samples_total{outcome="result",rank="0",topology="local"} 1.0' in page.read()
        source.stdin.close()
        assert source.wait(PATIENCE_SECONDS) == 0


def test_the_source_of_a_bench_tells_of_itself_while_it_runs() -> None:
    command = [sys.executable, "-m", "zpipe", "bench", "--topology", "local", "--duration", "60", "--metrics", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT) as source:
        assert source.stderr is not None
        line = next(line for line in source.stderr if line.startswith("tells Prometheus at "))
        next(line for line in source.stderr if line.startswith("classifying"))
        with urlopen(line.removeprefix("tells Prometheus at ").strip(), timeout=PATIENCE_SECONDS) as page:
            assert b'zpipe_source_ended_samples_total{outcome="result",rank="0",topology="local"}' in page.read()
        source.send_signal(signal.SIGINT)
        source.stderr.read()
        assert source.wait(PATIENCE_SECONDS) == 130


def test_sources_that_follow_each_other_cannot_tell_of_one(refused: Refused) -> None:
    assert refused("bench", "--compare", "central", "--metrics", "0").startswith("--metrics: found it beside --compare")


def test_a_port_that_is_taken_is_told_before_stages_are_loaded(refused: Refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused("node", "--rank", "1", "--topology", "line2", "--metrics", address)
        assert said.startswith(f"--metrics: found that {address} cannot be listened at (Address already in use), expected")
