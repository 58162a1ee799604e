"""Whether the stages, one after the other, say what the network they were cut from says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zpipe.calibrate.chain import StageChain
from zpipe.errors import BundleError, ConfigError, ExecutorError
from zpipe.split.graph import Array
from zpipe.split.network import Network
from zpipe.split.running import RunFailed

#: Most that logits may differ by where they lie within +-1; beyond that, by so much of the largest.
PARITY = 1e-4

#: The same of a network that computes in half precision, whose own rounding is 5e-4: other fusions, other roundings.
HALF_PARITY = 5e-3

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
    limit = HALF_PARITY if _halves(network) else PARITY
    worst = 0.0
    try:
        chain = StageChain(paths)
        inputs = [network.examples(batch, seed=100 + batch) for batch in BATCHES]
        inputs += [] if samples is None else [samples[:batch] for batch in BATCHES]
        for rows in inputs:
            # The original one sample at a time: a network that mixes the samples of a batch cannot be served in batches.
            expected = np.concatenate([network.expected(row) for row in rows[:, np.newaxis]])
            found = chain.logits(rows, batch=len(rows))[:, -1]
            if found.shape != expected.shape or not np.isfinite(expected).all():
                raise _wrong(network, f"answers of {list(expected.shape)} that are not all finite numbers", limit)
            worst = max(worst, float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max()))))
    except (ExecutorError, BundleError, RunFailed) as exc:
        raise _wrong(network, str(exc), limit) from exc
    if not worst <= limit:
        raise _wrong(network, f"a difference of {worst:.2g}", limit)
    return worst


def _halves(network: Network) -> bool:
    return any(spec.dtype == "float16" for spec in network.tensors.values())


def _wrong(network: Network, found: str, limit: float) -> ConfigError:
    return ConfigError(
        f"{network.original.name}: the stages found {found}, expected the original's answers within {limit:g}; nothing was "
        "written; cut elsewhere (`zpipe split MODEL --list`), and check that the network treats each sample by itself"
    )
