"""What stands in for the robot in the examples: its command line, its camera, and somebody who watches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy.typing as npt

import zpipe
from zpipe.examples.last_known import PERIOD_SECONDS, Known, LastKnown


def arguments(text: str | None) -> argparse.Namespace:
    """Of every example; `text` is its docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="line4.yaml", help="a topology file, or the name of one that comes with zpipe")
    parser.add_argument("--connect", action="store_true", help="the other ranks run already; they are started here where not given")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to run (default: 10)")
    return parser.parse_args()


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """What is wrong with the configuration becomes one line, and Ctrl-C an end without a word."""
    try:
        yield
    except zpipe.ConfigError as exc:
        print(exc, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def camera(bundle: zpipe.Bundle) -> Callable[[], npt.NDArray[Any]]:
    """A camera that shows the bundle's evaluation images, the next one each time."""
    images = bundle.evaluation().images
    frames = count()
    return lambda: images[next(frames) % len(images)]


class Log:
    """A `steer` that writes a line a second, and how the loop kept its time at the end."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._fresh = 0

    def steer(self, known: Known | None, due: float, now: float) -> None:
        """One tick."""
        self._late.append(now - due)
        self._fresh += known is not None and known.fresh(now)
        if len(self._late) % round(1.0 / PERIOD_SECONDS) == 0:
            seen = "nothing known" if known is None else f"{known.result.class_name}, {1e3 * known.age_seconds(now):.0f} ms old"
            print(f"tick {len(self._late)}: {seen}", flush=True)

    def close(self, known: LastKnown) -> None:
        """The last lines."""
        late = sorted(self._late)
        print(f"{len(late)} ticks, {self._fresh} with an answer of the last 100 ms; 99 in 100 came within", end=" ")
        print(f"{1e3 * late[int(0.99 * len(late))]:.1f} ms of their time, the last one within {1e3 * late[-1]:.1f} ms")
        print("frames: " + ", ".join(f"{times} {kind}" for kind, times in known.ends.items() if times))
