"""The kernels of gate.cu in NumPy: which memory a launch touches, and what it does there."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zpipe.codecs.fp16 import Fp16
from zpipe.codecs.int8 import Int8
from zpipe.executors.cuda.gate import decisions_bytes
from zpipe.executors.gate import evaluate_gate
from zpipe.model import GateRule, GateSpec

RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")


class Span(NamedTuple):
    """Bytes of the device."""

    address: int
    nbytes: int


Look = Callable[[Span], npt.NDArray[np.uint8]]


def kernel(
    name: str, grid: tuple[int, int, int], arguments: Sequence[ctypes._SimpleCData[Any]]
) -> tuple[list[Span], Callable[[Look], None]]:
    """(what it touches, what it does given a way to look at memory) of one launch."""
    values = [argument.value for argument in arguments]
    family, _, kind = name.removeprefix("zpipe_").partition("_")
    if family == "decide":
        return _decide(np.dtype(kind), *values)
    assert name == f"zpipe_gather_{kind}"
    activation, decisions, out, *sizes = values
    if kind.isdigit():
        return _gather(int(kind) * sizes[0], grid[1], activation, decisions, out, aligned=int(kind))
    if kind == "int8":
        channels, each = sizes
        return _gather(4 * channels * each, grid[1], activation, decisions, out, coder=Int8((channels, each)))
    floats = sizes[0] * (2 if kind == "fp16_2" else 1)
    return _gather(4 * floats, grid[1], activation, decisions, out, coder=Fp16((floats,)))


def _decide(
    dtype: np.dtype[Any],
    logits: int,
    thresholds: int,
    rows: int,
    classes: int,
    rule: int,
    temperature: float,
    log_classes: float,
    last: int,
    decisions: int,
) -> tuple[list[Span], Callable[[Look], None]]:
    assert log_classes == np.float32(math.log(classes))
    read = [Span(logits, rows * classes * dtype.itemsize)]
    if not last:
        read.append(Span(thresholds, 4 * rows))
    written = Span(decisions, decisions_bytes(rows))

    def does(look: Look) -> None:
        values = look(read[0]).view(dtype).reshape(rows, classes).astype(np.float32)
        limits = np.zeros(rows, np.float32) if last else look(read[1]).view(np.float32)
        with np.errstate(all="ignore"):
            bad = np.flatnonzero(~np.isfinite(values / np.float32(temperature)).all(axis=1))
        said = evaluate_gate(values, GateSpec(RULES[rule], temperature, tuple(limits.tolist())))
        exited = np.ones(rows, np.bool_) if last else np.array(said.exited)
        record = look(written).view(np.int32).reshape(rows + 1, 4)
        first = int(bad[0]) if len(bad) else -1
        finite = int(np.isfinite(values[first]).sum()) if len(bad) else 0
        record[0] = (rows - exited.sum(), first, finite, classes)
        record[1:, 0], record[1:, 1] = exited, said.labels
        record[1:, 2] = np.array(said.confidences, np.float32).view(np.int32)
        record[1:, 3] = np.where(exited, -1, np.cumsum(~exited) - 1)

    return [*read, written], does


def _gather(
    row_bytes: int,
    rows: int,
    activation: int,
    decisions: int,
    out: int,
    *,
    aligned: int = 1,
    coder: Int8 | Fp16 | None = None,
) -> tuple[list[Span], Callable[[Look], None]]:
    of, record = Span(activation, rows * row_bytes), Span(decisions, decisions_bytes(rows))
    assert not any(address % aligned for address in (activation, out))

    def does(look: Look) -> None:
        exited = look(record).view(np.int32).reshape(rows + 1, 4)[1:, 0] != 0
        going = look(of).reshape(rows, row_bytes)[~exited]
        if coder is not None:
            coded = np.empty((len(going), coder.bytes), np.uint8)
            if len(going):
                coder.encode(going.view(np.float32), coded)
            going = coded
        if len(going):
            look(Span(out, going.nbytes))[:] = going.reshape(-1)

    return [of, record, Span(out, rows * (row_bytes if coder is None else coder.bytes))], does
