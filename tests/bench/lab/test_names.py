"""Who made what: names that tell a dead lab's from a living one's."""

from __future__ import annotations

import os
import subprocess
import sys

from zpipe.bench.lab.names import lab_name, left_over, start_ticks


def test_own_names_are_not_left_over() -> None:
    assert left_over([f"{lab_name(0)}.node0", f"{lab_name(7)}.relay0-1"]) == []


def test_names_of_a_process_that_is_gone_are_left_over() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        name = f"zpipe-lab.{other.pid}.{start_ticks(other.pid)}.0.hub"
        assert left_over([name]) == []
        other.kill()
    assert left_over([name, f"{lab_name(0)}.hub"]) == [name]


def test_killed_process_that_nobody_has_waited_for_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        name = f"zpipe-lab.{other.pid}.{start_ticks(other.pid)}.0.hub"
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert left_over([name]) == [name]


def test_pid_that_came_back_is_another_process() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    name = f"zpipe-lab.{os.getpid()}.{ticks - 1}.0.node0"
    assert left_over([name]) == [name]


def test_what_no_lab_made_is_left_alone() -> None:
    others = [
        "blue",
        "zpipe-lab",
        "zpipe-lab.1.2.node0",
        "zpipe-lab.x.1.0.node0",
        "zpipe.999999999.1.0.node0",
        "zpipe-lab.999999999.1.0",
    ]
    assert left_over(others) == []
