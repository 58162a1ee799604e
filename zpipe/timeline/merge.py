"""Makes one timeline of the traces of several nodes."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from zpipe.errors import ConfigError
from zpipe.timeline.clocks import Clock, Passage, align
from zpipe.timeline.drawing import Drawing, Event
from zpipe.timeline.life import Life, Words, read_life

SCHEMA = "zpipe.timeline/1"
#: zlib's level: 6 makes files 5 % smaller in twice the time.
LEVEL = 3
#: Events that are compressed together.
CHUNK_EVENTS = 512
#: Two lives of a node may overlap by so much: of one that was cut off from the others only the wall clock is known.
OVERLAP_SECONDS = 1.0

Write: TypeAlias = Callable[[bytes], int]
#: Takes a line for people and how far it is, 0..1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Merged:
    """A timeline that was written.

    Attributes:
        lives: what each trace told; of ascending rank, then time.
        left_out: traces without a whole round: the node was killed as it began.
        clocks: of each of them.
        counts: what is in the timeline, also written in its `otherData`: `batches`, `tasks_run`, `frames`, `hops` (tasks sent in
            frames), `arrived` (frames whose arrival was seen), `resubmitted`, and the outcomes by kind.
        events, bytes: of the file.
    """

    lives: Sequence[Life]
    left_out: Sequence[Path]
    clocks: Sequence[Clock]
    counts: dict[str, int]
    events: int
    bytes: int


def merge(paths: Sequence[Path], out: Path, *, every: int = 1, progress: Progress = lambda line, share: None) -> Merged:
    """Reads traces, brings their clocks together and writes a timeline.

    Args:
        paths: traces of one run; those of a node's several starts are its several lives.
        out: the file; compressed where its name ends with .gz.
        every: one sample in so many is drawn in person.

    Raises:
        ConfigError: a file is no trace, or from a zpipe with other events or commands, they are not of one run, or `out` cannot be
            written.
    """
    read = [read_life(path, progress=partial(_reading, progress, paths, number)) for number, path in enumerate(paths)]
    lives = sorted((life for life in read if life.rounds), key=lambda life: (life.rank, life.began_at))
    left_out = [life.path for life in read if not life.rounds]
    if not lives:
        raise ConfigError(f"{left_out[0]}: found a trace without a whole round, expected one of a node that ran; name another")
    reference = next((number for number, life in enumerate(lives) if life.is_source), 0)
    progress("bringing clocks together", 0.0)
    clocks = align(passages(lives), [life.epoch for life in lives], reference=reference)
    _check_one_run(lives, clocks)
    drawing = Drawing(lives, clocks, every=every)
    counts = counts_of(lives)
    epoch = lives[reference].epoch
    about = {
        "schema": SCHEMA,
        "began_at": None if epoch is None else epoch + drawing.began_at,
        "every": every,
        "counts": counts,
        "nodes": [_about(life, clock) for life, clock in zip(lives, clocks, strict=True)],
    }
    progress("writing", 0.0)
    with _written(out) as write:
        events = _write(write, drawing.events(), about)
    return Merged(lives, left_out, clocks, counts, events, out.stat().st_size)


def _reading(progress: Progress, paths: Sequence[Path], number: int, share: float) -> None:
    progress(f"reading {paths[number].name}", (number + share) / len(paths))


def _check_one_run(lives: Sequence[Life], clocks: Sequence[Clock]) -> None:
    """A node lives once at a time."""
    spans = [
        (life.rank, clock.common(life.began_at), clock.common(life.ended_at), life.path)
        for life, clock in zip(lives, clocks, strict=True)
    ]
    for (rank, _, ended_at, path), (other, began_at, _, later) in itertools.pairwise(sorted(spans)):
        if rank == other and began_at < ended_at - OVERLAP_SECONDS:
            raise ConfigError(
                f"{later}: found that node {rank} ran then, by {path}, expected traces of one run; leave one of them out"
            )


def passages(lives: Sequence[Life]) -> dict[tuple[int, int], list[Passage]]:
    """{(i, j): messages from life i to life j}: those that were said once, by one life of their node alone."""
    said: dict[tuple[int, int, Words], tuple[int, float] | None] = {}
    for number, life in enumerate(lives):
        for (peer, words), now in life.said.items():
            name = (life.rank, peer, words)
            said[name] = None if name in said or now is None else (number, now)
    found: dict[tuple[int, int], list[Passage]] = {}
    for number, life in enumerate(lives):
        for peer, words, now in life.heard:
            sender = said.get((peer, life.rank, words))
            if sender is not None:
                found.setdefault((sender[0], number), []).append((sender[1], now))
    return found


def counts_of(lives: Iterable[Life]) -> dict[str, int]:
    """What happened, over all lives: see Merged."""
    counts = Counter(batches=0, tasks_run=0, frames=0, hops=0, arrived=0, resubmitted=0, result=0, rejected=0, expired=0, failed=0)
    for life in lives:
        done = [run for run in life.runs if run.exited is not None]
        counts["batches"] += len(done)
        counts["tasks_run"] += sum(len(run.rows) for run in done)
        counts["frames"] += len(life.frames)
        counts["hops"] += sum(len(frame.rows) for frame in life.frames)
        counts["arrived"] += len(life.arrived)
        counts["resubmitted"] += sum(note.name == "submitted again" for note in life.notes)
        counts.update(outcome.kind for outcome in life.outcomes)
    return dict(counts)


def _about(life: Life, clock: Clock) -> dict[str, Any]:
    return {
        "rank": life.rank,
        "file": life.path.name,
        "rounds": life.rounds,
        "end": life.end or "killed, or still running",
        "clock": clock.source,
        "clock_ahead_s": clock.ahead_seconds,
        "clock_uncertainty_s": clock.uncertainty_seconds,
    }


@contextmanager
def _written(out: Path) -> Iterator[Write]:
    """Writes the file, compressed or not; where it cannot be written whole, what was there before stays."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            if out.suffix == ".gz":
                # Without a time and a name in it the same traces make the same file.
                with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=file, mtime=0) as packed:
                    yield packed.write
            else:
                yield file.write
        part.replace(out)
    except OSError as exc:
        raise ConfigError(f"{out}: found that it cannot be written ({exc.strerror}), expected a file; choose another") from exc
    finally:
        part.unlink(missing_ok=True)


def _write(write: Write, events: Iterable[Event], about: dict[str, Any]) -> int:
    """The JSON object form, an event a line. Returns how many."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    write(b'{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[' % encode(about).encode())
    written, rest = 0, iter(events)
    while lines := [encode(event) for event in itertools.islice(rest, CHUNK_EVENTS)]:
        write((",\n" if written else "\n").encode() + ",\n".join(lines).encode())
        written += len(lines)
    write(b"\n]}\n")
    return written
