"""What a split network is tried on: the user's labelled samples, or made-up ones with the network's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zpipe.bundle import Evaluation
from zpipe.datasets import Labelled, is_cifar10, read_labelled, read_splits
from zpipe.errors import ConfigError
from zpipe.split.network import Network

#: Made-up samples: enough for a benchmark to go round, fewer where they are large, as noise cannot be compressed.
MOST_GENERATED, LEAST_GENERATED = 64, 16
GENERATED_BYTES = 8_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What a bundle's figures rest on.

    Attributes:
        classes: names.
        fitted: to calibrate with; None where inputs are made up.
        tested: the bundle's evaluation set.
    """

    classes: tuple[str, ...]
    fitted: Labelled | None
    tested: Labelled


def find_samples(network: Network, *, data: Path | None, test: Path | None, classes: Path | None, most: int, seed: int) -> Samples:
    """The samples, no more than `most` of a kind.

    Args:
        network: which takes them.
        data: for `zpipe.datasets`; None = made up.
        test: the same to test with; None = a half of `data`.
        classes: names, one a line; None = as folders are called, or numbers.
        most: of each split; evenly spread over what there is.
        seed: of what is made up.

    Raises:
        ConfigError: the data does not fit the network; one line.
        BackendUnavailable: images in files, without Pillow.
    """
    names = None if classes is None else _read_names(classes, network.answer.classes)
    numbers = tuple(str(index) for index in range(network.answer.classes))
    if data is None:
        if test is not None:
            raise ConfigError(f"--test: found {test} without --data, expected both; give it as --data")
        return Samples(names or numbers, None, _made_up(network, names or numbers, seed))
    size = image_size(network) or network.takes
    folder = data.is_dir() and isinstance(size, int)
    known = names if folder else names or numbers
    if test is None:
        fitted, tested = read_splits(data, size=size, classes=known)
    elif isinstance(size, int) and is_cifar10(data):
        raise ConfigError(f"--test: found {test}, expected none: CIFAR-10 has a test batch of its own; leave it out")
    else:
        fitted = read_labelled(data, size=size, classes=known)
        tested = read_labelled(test, size=size, classes=fitted.classes)
    if len(fitted.classes) != network.answer.classes:
        raise ConfigError(
            f"{data}: found {len(fitted.classes)} classes ({_listed(fitted.classes)}), expected {network.answer.classes}, as the "
            "network answers; name all of them in its order, one a line, in a file for --classes"
        )
    return Samples(fitted.classes, _thinned(fitted, most), _thinned(tested, most))


def image_size(network: Network) -> int | None:
    """Height and width where it takes square RGB images 0..255; else None."""
    takes = network.takes
    square = takes.dtype == "uint8" and len(takes.shape) == 3 and takes.shape[0] == 3 and takes.shape[1] == takes.shape[2]
    return takes.shape[1] if square else None


def _made_up(network: Network, classes: tuple[str, ...], seed: int) -> Labelled:
    count = min(MOST_GENERATED, max(LEAST_GENERATED, GENERATED_BYTES // network.takes.bytes))
    rows = network.examples(count, seed=seed)
    labels = network.expected(rows).argmax(1)
    data = Evaluation(rows, labels.astype(np.int64), np.zeros(count, np.int64), np.arange(count))
    return Labelled("made-up inputs", classes, data)


def _thinned(data: Labelled, most: int) -> Labelled:
    if len(data) <= most:
        return data
    chosen = np.zeros(len(data), np.bool_)
    chosen[np.linspace(0, len(data) - 1, most).astype(int)] = True
    return data.subset(chosen)


def _read_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--classes: found that {path} cannot be read ({exc}), expected names, one a line") from exc
    if len(names) != count or len(set(names)) != count:
        raise ConfigError(
            f"--classes: found {len(set(names))} names in {path}, expected {count}, one a line, as the network answers"
        )
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
