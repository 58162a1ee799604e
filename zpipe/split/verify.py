"""Whether the stages, one after the other, say what the network they were cut from says."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from zpipe.calibrate.chain import StageChain
from zpipe.errors import BundleError, ConfigError, ExecutorError
from zpipe.split.graph import Array
from zpipe.split.network import Network
from zpipe.split.running import RunFailed
from zpipe.split.stages import make_stages

#: Most that logits may differ by where they lie within +-1; beyond that, by so much of the largest.
PARITY = 1e-4

#: The same of a network that computes in half precision, whose own rounding is 5e-4: other fusions, other roundings.
HALF_PARITY = 5e-3

#: Operators that throw dice.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)

#: Batches that are compared.
BATCHES = (1, 5)


def check_stages(network: Network, paths: Sequence[Path], samples: Array | None = None) -> float:
    """Compare the chain of stages, at batch 1 and a larger one, with the original, one sample at a time.

    Args:
        network: what was cut.
        paths: of the stages.
        samples: real inputs to compare on, besides random ones.

    Returns:
        The largest difference, relative to the largest answer where that is beyond 1.

    Raises:
        ConfigError: they differ, or a stage does not run.
    """
    limit = parity_limit(network)
    inputs = [network.examples(batch, seed=100 + batch) for batch in BATCHES]
    inputs += [] if samples is None else [samples[:batch] for batch in BATCHES]
    worst = 0.0
    try:
        chain = StageChain(paths)
        for rows in inputs:
            # The original one sample at a time: a network that mixes the samples of a batch cannot be served in batches.
            expected = np.concatenate([network.expected(row) for row in rows[:, np.newaxis]])
            found = chain.logits(rows, batch=len(rows))[:, -1]
            if found.shape != expected.shape:
                raise _wrong(network, f"answers of {list(found.shape)} where it gives {list(expected.shape)}", limit)
            if not np.isfinite(expected).all():
                raise ConfigError(
                    f"{network.original.name}: found answers that are no finite numbers, expected scores for any input; check its "
                    "weights, and --mean and --std"
                )
            worst = max(worst, difference(found, expected))
    except (ExecutorError, BundleError, RunFailed) as exc:
        # The files are gone when this is read: their folder says nothing.
        raise _wrong(network, str(exc).replace(f"{paths[0].parent}{os.sep}", ""), limit) from exc
    if worst > limit:
        raise _cause(network, inputs, limit) or _wrong(network, f"a difference of {worst:.2g}", limit)
    return worst


def difference(found: Array, expected: Array) -> float:
    """The largest between two answers, relative to the largest expected where that is beyond 1; inf where one is no number."""
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def parity_limit(network: Network) -> float:
    """The most by which stages may differ."""
    return HALF_PARITY if computes_in_half(network) else PARITY


def computes_in_half(network: Network) -> bool:
    """Whether some of its tensors are half floats."""
    return any(spec.dtype == "float16" for spec in network.tensors.values())


def _cause(network: Network, inputs: Sequence[Array], limit: float) -> ConfigError | None:
    """What is the matter with the network itself, which no other cut would mend; None where nothing is."""
    name = network.original.name
    rows = max(inputs, key=len)
    one = rows[:1]
    if difference(network.expected(one), network.expected(one)) > limit:
        operators = ", ".join(sorted({node.op_type for node in network.nodes} & _RANDOM))
        dice = f" ({operators})" if operators else ""
        return ConfigError(
            f"{name}: found that it answers the same sample otherwise each time{dice}, expected "
            "one answer; export it for inference, without random layers"
        )
    with tempfile.TemporaryDirectory(prefix="zpipe-split-") as scratch:
        path = Path(scratch) / "whole.onnx"
        onnx.save_model(next(iter(make_stages(network, []))), path)
        whole = StageChain([path])
        together, alone = (whole.logits(rows, batch=batch)[:, -1] for batch in (len(rows), 1))
    if difference(together, alone) > limit:
        return ConfigError(
            f"{name}: found that a sample's answer depends on the others in its batch, expected a network that treats each sample "
            "by itself; export it in eval mode, without layers that mix samples"
        )
    if difference(alone, np.concatenate([network.expected(row) for row in rows[:, np.newaxis]])) > limit:
        return ConfigError(
            f"{name}: found that it answers otherwise once any batch goes, expected the same; export it with a dynamic batch axis"
        )
    return None


def _wrong(network: Network, found: str, limit: float) -> ConfigError:
    return ConfigError(
        f"{network.original.name}: the stages found {found}, expected the original's answers within {limit:g}; nothing was "
        "written; cut elsewhere (`zpipe split MODEL --list`)"
    )
