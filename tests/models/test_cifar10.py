"""CIFAR-10 from disk: the official layout, written here in miniature; nothing in a file can run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.datasets.cifar10 import FOLDER, TEST_FILE, TRAIN_FILES, read_batch
from zpipe.errors import ConfigError
from zpipe.models.cifar10 import cifar10_task, crop_and_flip


def write_archive(data_dir: Path, *, per_file: int = 20) -> Path:
    """Six batches as Python 2 wrote them: protocol 2, byte keys, rows of 3,072 values, a list of labels."""
    rng = np.random.default_rng(0)
    folder = data_dir / FOLDER
    folder.mkdir(parents=True)
    for name in (*TRAIN_FILES, TEST_FILE):
        content = {
            b"batch_label": name.encode(),
            b"labels": [int(label) for label in rng.integers(0, 10, per_file)],
            b"data": rng.integers(0, 256, (per_file, 3072), dtype=np.uint8),
            b"filenames": [b"image.png"] * per_file,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def complaint(data_dir: Path | None) -> str:
    with pytest.raises(ConfigError) as caught:
        cifar10_task(data_dir)
    message = str(caught.value)
    assert "\n" not in message
    assert FOLDER in message
    assert "--data-dir" in message
    return message


def test_batches_are_read_and_the_last_tenth_calibrates(tmp_path: Path) -> None:
    folder = write_archive(tmp_path)
    task = cifar10_task(tmp_path)
    assert (len(task.calibration), len(task.test)) == (10, 20)
    images, labels = task.draw_epoch(np.random.default_rng(0))
    assert images.shape == (90, 3, 32, 32)
    assert labels.dtype == np.int64
    stored = pickle.loads((folder / TEST_FILE).read_bytes())
    assert task.test.labels.tolist() == stored[b"labels"]
    # Rows hold 1,024 red values, then green, then blue.
    assert (task.test.images[3, 1].ravel() == stored[b"data"][3, 1024:2048]).all()


def test_folder_itself_may_be_given(tmp_path: Path) -> None:
    assert len(cifar10_task(write_archive(tmp_path)).test) == 20


def test_absent_files_say_where_to_put_them(tmp_path: Path) -> None:
    assert "--data-dir: found none" in complaint(None)
    assert TEST_FILE in complaint(tmp_path)
    (write_archive(tmp_path) / "data_batch_3").unlink()
    assert "found no data_batch_3," in complaint(tmp_path)


class Attack:
    """Its pickle calls os.mkdir when read by an ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickle_that_calls_a_function_is_refused_before_it_runs(tmp_path: Path) -> None:
    folder = write_archive(tmp_path)
    proof = tmp_path / "ran"
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Attack(proof), b"labels": []}, protocol=2))
    message = complaint(tmp_path)
    assert "mkdir" in message
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({b"labels": [1]}, protocol=2),
        pickle.dumps({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}, protocol=2),
        pickle.dumps({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
        pickle.dumps({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
        pickle.dumps({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}, protocol=2),
    ],
)
def test_file_that_is_no_batch_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = write_archive(tmp_path) / "data_batch_1"
    path.write_bytes(content)
    assert str(path) in complaint(tmp_path)
    with pytest.raises(ConfigError):
        read_batch(path)


def test_labels_out_of_range_are_told(tmp_path: Path) -> None:
    path = write_archive(tmp_path) / "data_batch_1"
    path.write_bytes(pickle.dumps({b"labels": [3, 77], b"data": np.zeros((2, 3072), np.uint8)}, protocol=2))
    assert "labels [2] 3..77, expected data uint8 [n, 3072] and n labels 0..9" in complaint(tmp_path)


def test_augmentation_crops_within_four_pixels_and_mirrors() -> None:
    image = np.arange(32 * 32, dtype=np.float64).reshape(1, 1, 32, 32) / 4.0
    images = np.repeat(np.repeat(image, 3, 1), 64, 0).astype(np.uint8)
    augmented = crop_and_flip(images, np.random.default_rng(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == np.uint8
    # The middle 24x24 of the original survives every crop, one way round or the other.
    assert len(np.unique(augmented.reshape(64, -1), axis=0)) > 20
