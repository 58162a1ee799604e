"""What inputs give: names, order, frames, and one line for what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.errors import ConfigError
from zpipe.infer.frames import RawFormat, RawFrames
from zpipe.infer.inputs import open_inputs
from zpipe.infer.items import Item, Shaper, Skipped, Source
from zpipe.model import TensorSpec

SIZE = 8
IMAGES = Shaper(TensorSpec("uint8", (3, SIZE, SIZE)), SIZE)
TENSORS = Shaper(TensorSpec("float32", (5,)), None)


def everything(name: str, frame: int | None) -> bool:
    return True


def read(path: Path | Source, shaper: Shaper = IMAGES) -> list[Item | Skipped]:
    source = open_inputs([str(path)], shaper, raw=None)[0] if isinstance(path, Path) else path
    return list(source.items(everything))


def only_skipped(found: list[Item | Skipped]) -> str:
    (skipped,) = found
    assert isinstance(skipped, Skipped)
    assert "\n" not in skipped.cause
    return skipped.cause


def images(found: list[Item | Skipped]) -> list[Item]:
    return [item for item in found if isinstance(item, Item)]


# ---- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pillow: Any = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    top = tmp_path / "photos"
    for name in ("b.png", "a/2.png", "a/1.PNG", "c/d/x.png", ".hidden.png", ".cache/y.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        pillow.new("L", (4, 4), 9).save(top / name)
    (top / "notes.txt").write_text("no picture")
    return top


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(folder: Path) -> None:
    found = images(read(folder))
    assert [item.entry.name for item in found] == [str(folder / name) for name in ("a/1.PNG", "a/2.png", "b.png", "c/d/x.png")]
    assert all(item.image.shape == (3, SIZE, SIZE) and item.entry.frame is None for item in found)
    assert open_inputs([str(folder)], IMAGES, raw=None)[0].count() == 4


def test_a_bad_file_in_a_folder_is_skipped_in_its_place(folder: Path) -> None:
    (folder / "a" / "1b.png").write_bytes(b"torn")
    found = read(folder)
    assert [isinstance(item, Skipped) for item in found] == [False, True, False, False, False]
    assert isinstance(found[1], Skipped)
    assert "1b.png: found no image" in found[1].cause


def test_a_pipe_in_a_folder_is_skipped_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "a" / "1b.png")
    (folder / "a" / "1c.png").symlink_to("nowhere")
    pipe, link = [item for item in read(folder) if isinstance(item, Skipped)]
    assert "1b.png: found a pipe" in pipe.cause
    assert "1c.png: found no" in link.cause


def test_a_link_to_the_folder_above_is_not_followed(folder: Path) -> None:
    (folder / "a" / "loop").symlink_to(folder)
    assert len(read(folder)) == 4


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "found no picture in it" in only_skipped(read(tmp_path))


def test_what_is_not_wanted_is_not_read(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"torn")  # would be skipped, were it read
    (source,) = open_inputs([str(folder)], IMAGES, raw=None)
    assert len(list(source.items(lambda name, frame: not name.endswith("b.png")))) == 3


# ---- archives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (SIZE, SIZE, 3), (5, 7, 3), (3, 5, 7), (5, 7), (5, 7, 1), (5, 7, 4)])
def test_an_archive_of_pictures_of_any_size_is_read_row_by_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=rows, labels=np.arange(6))
    found = images(read(tmp_path / "a.npz"))
    assert [item.entry.frame for item in found] == list(range(6))
    assert all(item.image.shape == (3, SIZE, SIZE) and item.image.dtype == np.uint8 for item in found)
    if shape == (3, SIZE, SIZE):
        assert all((item.image == row).all() for item, row in zip(found, rows, strict=True))


def test_an_archive_of_tensors_goes_as_it_is_into_a_network_that_takes_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", readings=rows)
    found = images(read(tmp_path / "a.npz", TENSORS))
    assert all((item.image == row).all() for item, row in zip(found, rows, strict=True))


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"images": np.zeros((2, 3, 8, 8), np.float32)}, "images: found float32 ['n', 3, 8, 8], expected uint8 [n, height"),
        ({"images": np.zeros((2, 2, 8, 8), np.uint8)}, "expected uint8 [n, height, width, 3]"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "images: found uint8 [0, 8, 8], expected at least one row"),
        ({"images": np.array(["a"], object)}, "found Python objects"),
        ({"images": np.asfortranarray(np.zeros((2, 8, 8), np.uint8))}, "found columns before rows"),
        ({"images": np.uint8(1)}, "found no rows"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, "found a, b, expected an array images"),
    ],
)
def test_an_archive_of_something_else_is_skipped(tmp_path: Path, arrays: dict[str, Any], cause: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert cause in only_skipped(read(tmp_path / "a.npz"))


def test_a_torn_archive_gives_what_is_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((50, SIZE, SIZE, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255  # the checksum stands at the end
    path.write_bytes(content)
    *rows, damaged = read(path)
    assert len(images(rows)) == len(rows) > 0
    assert "found damage from row" in only_skipped([damaged])
    path.write_bytes(content[:100])
    assert "found no readable npz" in only_skipped(read(path))


# ---- raw frames --------------------------------------------------------------------------------


def raw_frames(content: bytes, raw: RawFormat) -> list[Item | Skipped]:
    descriptor, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return read(RawFrames(descriptor, raw, IMAGES, live=True))


def test_frames_come_as_they_are_stored() -> None:
    frame = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
    rgb = images(raw_frames(frame.tobytes() * 2, RawFormat(SIZE, SIZE)))
    bgr = images(raw_frames(frame.tobytes(), RawFormat(SIZE, SIZE, "bgr24")))
    assert [item.entry.frame for item in rgb] == [0, 1]
    assert (rgb[0].image == frame.transpose(2, 0, 1)).all()
    assert (bgr[0].image == frame[..., ::-1].transpose(2, 0, 1)).all()
    assert rgb[0].entry.seconds == 0.0


def test_grey_frames_become_rgb() -> None:
    pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    grey = np.arange(6 * 4, dtype=np.uint8)
    (item,) = images(raw_frames(grey.tobytes(), RawFormat(6, 4, "gray8")))
    assert item.image.shape == (3, SIZE, SIZE)


def test_a_torn_last_frame_and_no_frame_at_all_are_said() -> None:
    raw = RawFormat(SIZE, SIZE)
    whole, torn = raw_frames(bytes(raw.frame_bytes + 7), raw)
    assert isinstance(whole, Item)
    assert "found 7 bytes after 1 frames, expected 192 for each of 8x8 rgb24" in only_skipped([torn])
    assert "found nothing on standard input" in only_skipped(raw_frames(b"", raw))


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "raw", "cause"),
    [
        (["absent.png"], None, "absent.png: found nothing there"),
        (["-"], None, "-: found no --size"),
        (["-", "a.png"], RawFormat(8, 8), "-: found it beside other inputs"),
        (["camera:front"], None, "found 'front', expected the number of a camera"),
        (["a.png"], RawFormat(8, 8), "--size: found it without `-`"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_starts(names: list[str], raw: RawFormat | None, cause: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_inputs(names, IMAGES, raw=raw)
    assert cause in str(caught.value)


@pytest.mark.parametrize("name", ["a.npz", "clip.avi"])
def test_what_has_to_be_a_file_is_not_waited_for_in_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{name}: found a pipe, expected .* that is a file"):
        open_inputs([str(tmp_path / name)], IMAGES, raw=None)


@pytest.mark.parametrize("name", ["a.png", "-", "camera:0", "clip.avi"])
def test_a_network_without_images_takes_archives_only(name: str) -> None:
    with pytest.raises(ConfigError, match=r"a network that takes float32 \[5\]; expected an \.npz of such tensors"):
        open_inputs([name], TENSORS, raw=None)
