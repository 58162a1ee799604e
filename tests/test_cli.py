"""The commands as people run them: bad input, whole runs, nodes by hand, and what a signal leaves behind.

What fails before anything starts is called in this process through `main()`; whatever starts something is a process of its own.
"""

from __future__ import annotations

import json
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from zpipe import cli, load_bundle

ROOT = Path(__file__).parent.parent
HALF = ROOT / "engines" / "digits-mobilenetv2-half"
FEW = ("--count", "20", "--warm-up", "0")
#: What a busy two-core machine may take for anything here; who waits this long has failed.
PATIENCE_SECONDS = 45.0
PROGRESS = re.compile(r"(warming up|classifying|waiting for rank .*)( \d+ %)?")


# ---- running commands --------------------------------------------------------------------------

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command in this process that must end with exit code 2 and one line on standard error; returns that line."""
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["zpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert said.out == ""
        assert ended.value.code == 2, said.err
        return only_line(said.err)

    return call


def only_line(text: str) -> str:
    """The one line there is."""
    assert len(text.splitlines()) == 1, text
    line = text.strip("\n")
    assert line.startswith("zpipe: ")
    return line.removeprefix("zpipe: ")


class Running:
    """A `zpipe` process whose lines can be waited for. Ended for good when the `with` ends."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "zpipe", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines))
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            lines.append(line.rstrip("\n"))
            self._news.put(lines[-1])
        self._news.put(None)

    def line(self, start: str) -> str:
        """Waits for a line that starts so, on either stream."""
        while (line := self._news.get(timeout=PATIENCE_SECONDS)) is not None:
            if line.startswith(start):
                return line
        raise AssertionError(f"no line {start!r}: {self.out} {self.err}")

    def children(self) -> list[psutil.Process]:
        """Every process below this one."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def ended(self) -> int:
        """Waits for the end; the exit code. `out` and `err` are whole then."""
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return code

    def failed(self) -> list[str]:
        """Lines on standard error that are no progress."""
        return [line for line in self.err if not PROGRESS.fullmatch(line)]

    def __enter__(self) -> Running:  # noqa: PYI034 - Self is Python 3.11
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.ended()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def completed(*arguments: str | Path) -> Running:
    """A command that ends by itself, at its end."""
    with Running(*arguments) as running:
        running.ended()
    return running


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    return not alive


# ---- topologies --------------------------------------------------------------------------------


def write(path: Path, stages: list[list[int]], *, ports: list[int] | None = None, **keys: Any) -> Path:
    """A topology file; `ports`: one data port per node."""
    nodes: list[dict[str, Any]] = [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(stages)]
    for node, port in zip(nodes, ports or [], strict=False):
        node["address"] = f"127.0.0.1:{port}"
    plain = {"name": "boards", "bundle": str(HALF), "nodes": nodes, "links": "line", **keys}
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def line2(path: Path, **keys: Any) -> Path:
    return write(path, [[0], [1, 2, 3, 4]], **keys)


def free_ports(count: int) -> list[int]:
    """Data ports whose control port (one above) is free as well, below those the kernel gives to others."""
    rng = random.Random()
    while True:
        first = rng.randrange(15_000, 30_000, 2)
        with_control = range(first, first + 2 * count)
        try:
            for port in with_control:
                with closing(socket.socket()) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(with_control[::2])


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


# ---- bad input: a topology ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lnks": "line"}, "lnks: found an unknown key, expected one of name, bundle, nodes, links"),
        ({"source": {"rank": 5}}, "source.rank: found 5, expected the rank of a node, one of 0 to 1"),
        ({"policy": {"offload": "mdi", "output_threshold": 99}}, "policy.output_threshold: found 99, expected less than 64"),
        ({"policy": {"offload": "nearest"}}, "policy.offload: found 'nearest', expected one of local, cheapest, ddi, mdi"),
        ({"policy": {"offload_input": "maybe"}}, "policy.offload_input: found 'maybe', expected true, false or auto"),
        ({"policy": {"exit": "t0.42"}}, "policy.exit: found 't0.42', expected one of default, no-exit, t0.50"),
        ({"source": {"rank": 0, "admission": {"name": "aimd", "foo": 1}}}, "source.admission.foo: found an unknown key, expected"),
        ({"source": {"rank": 0, "admission": "tcp"}}, "source.admission: found 'tcp', expected one of"),
    ],
)
def test_mistake_in_a_topology(refused: Refused, tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    file = line2(tmp_path / "bad.yaml", **keys)
    for command in (("bench",), ("bench", "--attach"), ("node", "--rank", "1")):
        line = refused(*command, "--topology", file)
        assert line.startswith(f"{file}: ")
        assert said in line or "source" in said  # `source: tcp` may be told of its key `name`
        assert "found" in line
        assert "expected" in line


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([[0], [1, 2, 3]], "nodes: found no node that hosts stage 4, expected each of stages 0 to 4 in some node's stages"),
        ([[0], [2, 3, 4], [1]], "links: found no way to stage 1 from rank 0, which hosts stage 0, expected a link from rank 0"),
        ([[0], [1, 2, 3, 4, 5]], "nodes[1].stages: found stage 5 at rank 1, expected stages 0 to 4"),
    ],
)
def test_stage_that_nobody_hosts_or_reaches(refused: Refused, tmp_path: Path, stages: list[list[int]], said: str) -> None:
    file = write(tmp_path / "bad.yaml", stages)
    assert refused("bench", "--topology", file).startswith(f"{file}: {said}")
    assert refused("node", "--rank", "1", "--topology", file).startswith(f"{file}: {said}")


def test_address_of_another_node(refused: Refused, tmp_path: Path) -> None:
    file = line2(tmp_path / "bad.yaml", ports=[5900, 5901])
    line = refused("bench", "--topology", file)
    assert line.startswith(f"{file}: nodes[1].address: found '127.0.0.1:5901', whose data port 5901 is the control port of rank 0")


def test_unknown_executor(refused: Refused, tmp_path: Path) -> None:
    file = line2(tmp_path / "bad.yaml")
    text = file.read_text(encoding="utf-8").replace("rank: 1", "executor: onyx\n  rank: 1")
    file.write_text(text, encoding="utf-8")
    assert refused("bench", "--topology", file).startswith(f"{file}: nodes[1].executor: found 'onyx', expected one of ")


def test_absent_topology(refused: Refused) -> None:
    line = refused("bench", "--topology", "lin4")
    assert line.startswith("topology 'lin4': found no such file (did you mean line4?), expected it")


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "a: 1\na: 2"])
def test_file_that_is_no_topology(refused: Refused, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    line = refused("bench", "--topology", file)
    assert line.startswith(f"{file}: ")
    assert "found" in line
    assert "expected" in line


# ---- bad input: a bundle -----------------------------------------------------------------------


def test_absent_bundle(refused: Refused, tmp_path: Path) -> None:
    file = line2(tmp_path / "bad.yaml", bundle="no-such-bundle")
    line = refused("bench", "--topology", file)
    assert line.startswith(f"{file}: bundle: bundle 'no-such-bundle': found no manifest.json, expected one in one of: ")
    assert str(tmp_path) in line
    assert line == refused("node", "--rank", "1", "--topology", file)
    assert "'nor-this'" in refused("bench", "--topology", file, "--bundle", "nor-this")


def test_bundle_with_a_changed_file(refused: Refused, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(HALF, changed)
    with (changed / "stage1.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    line = refused("bench", "--topology", line2(tmp_path / "t.yaml", bundle="changed"))
    where = re.escape(f"{tmp_path / 't.yaml'}: bundle: {changed / 'stage1.onnx'}")
    assert re.match(rf"{where}: digests\.stage1\.onnx: found sha256:\w+\.\.\., expected sha256:", line)


# ---- bad input: the command line ---------------------------------------------------------------


def test_missing_rank(refused: Refused) -> None:
    assert refused("node") == "Missing option '--rank'; see `zpipe node --help`"


@pytest.mark.parametrize("rank", [-1, 4])
def test_rank_out_of_range(refused: Refused, rank: int) -> None:
    line = refused("node", "--rank", str(rank), "--topology", "line4")
    assert line.endswith(f"line4.yaml: --rank: found {rank}, expected one of 0 to 3")


def test_node_on_the_rank_of_the_source(refused: Refused) -> None:
    line = refused("node", "--rank", "0")
    assert "line4.yaml: rank 0 is a source, expected a rank that only serves" in line
    assert "`zpipe bench --attach`" in line


@pytest.mark.parametrize("rate", ["fast", "-1", "0", "nan", "inf"])
def test_bad_rate(refused: Refused, rate: str) -> None:
    assert refused("bench", "--rate", rate).startswith(f"--rate: found '{rate}', expected from 0.001 to 1e+06 samples")


def test_unknown_operating_point(refused: Refused, tmp_path: Path) -> None:
    line = refused("bench", "--topology", line2(tmp_path / "t.yaml"), "--policy", "t0.42")
    assert "operating point: found 't0.42', expected one of t0.50," in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "--fast"), "No such option"),
        (("bench", "--count", "0"), "Invalid value for '--count'"),
        (("bench", "--admission", "tcp"), "Invalid value for '--admission'"),
        (("bench", "line4.yaml"), "Got unexpected extra argument"),
        (("bunch",), "No such command 'bunch'"),
        (("sim", "--compare", "no-exit,lokal"), "topologies/line4.yaml: --compare: found 'lokal', expected one of no-exit, "),
        (("sim", "--compare", ","), "--compare: found ',', expected names of baselines or strategies"),
        (("bench", "--attach", "--source", "a", "--source", "b"), "--source: found a and b, expected one: a program is one source"),
        (("infer", "x.png", "--source", "a", "--source", "b"), "--source: found a and b, expected one: a program is one source"),
        (("sim", "--compare", "local", "--samples", "s"), "--samples: found it beside --compare, expected one of the two"),
        (("bench", "--compare", "local", "--attach"), "--attach: found it beside --compare, which starts every node several times"),
        (
            ("bench", "--attach", "--max-batch", "2"),
            "--max-batch, --bundle, --executor, --device, --accuracy, --offload and --redundancy concern every node",
        ),
        (
            ("bench", "--attach", "--offload", "fifo"),
            "--max-batch, --bundle, --executor, --device, --accuracy, --offload and --redundancy concern every node",
        ),
        (
            ("bench", "--attach", "--device", "raspberry-pi-3"),
            "--max-batch, --bundle, --executor, --device, --accuracy, --offload and --redundancy concern every node",
        ),
        (("bench", "--suite", "mdi"), "--suite: found 'mdi', expected one of mdi-exit"),
        (("bench", "--suite", "mdi-exit", "--count", "3"), "--count: found it beside --suite, expected none"),
        (("bench", "--suite", "mdi-exit", "--cpu-share", "2=0.2"), "--cpu-share: found it beside --suite, expected none"),
        (("bench", "--quick"), "--quick: found it without --suite"),
        (("bench", "--html", "a.html", "--json", "a.html"), "a.html: found the same file twice"),
        (("bench", "--suite", "mdi-exit", "--html", "a.json"), "--html: found a.json, the file of the JSON, expected another one"),
        (("train", "--codecs-only", "--epochs", "3"), "--epochs: found 3 with --codecs-only, expected none"),
        (("train", "--recipe", "digits"), "--recipe: found 'digits', expected one of digits-mobilenetv2, "),
    ],
)
def test_bad_option(refused: Refused, arguments: tuple[str, ...], said: str) -> None:
    assert refused(*arguments).startswith(said)


def test_report_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    for option in ("--json", "--samples", "--html"):
        absent = tmp_path / "absent" / "report.json"
        assert refused("bench", option, absent).startswith(f"{absent}: found no folder {absent.parent}, expected one")
        assert "is a directory" in refused("bench", option, tmp_path)
    (tmp_path / "loop").symlink_to("loop")  # cannot be opened, not even by root
    assert "found that it cannot be written" in refused("bench", "--json", tmp_path / "loop")
    assert list(tmp_path.iterdir()) == [tmp_path / "loop"]


def test_training_without_torch(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused("train")
    assert "found no torch, " in line
    assert line.endswith("run: pip install 'zpipe[train]'")


def test_suite_without_its_extra(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused("bench", "--suite", "mdi-exit")
    assert line == "--suite: found no matplotlib and no scipy, expected both; run: pip install 'zpipe[suite]'"


def test_mistake_of_ours_is_one_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise KeyError("stage\n3")

    monkeypatch.setenv("ZPIPE_LOG", "ERROR")
    monkeypatch.setattr("zpipe.topology.load_topology", broken)
    monkeypatch.setattr(sys, "argv", ["zpipe", "node", "--rank", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert only_line(capsys.readouterr().err).startswith("unexpected KeyError: 'stage\\n3'; `zpipe -vv ...` shows where")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("bench", "-h"), ("--version",), ("train", "--recipe", "list")])
def test_what_only_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")
    monkeypatch.setattr(sys, "argv", ["zpipe", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    assert said.out


# ---- ports -------------------------------------------------------------------------------------


def test_port_in_use(tmp_path: Path, port: int) -> None:
    file = line2(tmp_path / "t.yaml", ports=[port, *free_ports(1)])
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port + 1))  # the control port
        taken.listen()
        attached = completed("bench", "--attach", *FEW, "--topology", file)
    assert attached.process.returncode == 2
    said = (
        f"address 127.0.0.1:{port + 1} is in use: found a program that is source 0 already, or another at its port, expected none"
    )
    assert only_line("\n".join(attached.err)) == f"{said}: one program is a source; stop that one"

    file = line2(tmp_path / "t.yaml", ports=[*free_ports(1), port])
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        node = completed("node", "--rank", "1", "--topology", file)
    assert (node.process.returncode, node.out) == (2, [])
    assert only_line("\n".join(node.err)).startswith(f"address 127.0.0.1:{port} is in use")


# ---- whole runs --------------------------------------------------------------------------------

COUNTS = {"submitted", "result", "rejected", "expired", "failed", "lost", "duplicate", "hung", "second_results", "resubmitted"}
LINE_KEYS = ["source", "id", "index", "outcome", "label", "truth", "confidence", "exit_stage", "latency_ms", "attempts"]


def refuse_nan(text: str) -> float:
    raise ValueError(f"{text} in a report")


def test_bench_writes_its_report_and_a_line_for_each_sample(tmp_path: Path) -> None:
    report_file, samples_file = tmp_path / "report.json", tmp_path / "samples.jsonl"
    wanted = ("--count", "300", "--warm-up", "20", "--seed", "3")
    run = completed("bench", "--bundle", HALF, *wanted, "--json", report_file, "--samples", samples_file)
    assert run.process.returncode == 0, run.err
    assert run.failed() == []
    text = "\n".join(run.out)
    assert "line4 · digits-mobilenetv2-half · default, aimd" in text
    assert "lost 0  duplicate 0  hung 0" in text
    assert "…" not in text

    report = json.loads(report_file.read_text(encoding="utf-8"), parse_constant=refuse_nan)
    assert report["schema"] == "zpipe.report/1"
    counts = report["counts"]
    assert set(counts) == COUNTS
    assert counts["submitted"] == counts["result"] == 300
    assert counts["result"] + counts["rejected"] + counts["expired"] + counts["failed"] == 300
    assert [counts[key] for key in ("lost", "duplicate", "hung")] == [0, 0, 0]
    assert [node["rank"] for node in report["nodes"]] == [0, 1, 2, 3]
    assert [row["stage"] for row in report["exits"]] == [0, 1, 2, 3, 4]
    assert sum(row["share"] for row in report["exits"]) == pytest.approx(1.0)
    assert (report["topology"], report["bundle"], report["seed"], report["shared_machine"]) == ("line4", HALF.name, 3, True)

    lines = [json.loads(line, parse_constant=refuse_nan) for line in samples_file.read_text(encoding="utf-8").splitlines()]
    assert [list(line) for line in lines] == [LINE_KEYS] * 300
    assert [line["id"] for line in lines] == list(range(20, 320))
    truth = load_bundle(HALF).evaluation().labels
    assert all(line["truth"] == truth[line["index"]] for line in lines)
    assert report["accuracy"] == pytest.approx(sum(line["label"] == line["truth"] for line in lines) / 300)
    for row in report["exits"]:
        assert row["share"] == pytest.approx(sum(line["exit_stage"] == row["stage"] for line in lines) / 300)


def test_bench_of_emulated_boards_answers_as_the_real_ones_and_takes_their_time(tmp_path: Path) -> None:
    report_file, samples_file = tmp_path / "report.json", tmp_path / "samples.jsonl"
    boards = ("--executor", "emulated", "--device", "raspberry-pi-3/12", "--bundle", HALF)
    load = ("--count", "40", "--warm-up", "0", "--window", "40")
    run = completed("bench", "--topology", "line2", *boards, *load, "--json", report_file, "--samples", samples_file)
    assert run.process.returncode == 0, run.err
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["counts"]["result"] == 40
    assert report["shared_machine"] is False
    replay = load_bundle(HALF).replay()
    samples = [json.loads(line) for line in samples_file.read_text(encoding="utf-8").splitlines()]
    assert [sample["label"] for sample in samples] == [replay.labels[s["index"], s["exit_stage"]] for s in samples]
    busy, computed = (sum(node[key] for node in report["nodes"]) for key in ("busy", "stage_cpu_s"))
    assert busy * report["seconds"] > 40 * 0.005
    assert computed < 0.2 * busy * report["seconds"]


def test_bench_of_boards_too_fast_to_be_emulated(refused: Refused) -> None:
    line = refused("bench", "--topology", "line2", "--executor", "emulated", "--device", "raspberry-pi-4")
    assert "nodes[0].device: found 'raspberry-pi-4', which does stage 0 in 4.7 ms, expected at least 5 ms" in line
    assert line.endswith("name 'raspberry-pi-4/2'")


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[tuple[Running, list[psutil.Process]]]:
    """A bench in the middle of its run, and its two child processes."""
    file = write(tmp_path / "line3.yaml", [[0], [1, 2], [3, 4]])
    with Running("bench", "--topology", file, "--duration", "300", "--warm-up", "20") as running:
        running.line("classifying")
        children = running.children()
        assert len(children) == 2
        yield running, children
        assert all_gone(children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_run_in_order(long_run: tuple[Running, list[psutil.Process]], number: signal.Signals) -> None:
    running, _ = long_run
    running.process.send_signal(number)
    assert running.ended() == 128 + number  # what a script that goes on with its report must know
    assert (running.out, running.failed()) == (["stopped"], [])


def test_killed_node_ends_a_run_with_one_line(long_run: tuple[Running, list[psutil.Process]]) -> None:
    running, children = long_run
    children[1].kill()
    assert running.ended() == 1
    assert running.out == []
    assert re.fullmatch(r"node [12] ended by itself \(exit code -9\)", only_line("\n".join(running.failed())))


# ---- nodes by hand -----------------------------------------------------------------------------


def test_executor_of_one_node_is_its_own_affair(tmp_path: Path) -> None:
    """It is not in the topology's digest, so the neighbours need not say the same."""
    file = write(tmp_path / "boards.yaml", [[0], [1, 2, 3, 4]], ports=free_ports(2))
    report = tmp_path / "report.json"
    with Running("node", "--rank", "1", "--executor", "onnx", "--topology", file) as node:
        node.line("node 1 serves stage 1, 2, 3, 4")
        attached = completed("bench", "--attach", *FEW, "--topology", file, "--json", report)
        assert attached.process.returncode == 0, attached.err
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["executor_choice"].startswith(f"executor auto takes {found['nodes'][0]['executor']}")
    assert found["nodes"][1]["executor"] == "onnx"


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("onyx", "executor: found 'onyx', expected one of auto, "),
        ("emulated", "executor: found emulated at node 1 of a topology of real nodes, expected all or none emulated"),
    ],
)
def test_executor_that_a_node_cannot_have(tmp_path: Path, executor: str, message: str) -> None:
    file = write(tmp_path / "boards.yaml", [[0], [1, 2, 3, 4]], ports=free_ports(2))
    node = completed("node", "--rank", "1", "--executor", executor, "--topology", file)
    assert (node.process.returncode, node.out) == (2, [])
    assert only_line("\n".join(node.err)).startswith(message)


def test_nodes_in_any_order_a_restart_and_two_benches(tmp_path: Path) -> None:
    file = write(tmp_path / "boards.yaml", [[0], [1], [2], [3, 4]], ports=free_ports(4))
    bench = ("bench", "--attach", "--count", "100", "--warm-up", "0", "--topology", file)

    def start(rank: int) -> Running:
        return Running("node", "--rank", str(rank), "--topology", file)

    with Running(*bench) as first:
        first.line("waiting for rank 1")
        with start(3) as last, start(1) as one, start(2) as lost:
            assert first.ended() == 0, first.err
            assert "100 samples" in "".join(first.out)
            assert first.failed() == []
            lost.process.kill()
            lost.ended()
            with start(2) as two:
                two.line("node 2 serves stage 2 of digits-mobilenetv2-half at 127.0.0.1:")
                second = completed(*bench)
                assert second.process.returncode == 0, second.err
                assert second.failed() == []
                for node in (one, two, last):
                    node.process.send_signal(signal.SIGINT)
                for rank, node in ((1, one), (2, two), (3, last)):
                    assert node.ended() == 0
                    assert node.err == []
                    chosen, serves, *_, stopped = node.out
                    assert chosen.startswith("executor auto takes ")
                    assert serves.startswith(f"node {rank} serves stage")
                    assert re.fullmatch(rf"node {rank} stopped: \d+ tasks run, \d+ answered here, \d+ handed on", stopped)


def test_nodes_with_different_topology_files_refuse_each_other(tmp_path: Path) -> None:
    ports = free_ports(3)
    stages = [[0], [1], [2, 3, 4]]
    file = write(tmp_path / "one.yaml", stages, ports=ports)
    other = write(tmp_path / "other.yaml", stages, ports=ports, source={"rank": 0, "deadline": "5 s"})
    differs = "found 5.0 here, expected 30.0 as node"
    with Running("node", "--rank", "2", "--topology", file) as two:
        one = completed("node", "--rank", "1", "--topology", other)
        assert one.process.returncode == 2
        line = only_line("\n".join(one.err))
        assert line.startswith(f"{other}: sources[0].deadline: {differs} 2 (127.0.0.1:{ports[2]}) has")
        with Running("node", "--rank", "1", "--topology", file) as right:
            attached = completed("bench", "--attach", *FEW, "--topology", other)
            assert attached.process.returncode == 2
            assert f"sources[0].deadline: {differs} 1 " in only_line("\n".join(attached.failed()))
            right.process.terminate()
            assert right.ended() == 0
        two.process.terminate()
        assert (two.ended(), two.err) == (0, [])
