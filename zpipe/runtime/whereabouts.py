"""Where the pipelines of this machine can be looked at: those started with free ports, which no topology file tells.

A local pipeline leaves a note of its addresses in a folder of this user, and takes it away at its end; one left by a process that
died counts for nothing, and goes when the next note is read. The folder is `zpipe` in $XDG_RUNTIME_DIR, or `zpipe-UID` among the
temporary files; a folder that others can write is not used.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zpipe.topology import Topology

log = logging.getLogger("zpipe.pipeline")


def folder() -> Path:
    """Where the notes are; it need not be there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return Path(runtime) / "zpipe"
    return Path(tempfile.gettempdir()) / (f"zpipe-{os.getuid()}" if hasattr(os, "getuid") else "zpipe")


@contextmanager
def noted(topology: Topology, addresses: Mapping[int, str]) -> Iterator[None]:
    """A note of a running pipeline, for as long as this lasts. Where none can be left, there is none: nothing depends on it."""
    process = psutil.Process()
    note = {
        "topology": _called(topology),
        "pid": process.pid,
        "started": process.create_time(),
        "digest": topology.digest(),
        "addresses": {str(rank): address for rank, address in sorted(addresses.items())},
    }
    file = None
    try:
        kept = folder()
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(kept):
            descriptor, name = tempfile.mkstemp(prefix=f"{process.pid}-", suffix=".new", dir=kept)
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                json.dump(note, opened)
            file = Path(name).with_suffix(".json")
            os.replace(name, file)
    except OSError as exc:
        log.info("no note of where this pipeline is, so `zpipe top` will not find it: %s", exc)
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a topology's nodes are, {rank: address}, and the digest of what they run: options may have changed the file's."""

    addresses: Mapping[int, str]
    digest: str


def find(topology: Topology) -> Whereabouts | None:
    """The pipeline of this topology that was started last on this machine; None where none runs."""
    for note in _notes():
        if note["topology"] == _called(topology):
            return Whereabouts({int(rank): str(address) for rank, address in note["addresses"].items()}, str(note["digest"]))
    return None


def running() -> list[str]:
    """The topologies, as files or names, of all pipelines that run on this machine, each once, the last started first."""
    return list(dict.fromkeys(str(note["topology"]) for note in _notes()))


def _notes() -> Iterator[dict[str, Any]]:
    """Those of living processes, the latest first; others go."""
    kept = folder()
    if not kept.is_dir() or not _is_ours(kept):
        return
    for file in sorted(kept.glob("*.json"), key=_changed, reverse=True):
        note = _read(file)
        if note is None:
            file.unlink(missing_ok=True)
        else:
            yield note


def _read(file: Path) -> dict[str, Any] | None:
    """A note whose process lives."""
    try:
        note: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        alive = abs(psutil.Process(note["pid"]).create_time() - note["started"]) < 1.0
        return note if alive and isinstance(note["addresses"], dict) and {"digest", "topology"} <= note.keys() else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0  # it went meanwhile


def _called(topology: Topology) -> str:
    """What pipelines of the same file have in common, whatever options they were started with."""
    return str(topology.path.resolve()) if topology.path is not None else topology.name


def _is_ours(kept: Path) -> bool:
    """Whether nobody else can have put notes there; a link of somebody's is no folder."""
    found = kept.lstat()
    if os.name != "posix":
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
