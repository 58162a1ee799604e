"""Which fuzzer finds more in the decoder: branches covered in equal time, and planted bugs found within it.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install -e '.[test]' atheris coverage      atheris is no dependency of zpipe
    /tmp/fuzz/bin/python -m bench.experiments.fuzz_compare                                   about 8 minutes on one core

Each planted bug takes one check out of `zpipe/wire/decoder.py`; a generator has found it when `tests.fuzz.oracle` objects to what
one of its frames did. All get the same seeds (`tests/fuzz/corpus/valid`), the same oracle and right checksums.
`--keep` writes the frame of our mutator that found each bug to `tests/fuzz/corpus/broke`.

Kept: the mutator (`tests/fuzz/mutate.py`). On two shared cores of an x86-64 server, Python 3.11, atheris 3.0.0, 4 s a bug:

    generator    branches of the decoder in 15 s    planted bugs found, of 39
    mutator      76 of 76                           38
    hypothesis   37 to 47 of 76                      5      its examples are small, and few
    atheris      71 of 76                           19      it alone found a budget too large to be exact in a float

The mutator also found what nobody had planted: arrays nested so deep that printing them raised RecursionError out of `decode`, and
refusals of 4 KiB. Its figure for branches is from a run that did not meet the first of these.
"""

# ruff: noqa: E501, PERF203 - the table of edits is read by rows

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 6.0
COVERAGE_SECONDS = 15.0
TOOLS = ("mutator", "hypothesis", "atheris")

#: {bug: (what stands in the decoder, what stands there instead)}
BUGS: dict[str, tuple[str, str]] = {
    "task-int-above-int64": ("or max(row[:8]) > MAX_INT\n        or source > MAX_RANK\n        or attempt < 1\n        or not NO_BUDGET", "or source > MAX_RANK\n        or attempt < 1\n        or not NO_BUDGET"),
    "task-infinite-weight": ("and weight + queued + service < math.inf)", ")"),
    "task-budget-inexact": ("not NO_BUDGET <= budget <= MAX_MICROSECONDS", "budget < NO_BUDGET"),
    "task-age-negative": ("or not 0 <= age <= MAX_MICROSECONDS", "or age > MAX_MICROSECONDS"),
    "task-too-many-thresholds": ("or len(thresholds) > exits", ""),
    "task-nan-threshold": ("not (min(thresholds) >= 0.0 and sum(thresholds) < math.inf)", "min(thresholds) < 0.0"),
    "task-threshold-types": ("set(map(type, thresholds)) != _FLOAT or ", ""),
    "task-negative-epoch": ('    _check_count("TASK", "epoch", epoch)\n', ""),
    "task-short-buffer": ("if size != most and", "if size > most and"),
    "task-empty-packed": ("1 <= size < most", "size < most"),
    "task-no-rows": ("if not 1 <= count <= limits.max_rows:", "if count > limits.max_rows:"),
    "task-row-types": ("type(row) is not tuple or tuple(map(type, row)) != TASK_ROW_TYPES", "type(row) is not tuple or len(row) != 14"),
    "buffer-not-in-checksum": ("xxh3_64_digest(body) if len(frames) == 1 else xxh3_64_digest(frames[1], xxh3_64_intdigest(body))", "xxh3_64_digest(body) if len(frames) == 1 else header[-TRAILER_BYTES:]"),
    "frame-count-of-kind": ("if len(frames) != (2 if kind == _TASK else 1):", "if kind == _TASK and len(frames) != 2:"),
    "sender-above-ranks": ("if not NO_RANK <= fields[2] <= MAX_RANK:", "if fields[2] < NO_RANK:"),
    "observer-may-say-all": ("if fields[2] == NO_RANK and fields[1] not in _OBSERVER_KINDS:", "if False:"),
    "kind-unhashable": ("or type(fields[1]) is not int:", ":"),
    "hello-peer-without-rank": ('if sender == NO_RANK and role != "observer":', "if False:"),
    "hello-negative-session": ('(("session", session), ("epoch", epoch), ("wire version", version))', '(("epoch", epoch), ("wire version", version))'),
    "document-too-deep": ("    raise WireError(f\"{kind}: document nested deeper than {MAX_DOCUMENT_DEPTH}\")", "    return document"),
    "document-infinity": ("if math.inf in level or -math.inf in level:", "if False:"),
    "document-nan": ("json.loads(data, parse_constant=_no_constant)", "json.loads(data)"),
    "document-recursion": ("except (ValueError, RecursionError) as exc:", "except ValueError as exc:"),
    "document-no-object": ("if type(document) is not dict:", "if False:"),
    "credit-held-beyond": ("or max(distances) > expected", ""),
    "credit-held-in-future": ("or min(distances) < 1", ""),
    "credit-held-types": ("set(map(type, distances)) != _INT or ", ""),
    "credit-holding-nan": ("not (holding == NO_HOLDING or 0.0 <= holding < math.inf)", "holding < NO_HOLDING"),
    "report-value-types": ("type(value) is not value_type or not 0", "not 0"),
    "report-unknown-stage": ("type(stage) is not int or stage not in limits.stage_inputs", "type(stage) is not int"),
    "lost-attempt-zero": ("or source > MAX_RANK or attempt < 1:", "or source > MAX_RANK:"),
    "lost-no-rows": ("if not 1 <= len(rows) <= limits.max_entries:", "if len(rows) > limits.max_entries:"),
    "result-unknown-exit": ("or exit_stage not in limits.stage_inputs", ""),
    "result-unknown-label": ("or label >= limits.classes", ""),
    "result-confidence": ("or not -CONFIDENCE_SLACK <= confidence <= 1.0 + CONFIDENCE_SLACK", "or confidence < -CONFIDENCE_SLACK"),
    "result-nan-seconds": ("or not (queued >= 0.0 and service >= 0.0 and queued + service < math.inf)", "or queued < 0.0 or service < 0.0"),
    "refusal-of-any-length": ("return repr(value)[:160]", "return repr(value)"),
    "utf8-unchecked": ("raw=False,", 'raw=False,\n            unicode_errors="surrogatepass",'),
    "msgpack-error-passes": ("except (ValueError, TypeError, RecursionError, msgpack.UnpackException)", "except (TypeError, RecursionError, msgpack.UnpackException)"),
}  # fmt: skip


def mutator(seconds: float) -> Iterator[tuple[list[bytes], bool]]:
    """tests/fuzz/mutate.py."""
    from tests.fuzz import corpus
    from tests.fuzz.mutate import Mutator

    until = time.monotonic() + seconds
    made = Mutator(corpus.read("valid"), random.Random(1))
    while time.monotonic() < until:
        mutant = made.mutant()
        yield mutant.frames, mutant.damaged


def run_mutator(seconds: float) -> None:
    from tests.fuzz.oracle import Unsound, judge
    from tests.wire.samples import LIMITS, NOW

    for frames, damaged in mutator(seconds):
        try:
            judge(frames, limits=LIMITS, now=NOW, damaged=damaged)
        except Unsound as exc:
            print(json.dumps({"found": str(exc), "frames": [frame.hex() for frame in frames]}))
            return


def run_hypothesis(seconds: float) -> None:
    """The strategies of tests/wire/test_refusals.py: a sample with fields replaced by any value, sealed; and noise."""
    import msgpack
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from tests.fuzz import corpus
    from tests.fuzz.mutate import seal
    from tests.fuzz.oracle import Unsound, judge
    from tests.wire.samples import LIMITS, NOW
    from tests.wire.test_refusals import values

    seeds = corpus.read("valid")
    until = time.monotonic() + seconds

    @settings(
        max_examples=10**7,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(seeds)), st.data())
    def test(name: str, data: st.DataObject) -> None:
        if time.monotonic() > until:
            raise KeyboardInterrupt  # the one thing that Hypothesis does not try again
        frames = seeds[name]
        tree = msgpack.unpackb(frames[0][:-8])
        index = data.draw(st.integers(1, len(tree) - 1))
        place = tree
        while isinstance(place[index], list) and place[index] and data.draw(st.booleans()):
            place = place[index]
            index = data.draw(st.integers(0, len(place) - 1))
        place[index] = data.draw(values)
        made = seal(msgpack.packb(tree), frames[1] if len(frames) > 1 and data.draw(st.booleans()) else None)
        if data.draw(st.integers(0, 9)) == 0:
            made = data.draw(st.lists(st.binary(max_size=80), max_size=4))
        judge(made, limits=LIMITS, now=NOW, damaged=False)

    try:
        test()
    except KeyboardInterrupt:
        return
    except Unsound as exc:
        print(json.dumps({"found": str(exc)}))


def run_atheris(seconds: float, folder: Path) -> None:
    """libFuzzer on an instrumented decoder; byte 0 says whether a buffer follows, bytes 1-2 how long the header is."""
    import atheris

    with atheris.instrument_imports(include=["zpipe.wire"]):
        import zpipe.wire  # noqa: F401
    from tests.fuzz import corpus
    from tests.fuzz.mutate import seal
    from tests.fuzz.oracle import Unsound, judge
    from tests.wire.samples import LIMITS, NOW

    folder.mkdir(exist_ok=True)
    for name, frames in corpus.read("valid").items():
        body = frames[0][:-8]
        buffer = frames[1] if len(frames) > 1 else b""
        (folder / name).write_bytes(bytes([len(frames) - 1]) + len(body).to_bytes(2, "big") + body + buffer)

    def one(data: bytes) -> None:
        if len(data) < 3:
            return
        size = int.from_bytes(data[1:3], "big")
        body, buffer = data[3 : 3 + size], data[3 + size :]
        try:
            judge(seal(body, buffer if data[0] & 1 else None), limits=LIMITS, now=NOW, damaged=False)
        except Unsound as exc:
            print(json.dumps({"found": str(exc)}), flush=True)
            os._exit(0)

    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=4096", "-verbosity=0", str(folder)], one)
    atheris.Fuzz()


def child(tool: str, seconds: float, folder: str, coverage: str) -> None:
    """One generator on the decoder that PYTHONPATH names."""
    tracer = None
    if coverage and tool != "atheris":
        import coverage as library

        tracer = library.Coverage(branch=True, include=["*/zpipe/wire/decoder.py"], data_file=coverage)
        tracer.start()
    if tool == "replay":
        replay(Path(folder), coverage)
    elif tool == "mutator":
        run_mutator(seconds)
    elif tool == "hypothesis":
        run_hypothesis(seconds)
    else:
        run_atheris(seconds, Path(folder))
    if tracer is not None:
        tracer.stop()
        tracer.save()


def replay(folder: Path, coverage: str) -> None:
    """What atheris kept as interesting, for the branches these inputs cover."""
    from tests.fuzz.mutate import seal
    from tests.fuzz.oracle import Unsound, judge
    from tests.wire.samples import LIMITS, NOW

    for path in folder.iterdir():
        data = path.read_bytes()
        size = int.from_bytes(data[1:3], "big")
        try:
            judge(
                seal(data[3 : 3 + size], data[3 + size :] if data[:1] and data[0] & 1 else None),
                limits=LIMITS,
                now=NOW,
                damaged=False,
            )
        except Unsound:
            pass


def start(tree: Path, tool: str, seconds: float, folder: Path, coverage: str = "") -> str:
    command = [sys.executable, "-m", "bench.experiments.fuzz_compare", "--child", tool, str(seconds), str(folder), coverage]
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith('{"found"')]
    if done.returncode and not found and tool != "atheris":
        raise SystemExit(f"{tool}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return found[0] if found else ""


def branches(coverage: Path, source: Path) -> str:
    import coverage as library

    data = library.Coverage(branch=True, data_file=str(coverage))
    data.load()
    numbers = data._analyze(str(source)).numbers
    return f"{numbers.n_branches - numbers.n_missing_branches} of {numbers.n_branches} branches, {numbers.n_missing} lines missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="write our mutator's finds to tests/fuzz/corpus/broke")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per generator and bug")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("bugs", nargs="*", default=list(BUGS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for part in ("zpipe", "tests", "bench"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        decoder = tree / "zpipe" / "wire" / "decoder.py"
        sound = decoder.read_text()
        for tool in arguments.tools:
            coverage, folder = tree / f"coverage-{tool}", tree / f"kept-{tool}"
            said = start(tree, tool, COVERAGE_SECONDS, folder, str(coverage))
            if tool == "atheris":
                start(tree, "replay", 1.0, folder, str(coverage))
            print(f"{tool:<11}{branches(coverage, decoder)}{'; found in the sound decoder: ' + said if said else ''}", flush=True)
        found: dict[str, int] = dict.fromkeys(arguments.tools, 0)
        for bug in arguments.bugs:
            old, new = BUGS[bug]
            if sound.count(old) != 1:
                raise SystemExit(f"{bug}: found {sound.count(old)} times in the decoder, expected once; mend BUGS")
            decoder.write_text(sound.replace(old, new))
            cells = []
            for tool in arguments.tools:
                started = time.monotonic()
                said = start(tree, tool, arguments.seconds, tree / f"kept-{tool}-{bug}")
                found[tool] += bool(said)
                cells.append(f"{tool} {time.monotonic() - started:4.1f} s" if said else f"{tool}      -")
                if said and tool == "mutator" and arguments.keep:
                    from tests.fuzz import corpus

                    report = json.loads(said)
                    corpus.write(
                        "broke", bug, [bytes.fromhex(frame) for frame in report["frames"]], f"found {report['found'][:90]}"
                    )
            print(f"{bug:<26}{'   '.join(cells)}", flush=True)
        print(", ".join(f"{tool} {count} of {len(arguments.bugs)}" for tool, count in found.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main()
