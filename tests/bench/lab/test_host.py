"""What a machine has to have for the lab, told from its files; and one clear line where something is missing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from zpipe.bench.lab import host
from zpipe.bench.lab.host import CpuGroups, cpu_groups, own_group, quota_microseconds
from zpipe.errors import ConfigError


def rooted(monkeypatch: pytest.MonkeyPatch, *, user: int = 0, tools: tuple[str, ...] = ("ip", "tc"), system: str = "linux") -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}" if tool in tools else None)
    monkeypatch.setattr(sys, "platform", system)


def test_root_on_linux_with_iproute2_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rooted(monkeypatch)
    host.check_host()


def test_what_is_missing_is_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rooted(monkeypatch, user=1000)
    with pytest.raises(ConfigError, match=r"^lab: found user 1000, expected root: .*; run it with sudo$"):
        host.check_host()
    rooted(monkeypatch, tools=("ip",))
    with pytest.raises(ConfigError, match=r"^lab: found no tc, expected iproute2; apt-get install iproute2"):
        host.check_host()
    rooted(monkeypatch, tools=())
    with pytest.raises(ConfigError, match=r"^lab: found no ip and no tc, expected iproute2; "):
        host.check_host()
    rooted(monkeypatch, system="darwin")
    with pytest.raises(ConfigError, match=r"^lab: found darwin, expected Linux"):
        host.check_host()


def test_failed_command_is_one_line_with_what_it_said() -> None:
    with pytest.raises(ConfigError, match=r"^lab: `sh -c echo no >&2; exit 1` failed: no; expected a machine or container"):
        host.call(("sh", "-c", "echo no >&2; exit 1"))


# ---- control groups ----------------------------------------------------------------------------


def test_version_1_wins_where_both_are_mounted() -> None:
    mounts = (
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
    )
    assert cpu_groups(mounts) == CpuGroups(Path("/sys/fs/cgroup/cpu,cpuacct"), 1)


def test_version_2_counts_where_it_has_the_cpu_controller(tmp_path: Path) -> None:
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    assert cpu_groups(mounts) is None
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert cpu_groups(mounts) is None
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    assert cpu_groups(mounts) == CpuGroups(tmp_path, 2)


def test_own_group_is_found_in_either_version() -> None:
    listed = "5:cpuset:/a\n2:cpu,cpuacct:/jobs/7\n0::/user.slice\n"
    assert (own_group(listed, 1), own_group(listed, 2)) == ("jobs/7", "user.slice")


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, (5000, 5000)), (0.25, (1250, 5000)), (2.0, (10000, 5000)), (0.1, (1000, 10000))]
)
def test_quota_keeps_to_short_periods_as_far_as_the_kernel_lets(share: float, expected: tuple[int, int]) -> None:
    assert quota_microseconds(share) == expected


def test_version_2_gets_its_controller_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    CpuGroups(tmp_path, 2).create("slow", 0.25)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (tmp_path / "slow" / "cpu.max").read_text() == "1250 5000"


def test_version_1_gets_period_and_quota(tmp_path: Path) -> None:
    groups = CpuGroups(tmp_path, 1)
    groups.create("slow", 0.5)
    groups.create("free", None)
    assert (tmp_path / "slow" / "cpu.cfs_period_us").read_text() == "5000"
    assert (tmp_path / "slow" / "cpu.cfs_quota_us").read_text() == "2500"
    assert list((tmp_path / "free").iterdir()) == []


def test_group_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    with pytest.raises(ConfigError, match=r"^lab: cannot set a CPU quota in .*slow \(File exists\), expected "):
        CpuGroups(tmp_path, 1).create("slow", 0.5)


def test_group_that_is_gone_is_removed_already(tmp_path: Path) -> None:
    CpuGroups(tmp_path, 1).delete("gone")


def test_group_that_stays_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "LEAVE_SECONDS", -1.0)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "cgroup.procs").write_text("")
    with pytest.raises(ConfigError, match=r"^lab: cannot remove .*busy \(Directory not empty\); try rmdir by hand$"):
        CpuGroups(tmp_path, 1).delete("busy")
