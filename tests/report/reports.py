"""Reports for the page's tests: of simulated runs, one of them dressed as live."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests import students
from zpipe import simulate
from zpipe.bench.chaos.director import Event
from zpipe.bench.chaos.schedule import Fault
from zpipe.bench.chaos.spec import parse_chaos
from zpipe.bench.chaos.timeline import chaos_report
from zpipe.report import RunLog, build_report
from zpipe.sim import Death, SimOptions, generated, run_sim

Report = dict[str, Any]


@cache
def _line() -> Report:
    report, log = run_sim(SimOptions("line4", rate_hz=150.0, duration=3.0, seed=3))
    cpu = {"cpu_s": 1.25, "stage_cpu_s": 0.75, "rss_mb": 87.5, "executor": "onnx"}
    chaos = chaos_report(
        parse_chaos("kill every 2s"),
        [
            Event(Fault(1.0, "kill", node=2, seconds=0.5), 1.004, 0.5, back_after_seconds=0.75),
            Event(Fault(2.0, "slow", link=(0, 1), seconds=0.25), 2.001, 0.25),
            Event(Fault(2.5, "kill", node=2, seconds=0.5), 2.5, skipped="it was down"),
        ],
        log,
        started_at=0.0,
        deadlines={0: 30.0},
        classes={0: 0},
        seconds=report["seconds"],
        damage={},
        bad_frames=0,
        answers={},
    )
    memory = [{"results": 100 * at, "rss_mb": [80.0 + at, 90.0, None, 95.5]} for at in range(5)]
    live = {
        "simulated": False,
        "shared_machine": True,
        "lab": True,
        "cpu_shares": {"2": 0.25},
        "executor_choice": "auto takes onnx",
    }
    nodes = [{**row, **cpu} for row in report["nodes"]]
    links = [{**row, "limit_mbit_s": 20.0, "medium": "air"} for row in report["links"]]
    return {**report, **live, "nodes": nodes, "links": links, "memory": memory, "chaos": chaos}


def line() -> Report:
    """line4 as if it had been live, with faults and memory, in the lab: everything a report can hold."""
    return copy.deepcopy(_line())


@cache
def _overloaded() -> Report:
    return simulate("line4", rate_hz=900.0, duration=2.0, deadline=0.3, severity=(4,), accuracy=0.95)


def overloaded() -> Report:
    """More samples than answers, hard ones, and an accuracy that is not reached."""
    return copy.deepcopy(_overloaded())


@cache
def mesh(name: str = "mesh3") -> Report:
    return simulate(name, count=300)


@cache
def grid(nodes: int, shape: str = "grid") -> Report:
    topology = generated(shape, nodes=nodes, sources=3, bundle="digits-mobilenetv2", seed=1)
    return simulate(topology, count=300, rate_hz=200.0, warm_up=0)


@cache
def _of_students() -> Report:
    with tempfile.TemporaryDirectory() as folder:
        topology = students.star(students.write_students(Path(folder) / "three"))
        return run_sim(SimOptions(topology, count=100, rate_hz=30.0, warm_up=0, faults=(Death(2, 1.0), Death(5, 1.0))))[0]


def of_students() -> Report:
    """Three students, of one of which nobody is left after a second."""
    return copy.deepcopy(_of_students())


def empty() -> Report:
    """Nothing was offered, no node said anything."""
    return build_report(
        RunLog(),
        topology="nothing",
        bundle="digits-mobilenetv2",
        policy="default, aimd",
        seed=0,
        seconds=0.0,
        stage_macs=[1, 2],
        nodes=[],
        links=[],
        series=[],
        memory=[],
        second_results=0,
        resubmitted=0,
        shared_machine=True,
    )
