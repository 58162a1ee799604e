"""The CIFAR-10 task: reads the official python batches from disk. NumPy only; nothing is ever downloaded.

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

from zpipe.bundle import Evaluation
from zpipe.errors import ConfigError
from zpipe.models.task import Task

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

#: Height and width in pixels.
IMAGE_SIZE = 32

#: The last tenth of the training images calibrates: 5,000 of 50,000.
CALIBRATION_FRACTION = 0.1

#: Pixels of reflection around an image before a random crop, the usual augmentation.
CROP_MARGIN = 4

#: Passes over 45,000 images; hours on a small CPU. Not tuned: our machines hold no CIFAR-10.
EPOCHS = 30

_WHERE = (
    f"put the six files {', '.join(TRAIN_FILES)} and {TEST_FILE} of the 'CIFAR-10 python version' archive into "
    f"DIR/{FOLDER}/ and give --data-dir DIR"
)

#: What a NumPy array's own pickle names: its constructor and its dtype. The module was renamed in NumPy 2.
_ALLOWED = {
    (module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def cifar10_task(data_dir: Path | None) -> Task:
    """The task from `data_dir/cifar-10-batches-py/` (`data_dir` may also be that folder itself).

    Raises:
        ConfigError: no folder given, a file is absent, or one holds something else.
    """
    if data_dir is None:
        raise ConfigError(f"--data-dir: found none, expected a folder with the CIFAR-10 python batches; {_WHERE}")
    folder = data_dir if data_dir.name == FOLDER else data_dir / FOLDER
    absent = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
    if absent:
        raise ConfigError(f"{folder}: found no {', '.join(absent)}, expected the CIFAR-10 python batches; {_WHERE}")
    parts = [read_batch(folder / name) for name in TRAIN_FILES]
    images, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    kept = len(labels) - max(1, int(len(labels) * CALIBRATION_FRACTION))

    def draw_epoch(rng: np.random.Generator) -> tuple[Bytes, Ints]:
        order = rng.permutation(kept)
        return crop_and_flip(images[order], rng), labels[order]

    return Task(
        name="cifar10",
        classes=CLASSES,
        note=(
            f"CIFAR-10: the first {kept} training images train, the last {len(labels) - kept} calibrate, the official test "
            "batch tests; no distortions, so every severity is 0"
        ),
        draw_epoch=draw_epoch,
        calibration=_clean(images[kept:], labels[kept:]),
        test=_clean(*read_batch(folder / TEST_FILE)),
        epochs=EPOCHS,
    )


def _clean(images: Bytes, labels: Ints) -> Evaluation:
    return Evaluation(images, labels, np.zeros(len(labels), np.int64), np.arange(len(labels)))


def crop_and_flip(images: Bytes, rng: np.random.Generator) -> Bytes:
    """The usual augmentation: reflect 4 pixels, crop 32x32 at random, mirror every other image on average."""
    count, _, height, width = images.shape
    sides = (CROP_MARGIN, CROP_MARGIN)
    padded = np.pad(images, ((0, 0), (0, 0), sides, sides), mode="reflect")
    down, across = rng.integers(0, 2 * CROP_MARGIN + 1, (2, count))
    rows = (down[:, None] + np.arange(height))[:, None, :, None]
    columns = across[:, None] + np.arange(width)
    columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)[:, None, None, :]
    samples, channels = np.arange(count)[:, None, None, None], np.arange(3)[None, :, None, None]
    return np.asarray(padded[samples, channels, rows, columns])


# ---- reading the files -------------------------------------------------------------------------


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
        raise ConfigError(f"{path}: found no readable CIFAR-10 batch ({reason}); expected the official file; {_WHERE}") from exc
    fits = images.dtype == np.uint8 and images.ndim == 2 and images.shape == (len(labels), 3 * 32 * 32)
    if not fits or labels.ndim != 1 or not len(labels) or not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        found = f"data {images.dtype} {list(images.shape)}, labels {list(labels.shape)}"
        raise ConfigError(f"{path}: found {found}, expected data uint8 [n, 3072] and n labels 0..9; {_WHERE}")
    return images.reshape(-1, 3, 32, 32), labels
