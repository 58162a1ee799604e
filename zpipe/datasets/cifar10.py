"""CIFAR-10 from disk: the official python batches. NumPy only; nothing is ever downloaded.

The batches are pickles. A pickle can run any code when it is read, so ours is a reader that knows only what these files hold:
dicts, lists, texts, bytes, numbers and NumPy arrays.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; file layout as its page describes it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: Height and width in pixels.
IMAGE_SIZE = 32

WHERE = (
    f"put the six files {', '.join(TRAIN_FILES)} and {TEST_FILE} of the 'CIFAR-10 python version' archive into "
    f"DIR/{FOLDER}/ and give DIR (--data-dir to train, --data elsewhere)"
)

#: What a NumPy array's own pickle names: its constructor and its dtype. The module was renamed in NumPy 2.
_ALLOWED = {
    (module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

#: The last tenth of the training images calibrates: 5,000 of 50,000.
CALIBRATION_FRACTION = 0.1


def find_batches(data_dir: Path) -> Path:
    """The folder of the six files: `data_dir/cifar-10-batches-py/`, or `data_dir` itself.

    Raises:
        ConfigError: a file is absent.
    """
    folder = data_dir if data_dir.name == FOLDER else data_dir / FOLDER
    absent = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
    if absent:
        raise ConfigError(f"{folder}: found no {', '.join(absent)}, expected the CIFAR-10 python batches; {WHERE}")
    return folder


def read_training(folder: Path) -> tuple[Bytes, Ints, int]:
    """All training images, their labels, and how many of them train; the last `CALIBRATION_FRACTION` calibrate.

    Raises:
        ConfigError: as `read_batch`.
    """
    parts = [read_batch(folder / name) for name in TRAIN_FILES]
    images, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return images, labels, len(labels) - max(1, int(len(labels) * CALIBRATION_FRACTION))


class _BatchUnpickler(pickle.Unpickler):
    """Refuses to import anything but NumPy's array constructors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_batch(path: Path) -> tuple[Bytes, Ints]:
    """One batch file: images `[n, 3, 32, 32] uint8`, labels `[n] int64`.

    Raises:
        ConfigError: unreadable, or not a CIFAR-10 batch.
    """
    try:
        with path.open("rb") as stream:
            # Written by Python 2: its texts are read as bytes.
            content = _BatchUnpickler(stream, encoding="bytes").load()
        images = np.asarray(content[b"data"])
        labels = np.asarray(content[b"labels"], np.int64)
    # A broken pickle may raise nearly anything while it is read.
    except Exception as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ConfigError(f"{path}: found no readable CIFAR-10 batch ({reason}); expected the official file; {WHERE}") from exc
    fits = images.dtype == np.uint8 and images.ndim == 2 and images.shape == (len(labels), 3 * 32 * 32)
    if not fits or labels.ndim != 1 or not len(labels) or not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        between = f" {labels.min()}..{labels.max()}" if labels.size else ""
        found = f"data {images.dtype} {list(images.shape)}, labels {list(labels.shape)}{between}"
        raise ConfigError(f"{path}: found {found}, expected data uint8 [n, 3072] and n labels 0..9; {WHERE}")
    return images.reshape(-1, 3, 32, 32), labels
