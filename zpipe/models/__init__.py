"""Making bundles: data, network, joint training of all exits, calibration, export. Needs the extra `train`.

torch is imported only once a bundle is made, so that commands can list the recipes without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from zpipe.bundle import Bundle
from zpipe.errors import BackendUnavailable
from zpipe.models.recipes import RECIPES, Recipe

__all__ = ["DATA_SETS", "RECIPES", "Progress", "Recipe", "train_bundle"]

#: What `data` may be.
DATA_SETS = ("digits", "cifar10")

#: Called as work goes on: (step: `train`, `calibrate`, `export`, `replay`; fraction 0..1 of all work; one line for people).
Progress = Callable[[str, float, str], None]

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")


def train_bundle(
    recipe: str,
    *,
    out: Path,
    data: str = "digits",
    data_dir: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Bundle:
    """Train a recipe and write the bundle to `out`, ready to run.

    The folder appears only when all of it is done; a bundle that was there before is replaced, anything else is refused.

    Args:
        recipe: a name in RECIPES.
        out: the bundle's folder.
        data: `digits` (comes with scikit-learn) or `cifar10` (read from `data_dir`).
        data_dir: holds `cifar-10-batches-py/`.
        epochs: passes over the training set; None = as the recipe or the data set says.
        seed: of weights, order and augmentation; the held-out splits don't depend on it.
        threads: torch's threads. One is repeatable bit by bit; two on a busy machine were up to ten times slower than one.
        progress: called after every epoch and step, from this thread.

    Returns:
        The bundle, loaded and verified.

    Raises:
        ConfigError: unknown recipe or data set, files of the data set absent, or `out` holds something else.
        BackendUnavailable: a library of the extra `train` is absent.
        ExecutorError: the exported stages disagree with torch.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"found no {', '.join(missing)}, expected them for training a bundle; run: pip install 'zpipe[train]'"
        )
    from zpipe.models.building import build_bundle

    return build_bundle(recipe, out=out, data=data, data_dir=data_dir, epochs=epochs, seed=seed, threads=threads, progress=progress)
