"""The gate's kernels, compiled for devices and drivers of many ages.

`python -m zpipe.executors.cuda.compile` makes the images, and `images.json`, which says what each of them is. Nothing is compiled
where zpipe runs. A cubin is the device's own code; PTX is text that the driver compiles when it is loaded, for any device that came
later.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.cuda.driver import Driver, Function

FOLDER = Path(__file__).parent
SOURCE = FOLDER.with_name("gate.cu")
MANIFEST = FOLDER / "images.json"


class Image(NamedTuple):
    """Compiled code of `gate.cu`, in a file of zlib's.

    Attributes:
        file: in `FOLDER`.
        ptx: whether it is PTX.
        capability: that it was made for: a cubin runs on exactly this one, PTX on this and all later ones.
        toolkit: CUDA version of its compiler, counted as `Driver.version`.
        registers: {kernel: registers of a thread}; empty for PTX.
        spill_bytes: of all kernels, what did not fit into registers and goes through memory.
    """

    file: str
    ptx: bool
    capability: tuple[int, int]
    toolkit: int
    registers: dict[str, int]
    spill_bytes: int

    def code(self) -> bytes:
        """As `Driver.load` takes it."""
        return zlib.decompress((FOLDER / self.file).read_bytes())


def source_digest() -> str:
    """SHA-256 of gate.cu, which the manifest repeats."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


@cache
def shipped_images() -> tuple[Image, ...]:
    """All of them."""
    listed = json.loads(MANIFEST.read_text())["images"]
    return tuple(Image(**{**each, "capability": tuple(each["capability"])}) for each in listed)


def fitting_images(images: Sequence[Image], capability: tuple[int, int], version: int) -> list[Image]:
    """Those that a driver of this version takes for a device of this capability, the best first.

    Source: NVIDIA's guide to CUDA compatibility: a cubin runs on later drivers, and on earlier ones of the same major version;
    PTX needs a driver that is no older than its compiler.
    """
    cubins = [each for each in images if not each.ptx and each.capability == capability and version // 1000 >= each.toolkit // 1000]
    texts = [each for each in images if each.ptx and each.capability <= capability and version >= each.toolkit]
    return cubins + sorted(texts, key=lambda each: each.capability, reverse=True)


def load_kernels(driver: Driver, kernels: Sequence[str]) -> dict[str, Function]:
    """The kernels of gate.cu, from the best image that the driver takes.

    Raises:
        ExecutorError: it takes none.
    """
    images = shipped_images()
    refusals = []
    for image in fitting_images(images, driver.capability, driver.version):
        try:
            return driver.load(image.code(), kernels)
        except ExecutorLost:  # noqa: PERF203  a handful of images, once
            raise
        except ExecutorError as exc:
            refusals.append(f"{image.file}: {exc}")
    oldest = min(image.toolkit for image in images if image.ptx)
    least = min(image.capability for image in images)
    found = f"{driver.name} of compute capability {_dotted(driver.capability)} and a driver for CUDA {_version(driver.version)}"
    expected = f"{_dotted(least)} or later and CUDA {_version(oldest)} or later"
    refused = f" ({'; '.join(refusals)})" if refusals else ""
    raise ExecutorError(f"gate: found {found}, expected {expected}{refused}; update the driver or run on another device")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _version(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
