"""`executor: auto`, a topology's default: the first of TensorRT, torch on CUDA and ONNX Runtime that runs here.

A GPU executor is taken when what it needs is here (`presence.py`: looked for, not imported), it loads and runs its stages at the
node's largest batch (engines are built where none fits; those for another GPU or version stay), and its answers are those that
the bundle stores. ONNX Runtime is what the stored answers come from and is not asked again: without a GPU the choice takes 1 to
2 ms. A node keeps what was chosen at its start; one whose device dies later is out of service (`zpipe.ExecutorLost`), as with an
executor that was named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from zpipe.devices import load_device
from zpipe.errors import ConfigError, ZpipeError, one_line
from zpipe.executors.base import StageExecutor, executor_options, make_executor
from zpipe.executors.cuda.presence import missing_for

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

log = logging.getLogger("zpipe.node")

AUTO = "auto"
#: What may be taken, the best first; the last one is taken without a trial.
PREFERENCE = ("trt", "torch-cuda", "onnx")

#: What `device` says to executors on a GPU: which, and after a slash in which precision.
_GPU = re.compile(r"(?:cuda(?::\d+)?|\d+)?(?:(?:^|/)(?:fp32|fp16|bf16|int8))?")

#: Nobody meant engines for another GPU or version to be used here: it has its own built beside them.
_REBUILD = {"trt": {"rebuild": True}}

#: Runs an executor, warm already, on samples of the bundle; says what differs from the stored answers, None where nothing does.
Smoke = Callable[[StageExecutor], str | None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One executor that may be taken.

    Attributes:
        name: of `EXECUTORS`.
        lacks: what is missing here for it, as the words after "found"; "" if nothing seems to be. Cheap, and never raises.
        make: makes it.
    """

    name: str
    lacks: Callable[[], str]
    make: Callable[[], StageExecutor]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was taken, and why not what stands before it.

    Attributes:
        name: of the executor.
        executor: it, warm unless it is the last candidate; to be closed by whoever asked.
        tried: whether it had a trial, and passed it.
        passed_over: (name, reason) of each candidate before it.
    """

    name: str
    executor: StageExecutor
    tried: bool
    passed_over: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.passed_over:
            reasons.setdefault(reason, []).append(name)
        against = [f"; not {' or '.join(names)}: {reason}" for reason, names in reasons.items()]
        passed = ", which gives the bundle's answers here" if self.tried else ""
        return f"executor {AUTO} takes {self.name}{passed}{''.join(against)}"


def choose(candidates: Sequence[Candidate], *, max_batch: int, smoke: Smoke) -> Choice:
    """The first candidate that works here.

    Args:
        candidates: the best first; what the last one raises is the caller's.
        max_batch: the largest batch it will run.
        smoke: told of every candidate but the last.

    Raises:
        ZpipeError: the last one cannot be made either.
    """
    *tried, last = candidates
    passed_over: list[tuple[str, str]] = []
    for candidate in tried:
        lacks = candidate.lacks()
        if not lacks:
            executor, lacks = _on_trial(candidate, max_batch, smoke)
            if executor is not None:
                return Choice(candidate.name, executor, True, tuple(passed_over))
        passed_over.append((candidate.name, lacks))
    return Choice(last.name, last.make(), False, tuple(passed_over))


def make(
    bundle: Bundle,
    stages: Sequence[int],
    device: str = "",
    max_batch: int = 1,
    note: Callable[[str], None] | None = None,
) -> StageExecutor:
    """What `executor: auto` names. Unlike others it loads its stages at once, and may build engines, where there is a GPU.

    Args:
        bundle: the network.
        stages: hosted stages.
        device: a GPU, a precision, or both, as in `cuda:1/fp16`, for the executor that is taken; any other name is an emulated
            board's profile, which does not concern these.
        max_batch: the largest batch the node will run.
        note: takes the line that says what was taken and why; it goes to the log if not given.

    Raises:
        ConfigError: there is no such device.
        BackendUnavailable: there is not even ONNX Runtime.
    """
    _check_device(device)
    candidates = [Candidate(name, partial(_lacks, name), partial(_make, name, bundle, stages, device)) for name in PREFERENCE]
    choice = choose(candidates, max_batch=max_batch, smoke=partial(_smoke, bundle=bundle, max_batch=max_batch))
    (note or partial(log.info, "%s"))(str(choice))
    return choice.executor


def _check_device(device: str) -> None:
    """A mistyped GPU must not become the first one, nor fp32."""
    if _GPU.fullmatch(device):
        return
    try:
        load_device(device)
    except ConfigError as exc:
        raise ConfigError(
            f"executor {AUTO}: device: found {device!r}, expected a GPU, what it computes in, or both, as in cuda:0/fp16, "
            f"or a board's profile as `emulated` takes it; correct `device`"
        ) from exc


def _lacks(name: str) -> str:
    missing = missing_for(name)
    return "" if missing is None else missing.found


def _make(name: str, bundle: Bundle, stages: Sequence[int], device: str) -> StageExecutor:
    return make_executor(name, bundle, stages, **_options(name, device), **_REBUILD.get(name, {}))


def _options(name: str, device: str) -> dict[str, str]:
    """The topology's device, for an executor on a GPU; an emulated board's profile says nothing to one."""
    return {"device": device} if _GPU.fullmatch(device) and "device" in executor_options(name) else {}


def _smoke(executor: StageExecutor, *, bundle: Bundle, max_batch: int) -> str | None:
    from zpipe.executors.smoke import SAMPLES, smoke

    return smoke(executor, bundle, batch=min(SAMPLES, max_batch))


def _on_trial(candidate: Candidate, max_batch: int, smoke: Smoke) -> tuple[StageExecutor | None, str]:
    """The executor if it works, else None and why it does not; one that does not is closed."""
    executor = None
    try:
        executor = candidate.make()
        executor.warm_up(max_batch)
        differs = smoke(executor)
    except Exception as exc:  # of a foreign library, too: the next candidate is the answer to all of them
        log.debug("executor %s: what happened:", candidate.name, exc_info=True)
        differs = str(exc) if isinstance(exc, ZpipeError) else one_line(" ".join(f"{type(exc).__name__}: {exc}".split()))
    if differs is None:
        return executor, ""
    if executor is not None:
        with suppress(Exception):  # its device may be gone
            executor.close()
    return None, " ".join(differs.split()).removeprefix(f"executor {candidate.name}: ")
