"""What every exit answers when each cut of a bundle passes through a codec, and what the manifest says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zpipe.bundle import Bundle, Evaluation, lossy_part
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.metrics import Answers, answers_of, bootstrap
from zpipe.calibrate.points import right_at
from zpipe.calibrate.rows import label_dtype
from zpipe.calibrate.temperature import by_stage
from zpipe.codecs import Codec, make_codecs
from zpipe.errors import ExecutorError
from zpipe.model import CODECS, NO_CODEC

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CodecTable:
    """Answers of every exit to every evaluation sample, and one sample's mean coded bytes at each cut."""

    answers: Answers
    cut_bytes: tuple[float, ...]


def codec_tables(bundle: Bundle, plain: Answers, tell: Callable[[int, int, str], None]) -> dict[str, CodecTable]:
    """One table per codec that the bundle can do, through ONNX Runtime at batch 1.

    Args:
        bundle: has an evaluation set.
        plain: its answers without any codec, one column per stage; becomes the table of `none`.
        tell: called before each codec: (how many are done, of how many, its name).

    Raises:
        ExecutorError: a codec that should pack another without loss gave other answers.
    """
    chain = StageChain.of(bundle)
    names = [name for name in CODECS if name != "bottleneck" or bundle.bottleneck_file is not None]
    codecs, test = make_codecs(bundle, names), bundle.evaluation()
    activation_bytes = tuple(float(stage.output.bytes) for stage in bundle.stages if stage.output is not None)
    tables = {NO_CODEC: CodecTable(plain, activation_bytes)}
    lossy = [name for name in names if name != NO_CODEC]
    for done, name in enumerate(lossy):
        tell(done, len(lossy), name)
        tables[name] = answer_through(bundle, chain, [codecs[name, stage.index] for stage in bundle.stages[1:]], test)
        packed = tables[lossy_part(name)].answers
        # Activations beyond half precision are infinities in fp16, and answers to them NaN: the table then says what is lost.
        if not np.array_equal(tables[name].answers.confidences, packed.confidences, equal_nan=True):
            raise ExecutorError(f"codec {name}: found other answers than those of {lossy_part(name)}, expected the same")
    return tables


def replayed(bundle: Bundle) -> Answers:
    """What the bundle's replay says without any codec, one column per stage."""
    plain = bundle.replay()
    labels = plain.labels.astype(np.int64)
    return Answers(labels, plain.confidences, labels == bundle.evaluation().labels[:, None])


def answer_through(bundle: Bundle, chain: StageChain, cut_codecs: Sequence[Codec], test: Evaluation) -> CodecTable:
    """Send every sample down the chain by itself, each activation coded and decoded on its way."""
    sent = np.zeros((len(test), len(cut_codecs)))
    logits = []
    for row in range(len(test)):
        exits = []
        x: Any = test.images[row : row + 1]
        for stage in range(len(bundle.stages)):
            activation, answer = chain.run_stage(stage, x)
            if answer is not None:
                exits.append(answer[0])
            if activation is not None:
                payload = cut_codecs[stage].encode(activation)
                sent[row, stage] = payload.nbytes
                x = cut_codecs[stage].decode(payload, 1)
        logits.append(np.stack(exits))
    temperatures = [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None]
    heads = [stage.exit_head is not None for stage in bundle.stages]
    answers = by_stage(answers_of(np.stack(logits), temperatures, test.labels), heads)
    return CodecTable(answers, tuple(float(mean) for mean in sent.mean(0)))


def codec_rows(tables: Mapping[str, CodecTable], thresholds: Sequence[float], test: Evaluation) -> Json:
    """The manifest's `codecs`: accuracy at these thresholds, what is lost against `none` (paired by sample), bytes per cut."""
    plain = right_at(tables[NO_CODEC].answers, thresholds)
    rows = {}
    for name, table in tables.items():
        right = right_at(table.answers, thresholds)
        lost = bootstrap(plain.astype(np.float64) - right, test.digit)
        rows[name] = {
            "accuracy": float(right.mean()),
            "lost": lost.value,
            "lost_interval": [lost.low, lost.high],
            "bytes": list(table.cut_bytes),
        }
    return rows


def replay_arrays(tables: Mapping[str, CodecTable]) -> dict[str, Any]:
    """As `replay.npz` holds them; one table for all codecs that give the same."""
    arrays: dict[str, Any] = {}
    for name, table in tables.items():
        if name == lossy_part(name):
            arrays[f"label.{name}"] = table.answers.labels.astype(label_dtype(table.answers.labels))
            arrays[f"confidence.{name}"] = table.answers.confidences
    return arrays
