"""A user's own labelled images: what is read from folders and archives, and one line for everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.test_cifar10 import write_archive as write_cifar10
from zpipe.datasets import halves, read_labelled, read_splits, read_unlabelled
from zpipe.datasets.cifar10 import CLASSES
from zpipe.errors import ConfigError
from zpipe.model import TensorSpec

SIZE = 8


def complaint(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_labelled(path, **{"size": SIZE, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "found" in message
    assert "expected" in message
    return message


# ---- archives ----------------------------------------------------------------------------------


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def test_archive_is_read_either_way_round(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 0, 1, 2], np.uint8)
    first = read_labelled(write_npz(tmp_path / "a.npz", images=images(), labels=labels), size=SIZE)
    last = read_labelled(write_npz(tmp_path / "b.npz", images=images().transpose(0, 2, 3, 1), labels=labels), size=SIZE)
    assert (first.images == images()).all()
    assert (last.images == images()).all()
    assert first.labels.tolist() == labels.tolist()
    assert first.classes == ("0", "1", "2")
    assert first.digit.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"images": None}, "images: found labels, expected an array of that name"),
        ({"labels": None}, "labels: found images, expected an array of that name"),
        ({"images": images().astype(np.float32)}, "images: found float32 [6, 3, 8, 8], expected uint8"),
        ({"images": images()[:, :, :4]}, "images: found uint8 [6, 3, 4, 8], expected uint8 [n, 3, 8, 8]"),
        ({"labels": np.zeros(5, np.int64)}, "labels: found int64 [5], expected whole numbers [6]"),
        ({"labels": np.zeros(6)}, "labels: found float64 [6], expected whole numbers [6]"),
        ({"labels": np.array([0, 1, 2, 3, 1, 1])}, "labels: found 0..3, expected 0..2, as the bundle has 3 classes"),
        ({"labels": np.array([-1, 1, 2, 2, 1, 1])}, "labels: found -1..2, expected 0..2"),
        ({"images": images(0), "labels": np.zeros(0, np.int64)}, "images: found none, expected at least one"),
        ({"severity": np.zeros(2, np.int64)}, "severity: found int64 [2], expected whole numbers [6]"),
    ],
)
def test_wrong_archive_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    arrays = {"images": images(), "labels": np.array([0, 1, 2, 0, 1, 2])} | change
    path = write_npz(tmp_path / "a.npz", **{key: array for key, array in arrays.items() if array is not None})
    assert found in complaint(path, classes=("a", "b", "c"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"plain text"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert "found no readable npz (it is no zip archive)" in complaint(path) or content.startswith(b"PK")


def test_bare_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images())
    assert "one bare array" in complaint(tmp_path / "a.npy")


def test_pickled_objects_are_never_read(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=np.array([{}], object), labels=np.zeros(1, np.int64))
    assert "found no readable npz" in complaint(path)


def test_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "found nothing there" in complaint(tmp_path / "absent")


# ---- folders -----------------------------------------------------------------------------------


def write_images(folder: Path, *names: str, size: tuple[int, int] = (16, 12), colour: tuple[int, int, int] = (200, 30, 40)) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    folder.mkdir(parents=True)
    for name in names:
        image.new("RGB", size, colour).save(folder / name)


def test_folders_are_classes_and_images_are_scaled(tmp_path: Path) -> None:
    write_images(tmp_path / "dog", "b.png", "a.png")
    write_images(tmp_path / "cat", "c.png", colour=(1, 2, 3))
    (tmp_path / "cat" / "notes.txt").write_text("passed over")
    data = read_labelled(tmp_path, size=SIZE)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images.shape == (3, 3, SIZE, SIZE)
    assert data.images[0, :, 0, 0].tolist() == [1, 2, 3]
    named = read_labelled(tmp_path, size=SIZE, classes=("dog", "horse", "cat"))
    assert named.labels.tolist() == [2, 0, 0]


def test_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "wolf", "a.png")
    assert "found a folder of that name, expected one of the classes cat, dog" in complaint(tmp_path, classes=("cat", "dog"))


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "found no folders in it" in complaint(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "found no images in 1 folders" in complaint(tmp_path)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", "a.png")
    (tmp_path / "cat" / "b.png").write_bytes(b"\x89PNG broken")
    message = complaint(tmp_path)
    assert "b.png: found no image that can be read" in message


# ---- splits ------------------------------------------------------------------------------------


def test_halves_share_no_original_and_have_every_class(tmp_path: Path) -> None:
    digit = np.repeat(np.arange(12), 3)
    labels = digit % 2
    path = write_npz(tmp_path / "a.npz", images=images(36), labels=labels, digit=digit)
    fitted, tested = halves(read_labelled(path, size=SIZE))
    assert not set(fitted.digit) & set(tested.digit)
    assert set(fitted.labels) == set(tested.labels) == {0, 1}
    assert len(fitted) == len(tested) == 18


def test_one_original_cannot_be_cut(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=images(4), labels=np.zeros(4, np.int64), digit=np.zeros(4, np.int64))
    with pytest.raises(ConfigError, match="found 1 original images, expected at least two"):
        read_splits(path, size=SIZE)


def test_cifar10_comes_with_its_own_test_batch(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    fitted, tested = read_splits(tmp_path, size=32, classes=CLASSES)
    assert (len(fitted), len(tested)) == (10, 20)
    assert len(read_labelled(tmp_path, size=32)) == 100
    assert "found images of 32 pixels, expected 8" in complaint(tmp_path)
    assert "expected those of the bundle: a, b" in complaint(tmp_path, size=32, classes=("a", "b"))


# ---- networks that take no images --------------------------------------------------------------

TOKENS = TensorSpec("int64", (5,))


def test_archive_of_tensors_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "data.npz", images=np.arange(20).reshape(4, 5), labels=np.arange(4) % 2)
    data = read_labelled(path, size=TOKENS)
    assert (str(data.images.dtype), data.classes) == ("int64", ("0", "1"))
    assert data.images.tolist() == np.arange(20).reshape(4, 5).tolist()
    fitted, tested = read_splits(path, size=TOKENS, classes=("no", "yes"))
    assert sorted([*fitted.images[:, 0], *tested.images[:, 0]]) == [0, 5, 10, 15]


@pytest.mark.parametrize("array", [np.zeros((4, 5), np.float32), np.zeros((4, 6), np.int64), np.int64(3)])
def test_tensors_of_another_kind_are_refused(tmp_path: Path, array: Any) -> None:
    path = write_npz(tmp_path / "data.npz", images=array, labels=np.arange(4))
    assert "expected int64 [n, 5]" in complaint(path, size=TOKENS)


@pytest.mark.parametrize("labelled", [True, False])
def test_tensors_that_are_no_numbers_are_refused(labelled: bool, tmp_path: Path) -> None:
    tensors = np.zeros((600, 5), np.float32)
    tensors[400, 1] = np.nan
    arrays: dict[str, Any] = {"labels": np.zeros(600, int)} if labelled else {}
    path, spec = write_npz(tmp_path / "data.npz", images=tensors, **arrays), TensorSpec("float32", (5,))
    with pytest.raises(ConfigError, match="found NaN or infinity in sample 400, expected numbers; leave it out"):
        (read_labelled if labelled else read_unlabelled)(path, size=spec)


def test_folder_of_images_for_a_network_that_takes_none_is_refused(tmp_path: Path) -> None:
    assert "--mean" in complaint(tmp_path, size=TOKENS)


# ---- without labels ----------------------------------------------------------------------------


def test_images_without_labels_are_told_from_labelled_ones(tmp_path: Path) -> None:
    alone = read_unlabelled(write_npz(tmp_path / "a.npz", images=images()), size=SIZE)
    assert alone is not None
    assert (alone == images()).all()
    assert read_unlabelled(write_npz(tmp_path / "b.npz", images=images(), labels=np.zeros(6, int)), size=SIZE) is None
    tensor = np.zeros((3, 5), np.float32)
    spec = TensorSpec("float32", (5,))
    assert read_unlabelled(write_npz(tmp_path / "c.npz", images=tensor), size=spec) is not None
    (tmp_path / "d.npz").write_bytes(b"no archive")
    (tmp_path / "class" / "cat").mkdir(parents=True)
    for name in ("d.npz", "class", "nowhere"):
        assert read_unlabelled(tmp_path / name, size=SIZE) is None


@pytest.mark.parametrize(("array", "found"), [(images(0), "found none"), (np.zeros((2, 3, 4, 4), np.uint8), "found uint8")])
def test_wrong_images_without_labels_are_refused(tmp_path: Path, array: np.ndarray, found: str) -> None:
    with pytest.raises(ConfigError, match=f"images: {found}"):
        read_unlabelled(write_npz(tmp_path / "a.npz", images=array), size=SIZE)


def test_folder_of_images_is_read_without_labels(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    for name in ("b.png", "a.png"):
        pillow.new("RGB", (4, 4), (255, 0, 0) if name == "a.png" else (0, 0, 255)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = read_unlabelled(tmp_path, size=SIZE)
    assert found is not None
    assert found.shape == (2, 3, SIZE, SIZE)
    assert found[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
