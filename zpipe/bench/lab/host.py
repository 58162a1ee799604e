"""What this machine offers a lab: root, iproute2, CPU control groups; and another namespace for the calling thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zpipe.errors import ConfigError

#: Where `ip netns` keeps its names (iproute2's NETNS_RUN_DIR).
NAMESPACES = Path("/var/run/netns")

#: A quota's period. Short beside a stage of 5 ms and more, so that a slow board is evenly slow (the kernel's own is 100 ms).
PERIOD_MICROSECONDS = 5000
#: The kernel takes no smaller quota.
LEAST_QUOTA_MICROSECONDS = 1000

#: Killed processes leave their control group by then.
LEAVE_SECONDS = 5.0

_CLONE_NEWNET = 0x40000000


def check_host() -> None:
    """Looks whether a lab can be made here at all.

    Raises:
        ConfigError: another system than Linux, no root, or no iproute2.
    """
    if sys.platform != "linux":
        raise ConfigError(f"lab: found {sys.platform}, expected Linux: it is made of network namespaces; run it there")
    if os.geteuid() != 0:
        raise ConfigError(f"lab: found user {os.geteuid()}, expected root: it makes network namespaces; run it with sudo")
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"lab: found no {' and no '.join(missing)}, expected iproute2; apt-get install iproute2 (or your system's package)"
        )


def call(command: Sequence[str]) -> str:
    """Runs a command of iproute2; returns what it printed.

    Raises:
        ConfigError: it failed.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ConfigError(
            f"lab: `{' '.join(command)}` failed: {said}; expected a machine or container that may make network namespaces "
            "(docker run --privileged)"
        )
    return done.stdout


# ---- network namespaces ------------------------------------------------------------------------


def namespaces() -> list[str]:
    """The names there are, whoever made them."""
    return os.listdir(NAMESPACES) if NAMESPACES.is_dir() else []


def delete_namespace(space: str) -> None:
    """Ends what still runs in it and removes it with its devices; one that is gone already is fine.

    Raises:
        ConfigError: it stays.
    """
    listed = subprocess.run(("ip", "netns", "pids", space), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    _kill(listed.stdout.split())
    try:
        call(("ip", "netns", "delete", space))
    except ConfigError:
        if (NAMESPACES / space).exists():
            raise


@contextmanager
def entered(space: str) -> Iterator[None]:
    """Sockets that this thread makes inside belong to the namespace, also those of threads and processes it starts.

    Raises:
        ConfigError: there is no such namespace.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _join(space)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _join(space: str) -> None:
    try:
        there = os.open(NAMESPACES / space, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"lab: found no namespace {space} ({exc.strerror}), expected one; enter the lab first") from exc
    try:
        _setns(there)
    finally:
        os.close(there)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is Python 3.12
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


# ---- CPU control groups ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CpuGroups:
    """Where CPU quotas are set on this machine.

    Attributes:
        root: the controller's top folder.
        version: of the kernel's interface.
    """

    root: Path
    version: int

    def create(self, name: str, share: float | None) -> None:
        """A group whose processes together get that share of one core; None for as much as there is.

        Raises:
            ConfigError: it cannot be made here.
        """
        folder = self.root / name
        try:
            if self.version == 2 and "cpu" not in (self.root / "cgroup.subtree_control").read_text().split():
                (self.root / "cgroup.subtree_control").write_text("+cpu")
            folder.mkdir()
            if share is not None:
                quota, period = quota_microseconds(share)
                if self.version == 2:
                    (folder / "cpu.max").write_text(f"{quota} {period}")
                else:
                    (folder / "cpu.cfs_period_us").write_text(str(period))
                    (folder / "cpu.cfs_quota_us").write_text(str(quota))
        except OSError as exc:
            raise ConfigError(
                f"lab: cannot set a CPU quota in {folder} ({exc.strerror}), expected a control group of this machine that may be "
                "written; run it outside of the container, or without CPU shares"
            ) from exc

    def processes_file(self, name: str) -> Path:
        """A process joins the group whose number is written here."""
        return self.root / name / "cgroup.procs"

    @contextmanager
    def joined(self, name: str) -> Iterator[None]:
        """This process is in the group meanwhile."""
        home = self.root / own_group(Path("/proc/self/cgroup").read_text(), self.version) / "cgroup.procs"
        self.processes_file(name).write_text(str(os.getpid()))
        try:
            yield
        finally:
            home.write_text(str(os.getpid()))

    def names(self) -> list[str]:
        """The groups there are, whoever made them."""
        return [entry.name for entry in os.scandir(self.root) if entry.is_dir()]

    def delete(self, name: str) -> None:
        """Ends what still runs in it and removes it; one that is gone already is fine.

        Raises:
            ConfigError: it stays.
        """
        until = time.monotonic() + LEAVE_SECONDS
        while not self._try_delete(name, last=time.monotonic() > until):
            time.sleep(0.01)  # a killed process takes a moment to leave

    def _try_delete(self, name: str, *, last: bool) -> bool:
        try:
            _kill(self.processes_file(name).read_text().split())
            (self.root / name).rmdir()
        except FileNotFoundError:
            pass
        except OSError as exc:
            if last:
                raise ConfigError(f"lab: cannot remove {self.root / name} ({exc.strerror}); try rmdir by hand") from exc
            return False
        return True


def cpu_groups(mounts: str | None = None) -> CpuGroups | None:
    """Finds them, given the text of /proc/self/mounts; None where the kernel or the container has none."""
    second = None
    if mounts is None:
        file = Path("/proc/self/mounts")
        mounts = file.read_text() if file.is_file() else ""  # none on other systems: `check_host` says that better
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return CpuGroups(Path(folder), 1)
        if kind == "cgroup2" and second is None:
            second = CpuGroups(Path(folder), 2)
    try:
        return second if second and "cpu" in (second.root / "cgroup.controllers").read_text().split() else None
    except OSError:
        return None


def own_group(listed: str, version: int) -> str:
    """A process's group below the controller's root, given its /proc/PID/cgroup."""
    for line in listed.splitlines():
        number, controllers, path = line.split(":", 2)
        if (version == 1 and "cpu" in controllers.split(",")) or (version == 2 and number == "0"):
            return path.lstrip("/")
    return ""


def quota_microseconds(share: float) -> tuple[int, int]:
    """(quota, period) for a share of one core."""
    period = max(PERIOD_MICROSECONDS, round(LEAST_QUOTA_MICROSECONDS / share))
    return round(share * period), period


def _kill(pids: Sequence[str]) -> None:
    for pid in map(int, pids):
        if pid != os.getpid():  # a thread of ours may be in there yet
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
