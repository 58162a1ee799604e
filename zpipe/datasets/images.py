"""Pictures as stage 0 takes them: the one place where a file or a frame becomes `[3, size, size] uint8`.

What is done stands in the manifest (`zpipe.bundle.Preprocessing`): resize, RGB, channels first, 0..255. Before it a picture is
turned upright as its EXIF data says, and what is transparent shows white paper. Needs Pillow (the extra `images`), except for
frames that have the size already.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from zpipe.datasets.ink import draw_ink
from zpipe.errors import BackendUnavailable, ConfigError, one_line

#: What is looked at in a folder; other files are passed over.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".avif")

#: How a picture becomes a square: as the manifest says; cut to its middle first; or only the character that is written in it.
FITS = ("stretch", "crop", "ink")

#: A JPEG is decoded at the first of 1/8, 1/4, 1/2 of its size that is still so many times what is wanted: 12 million pixels
#: took 60 instead of 200 ms, and no pixel of the 32x32 image came out more than 1 grey level away.
_DECODED = 4

_EXIF_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)


def import_pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        BackendUnavailable: Pillow is absent.
    """
    try:
        from PIL import Image
    except ImportError as exc:
        raise BackendUnavailable("found no Pillow, expected it to read images; run: pip install 'zpipe[images]'") from exc
    return Image


def is_picture(name: str) -> bool:
    """Whether a file of that name is looked at in a folder."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_image(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """A file in any format Pillow reads, `[3, size, size]`; of several pictures in it the first.

    Raises:
        ConfigError: it cannot be read.
        BackendUnavailable: Pillow is absent.
    """
    return shape_picture(read_picture(file, least=size), size)


def read_picture(file: Path | IO[bytes], *, least: int, name: str | None = None) -> Any:
    """A file as an upright RGB picture of Pillow's; a JPEG larger than some times `least` pixels comes reduced.

    Args:
        file: on the disk, or its bytes.
        least: pixels a side that are wanted.
        name: of what has no path, for the error.

    Raises:
        ConfigError: it cannot be read.
        BackendUnavailable: Pillow is absent.
    """
    pillow = import_pillow()
    try:
        with pillow.open(file) as image:
            image.draft(None, (_DECODED * least, _DECODED * least))
            return _upright(_coloured(pillow, image), image.getexif().get(_EXIF_ORIENTATION, 1))
    # Pillow raises nearly anything at a damaged file.
    except Exception as exc:
        reason = one_line(" ".join(str(exc).split()))[:80] or type(exc).__name__
        raise ConfigError(
            f"{name or file}: found no image that can be read ({reason}), expected one; remove or replace it"
        ) from exc


def shape_picture(picture: Any, size: int, fit: str = "stretch") -> npt.NDArray[np.uint8]:
    """One of Pillow's RGB pictures as stage 0 takes it, `[3, size, size]`.

    Args:
        picture: from `read_picture` or `picture_of`.
        size: of stage 0's input.
        fit: one of FITS.

    Raises:
        ConfigError: `ink`, and there is none.
    """
    if fit == "ink":
        return draw_ink(picture, size, import_pillow())
    if fit == "crop":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    scaled = picture.resize((size, size), import_pillow().Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(scaled, np.uint8).transpose(2, 0, 1))


def picture_of(pixels: npt.NDArray[np.uint8]) -> Any:
    """Pixels `[height, width]` (grey), `[height, width, 1, 3 or 4]` (grey, RGB, RGBA) as one of Pillow's RGB pictures.

    Raises:
        BackendUnavailable: Pillow is absent.
    """
    pillow = import_pillow()
    return _coloured(pillow, pillow.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def shape_pixels(pixels: npt.NDArray[np.uint8], size: int, fit: str = "stretch") -> npt.NDArray[np.uint8]:
    """The same as stage 0 takes it, `[3, size, size]`. RGB of that size needs no Pillow.

    Raises:
        BackendUnavailable: Pillow is needed and absent.
        ConfigError: as `shape_picture`.
    """
    if pixels.shape == (size, size, 3) and fit != "ink":
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return shape_picture(picture_of(pixels), size, fit)


def _coloured(pillow: Any, image: Any) -> Any:
    """RGB: 16 bits of grey by their upper eight (Pillow would clip them to white), transparency on white."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of which nobody knows what is white")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        deep = image.mode != "I" or (grey.size and grey.max() > 255)
        image = pillow.fromarray(np.clip(grey >> 8 if deep else grey, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", over.size, _WHITE), over).convert("RGB")
    return image.convert("RGB")


def _upright(image: Any, orientation: Any) -> Any:
    """Turned and mirrored as EXIF's orientation, 1 to 8, says (which `ImageOps.exif_transpose` would look for in a copy)."""
    method = import_pillow().Transpose
    turns = {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
