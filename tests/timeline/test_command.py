"""`zpipe trace merge`, as people use it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.timeline.reader import read
from tests.trace.test_commands import zpipe
from tests.trace.test_recorder import Recorded, parts
from zpipe.trace import codec


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    recorded = Recorded(folder / "node-1.trace")
    recorded.serve(5)
    recorded.recorder.close()
    return recorded.path


def test_a_bench_becomes_a_timeline(tmp_path: Path) -> None:
    """What the help gives as its example."""
    folder, out = tmp_path / "traces", tmp_path / "timeline.json.gz"
    bench = zpipe("bench", "--topology", "line2.yaml", "--count", "30", "--warm-up", "0", "--trace", folder)
    assert bench.returncode == 0, bench.stderr
    merged = zpipe("trace", "merge", folder, "--out", out)
    assert merged.returncode == 0, merged.stderr
    first, second, last = merged.stdout.splitlines()
    said = re.match(
        rf"{re.escape(str(out))}: 2 nodes, samples: 30 result; (\d+) tasks in (\d+) batches, (\d+) hops in (\d+) frames; ", first
    )
    assert said is not None, first
    assert int(said[1]) >= 30
    assert read(out).count("stage ") == int(said[2])
    assert re.fullmatch(r"node 1 \(node-1.trace\): clock \d+\.\d{3} ms (ahead|behind), ± \d+\.\d{3} ms by its messages", second)
    assert last == "open it in https://ui.perfetto.dev"


def test_a_folder_or_its_files_make_the_same(trace: Path) -> None:
    both = [trace.with_name(name) for name in ("a.json", "b.json")]
    for named, out in zip((trace.parent, trace), both, strict=True):
        merged = zpipe("trace", "merge", named, trace, "--out", out)
        assert merged.returncode == 0, merged.stderr
        assert "samples: none ended; 5 tasks in 5 batches, 0 hops in 0 frames" in merged.stdout
    assert both[0].read_bytes() == both[1].read_bytes()


def test_a_trace_is_shown_as_lines_of_json(trace: Path) -> None:
    shown = zpipe("trace", "show", trace)
    assert shown.returncode == 0, shown.stderr
    header, *rounds, end = map(json.loads, shown.stdout.splitlines())
    assert (header["trace"], header["rank"], end) == (2, 1, {"end": "closed"})
    assert dict(zip(header["fields"]["NeighbourConfig"], header["config"][3][0], strict=True))["bandwidth_bps"] == "inf"
    assert rounds == json.loads(json.dumps(parts(trace)[1:-1], default=bytes.hex).replace("Infinity", '"inf"'))


def test_what_cannot_be_merged_is_one_line_and_exit_code_2(trace: Path, tmp_path: Path) -> None:
    empty = trace.with_name("begun")
    empty.write_bytes(codec.pack(parts(trace)[0]))
    out = ("--out", tmp_path / "timeline.json")
    cases: dict[str, tuple[str | Path, ...]] = {
        "found that it cannot be read (No such file or directory), expected a trace": ("none", *out),
        "found no *.trace in it, expected the folder of a `zpipe bench --trace`": (tmp_path, *out),
        "found no header of a trace, expected trace version 2": ("README.md", *out),
        "found a trace without a whole round": (empty, *out),
        "one of the traces, expected another file": (trace, "--out", trace),
        "found no folder": (trace, "--out", tmp_path / "none" / "timeline.json"),
    }
    before = trace.read_bytes()
    for message, arguments in cases.items():
        said = zpipe("trace", "merge", *arguments)
        assert said.returncode == 2, said.stderr
        assert said.stdout == ""
        (line,) = said.stderr.splitlines()[-1:]
        assert message in line
        assert line.startswith("zpipe: ")
    assert trace.read_bytes() == before
    assert not (tmp_path / "timeline.json").exists()
