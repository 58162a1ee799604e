"""What a hop costs beside its stages: CPU of the line of four, saturated, exits off, at batch 1 and 8; one checkout or two.

    python -m bench.hotpath                          this checkout, 5 rounds, about 4 minutes on an idle machine
    python -m bench.hotpath --against ../other       pairs of runs, this checkout and another; the ratio with its 95 % interval
    python -m bench.hotpath --against cfa603b --rounds 20 --batch 1     this checkout and a commit of it, 20 pairs, 10 minutes
    python -m bench.hotpath --batch 8 --rounds 8     one batch size
    python -m bench.hotpath --parts                  where it goes: one more run per batch size, timed part by part (bench/probe)

Every figure comes from whole `zpipe bench` runs: CPU seconds as the kernel counts them for each node's process (the source's also
offers the samples), CPU seconds of its stages as its executor's thread took them. CPU seconds rather than throughput, since they
hardly depend on what else the machine does. Runs are interleaved and the order changes from round to round; a ratio is the
geometric mean over pairs, its interval Student's t on the logarithms. Both checkouts run in the interpreter and with the packages
this one runs in. Figures go to bench/results/hotpath.json, with `--against` to hotpath-against.json beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "hotpath.json"
AGAINST = RESULTS.with_name("hotpath-against.json")
PROBE = ROOT / "bench" / "probe"
TOPOLOGY = "line4.yaml"
#: Samples under way: enough for full batches at every node.
WINDOW = 64
#: Samples before the measured ones.
WARM_UP = 200
#: What issue 7 wants: at most so many microseconds outside the stages per hop of a sample, and at least this share inside at 8.
MOST_OVERHEAD_US = {1: 200.0, 8: 50.0}
LEAST_EFFICIENCY = {8: 0.85}
#: What issue 9 wants: several sources cost a line with one source nothing, so CPU a sample stays within this of what it was.
MOST_CHANGE = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures; CPU in microseconds a sample.

    Attributes:
        nodes: whole CPU of each node.
        stages: of it, in stages.
        batches: mean batch of each node.
        tasks: stages run for a sample: the last node of the line hosts two.
        hz: throughput.
    """

    nodes: tuple[float, ...]
    stages: tuple[float, ...]
    batches: tuple[float, ...]
    tasks: float
    hz: float

    @property
    def cpu(self) -> float:
        return sum(self.nodes)

    @property
    def overhead(self) -> float:
        """CPU outside the stages, per hop: a sample passes every node once. Stricter than per task (see `tasks`)."""
        return sum(self.overheads) / len(self.nodes)

    @property
    def overheads(self) -> tuple[float, ...]:
        return tuple(node - stage for node, stage in zip(self.nodes, self.stages, strict=True))

    @property
    def efficiency(self) -> float:
        return sum(self.stages) / self.cpu


def measured(tree: Path, *, batch: int, count: int, seed: int, probe: Path | None = None) -> Run:
    """One run of a checkout; `probe`: a folder where each node's process writes where its CPU went."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        load = ("--count", str(count), "--window", str(WINDOW), "--admission", "fixed", "--policy", "no-exit")
        command = ["-m", "zpipe", "bench", "--topology", TOPOLOGY, *load, "--max-batch", str(batch), "--seed", str(seed)]
        _python(tree, *command, "--warm-up", str(WARM_UP), "--json", str(file), probe=probe)
        report = json.loads(file.read_text())
    if report["counts"]["result"] != count:
        raise SystemExit(f"{tree}: found {report['counts']}, expected {count} results")
    nodes = report["nodes"]
    return Run(
        nodes=tuple(1e6 * node["cpu_s"] / count for node in nodes),
        stages=tuple(1e6 * node["stage_cpu_s"] / count for node in nodes),
        batches=tuple(node["batch_mean"] for node in nodes),
        tasks=sum(node["tasks"] for node in nodes) / count,
        hz=report["throughput_hz"],
    )


def _python(tree: Path, *command: str, probe: Path | None = None) -> str:
    """What a Python of this interpreter says, with a checkout's own zpipe."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    if probe is not None:
        environment |= {"PYTHONPATH": os.pathsep.join([str(PROBE), str(tree)]), "ZPIPE_PROBE": str(probe)}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"in {tree}: {' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


@contextmanager
def other_tree(name: str) -> Iterator[tuple[Path, str]]:
    """The folder of another checkout and what it is, from its path or from a commit of this one, which is unpacked for a while."""
    if Path(name).is_dir():
        tree = check_tree(Path(name))
        yield tree, commit(tree)
        return
    packed = subprocess.run(["git", "archive", name], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"--against: found {name!r}, expected the folder of a checkout of zpipe, or a commit of this one")
    with tempfile.TemporaryDirectory(prefix="zpipe-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(folder)
        yield check_tree(Path(folder)), name


def check_tree(tree: Path) -> Path:
    """The checkout at a path, which has to be what runs there: else both columns would show the same code."""
    tree = tree.resolve()
    if not (tree / "zpipe" / "__init__.py").is_file():
        raise SystemExit(f"--against: found {tree}, expected a checkout of zpipe")
    found = Path(_python(tree, "-c", "import zpipe; print(zpipe.__file__)").strip()).resolve()
    if not found.is_relative_to(tree):
        raise SystemExit(f"--against {tree}: found that {found} is imported there, expected zpipe of that checkout")
    return tree


def ratio(here: Sequence[float], there: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of `here / there` over pairs, and its 95 % interval; one pair has none."""
    from scipy import stats

    logs = [math.log(one / other) for one, other in zip(here, there, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), 0.0, math.inf
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def parts(tree: Path, *, batch: int, count: int) -> dict[str, list[float]]:
    """{part: microseconds of CPU a sample, by rank} of one run under the probe, which takes some itself."""
    with tempfile.TemporaryDirectory() as folder:
        run = measured(tree, batch=batch, count=count, seed=0, probe=Path(folder))
        nodes = sorted(
            (json.loads(file.read_text()) for file in Path(folder).glob("*.json")), key=lambda node: node["threads"]["rank"]
        )
    if len(nodes) != len(run.nodes):
        raise SystemExit(f"{tree}: found what {len(nodes)} nodes wrote, expected {len(run.nodes)}")
    for name in nodes[0]["missing"]:
        print(f"  not found in {tree}: {name}; it counts as the rest")
    each = 1e6 / (count + WARM_UP)
    found = {part: [each * node["seconds"][part] for node in nodes] for part in nodes[0]["seconds"]}
    found["run a stage"] = [whole - stage for whole, stage in zip(found["run a stage"], run.stages, strict=True)]
    found["ZeroMQ threads"] = [each * sum(cpu for name, cpu in node["threads"].items() if name.startswith("ZMQ")) for node in nodes]
    known = [sum(values) for values in zip(*found.values(), strict=True)]
    found["the rest"] = [over - sure for over, sure in zip(run.overheads, known, strict=True)]
    return found


# ---- what is printed -----------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians and ranges of one checkout at one batch size."""
    ranks = range(len(runs[0].nodes))
    return {
        "cpu_us_per_sample": spread([run.cpu for run in runs]),
        "overhead_us_per_hop": spread([run.overhead for run in runs]),
        "overhead_us_per_task": spread([sum(run.overheads) / run.tasks for run in runs]),
        "cpu_efficiency": spread([run.efficiency for run in runs]),
        "throughput_hz": spread([run.hz for run in runs]),
        "overhead_us_by_rank": [spread([run.overheads[rank] for run in runs]) for rank in ranks],
        "batch_mean_by_rank": [statistics.median(run.batches[rank] for run in runs) for rank in ranks],
    }


def show_figures(batch: int, figures: dict[str, Any]) -> None:
    """One checkout's, beside what is wanted."""
    wanted = {
        "overhead_us_per_hop": f"<= {MOST_OVERHEAD_US[batch]:g}" if batch in MOST_OVERHEAD_US else "",
        "cpu_efficiency": f">= {LEAST_EFFICIENCY[batch]:g}" if batch in LEAST_EFFICIENCY else "",
    }
    rows = [(name, values, wanted.get(name, "")) for name, values in figures.items() if isinstance(values, dict)]
    rows += [
        (f"  node {rank}: overhead_us, mean batch {mean:.1f}", values, "")
        for rank, (values, mean) in enumerate(zip(figures["overhead_us_by_rank"], figures["batch_mean_by_rank"], strict=True))
    ]
    for name, values, limit in rows:
        form = ".3f" if name == "cpu_efficiency" else ",.0f"
        said = f"  wanted {limit}" if limit else ""
        print(f"  {name:<40}{values['median']:>10{form}}   [{values['low']:{form}}, {values['high']:{form}}]{said}", flush=True)


def show_parts(found: dict[str, list[float]]) -> None:
    """A table: parts down, ranks across."""
    ranks = range(len(found["policy"]))
    print(f"  {'us of CPU a sample':<24}" + "".join(f"{f'node {rank}':>9}" for rank in ranks) + f"{'a hop':>9}{'share':>8}")
    whole = sum(sum(values) for values in found.values())
    for part, values in found.items():
        mean = sum(values) / len(values)
        print(
            f"  {part:<24}" + "".join(f"{value:>9.1f}" for value in values) + f"{mean:>9.1f}{sum(values) / whole:>8.1%}", flush=True
        )


def show_ratios(here: Sequence[Run], there: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Pair by pair; what it printed, too."""
    measures: dict[str, tuple[list[float], list[float]]] = {
        "cpu_us_per_sample": ([run.cpu for run in here], [run.cpu for run in there]),
        "overhead_us_per_hop": ([run.overhead for run in here], [run.overhead for run in there]),
        "throughput_hz": ([run.hz for run in here], [run.hz for run in there]),
    }
    for rank in range(len(here[0].nodes)):
        measures[f"  node {rank}: overhead_us"] = ([run.overheads[rank] for run in here], [run.overheads[rank] for run in there])
    print(f"  {'':<40}{'here':>10}{'there':>10}{'ratio':>9}   95 % interval, {len(here)} pairs")
    found = {}
    for name, (ours, theirs) in measures.items():
        mean, low, high = ratio(ours, theirs)
        medians = f"{statistics.median(ours):>10,.0f}{statistics.median(theirs):>10,.0f}"
        print(f"  {name:<40}{medians}{mean:>9.3f}   [{low:.3f}, {high:.3f}]{_verdict(name, mean, low, high)}", flush=True)
        found[name.strip()] = {"ratio": mean, "low": low, "high": high if math.isfinite(high) else mean}
    return found


def _verdict(name: str, mean: float, low: float, high: float) -> str:
    """Whether a cost stayed what it was, where that is asked: decided by the interval's far end, not by luck."""
    if name not in ("cpu_us_per_sample", "overhead_us_per_hop"):
        return ""
    least, most = 1.0 - MOST_CHANGE, 1.0 + MOST_CHANGE
    held = "held" if high <= most else "open: more pairs" if low <= most else "COSTS MORE"
    return f"  wanted [{least:.2f}, {most:.2f}] or less: {held}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.hotpath", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", metavar="DIR|COMMIT", help="another checkout of zpipe, or a commit of this one")
    parser.add_argument("--rounds", type=int, default=5, help="0 with --parts: the parts alone")
    parser.add_argument("--count", type=int, default=3000, help="samples of a run")
    parser.add_argument("--batch", type=int, action="append", help="max_batch; several by repeating it")
    parser.add_argument("--parts", action="store_true", help="also where the CPU goes")
    options = parser.parse_args()
    if options.rounds < 0 or (options.rounds == 0 and not options.parts):
        parser.error(f"--rounds: found {options.rounds}, expected at least 1 (0 only with --parts)")
    if options.count < 1:
        parser.error(f"--count: found {options.count}, expected at least 1")
    if options.batch and min(options.batch) < 1:
        parser.error(f"--batch: found {min(options.batch)}, expected at least 1")
    return options


def main() -> None:
    options = _parse()
    if options.against is None:
        _measure(options, [ROOT], "")
        return
    with other_tree(options.against) as (tree, name):
        _measure(options, [check_tree(ROOT), tree], name)


def _measure(options: argparse.Namespace, trees: Sequence[Path], against: str) -> None:
    runs: dict[tuple[int, int], list[Run]] = {}
    batches = options.batch or [1, 8]
    about = {"commit": commit(), "machine": machine(), "rounds": options.rounds, "samples": options.count}
    for seed in range(options.rounds):
        for batch in batches:
            for which in range(len(trees)) if seed % 2 else reversed(range(len(trees))):
                run = measured(trees[which], batch=batch, count=options.count, seed=seed)
                runs.setdefault((batch, which), []).append(run)
                where = f" in {trees[which]}" if len(trees) > 1 else ""
                print(f"round {seed}, batch {batch}: {run.cpu:,.0f} us of CPU a sample{where}", file=sys.stderr, flush=True)
    results: dict[str, Any] = {}
    for batch in batches:
        print(f"batch {batch}")
        found = results[f"batch {batch}"] = summary(runs[batch, 0]) if options.rounds else {}
        if options.rounds:
            show_figures(batch, found)
        if options.rounds and len(trees) > 1:
            print(f"  against {trees[1]} ({against})")
            found["against"] = {**summary(runs[batch, 1]), "ratios": show_ratios(runs[batch, 0], runs[batch, 1])}
        if options.parts:
            found["parts_us_by_rank"] = by_part = parts(ROOT, batch=batch, count=options.count)
            show_parts(by_part)
    if options.rounds and len(trees) == 1:
        RESULTS.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    elif options.rounds:
        AGAINST.write_text(json.dumps({**about, "against": against, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
